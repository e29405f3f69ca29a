"""The summary of a model, where Lightning's users look for it."""

from leyden.utils.summary import LayerSummary as LayerSummary
from leyden.utils.summary import ModelSummary as ModelSummary
from leyden.utils.summary import summarize as summarize
