"""Hyper-parameters and pickling, where Lightning's users look for them."""

from leyden.utils.hparams import AttributeDict as AttributeDict
from leyden.utils.pickling import is_picklable as is_picklable
