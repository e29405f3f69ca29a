"""Exceptions, where Lightning's users look for them."""

from leyden.utils.errors import MisconfigurationException as MisconfigurationException
from leyden.utils.errors import SIGTERMException as SIGTERMException
from leyden.utils.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {"MisconfigurationException": "leyden.utils.errors", "SIGTERMException": "leyden.utils.errors"},
    not_built={"TrainingSpikeException": "Raise an exception of your own in on_train_batch_end."},
)
