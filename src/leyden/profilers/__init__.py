"""Profilers: where the time of a run goes."""

from typing import TYPE_CHECKING

from leyden.utils.lazy import lazy_names

if TYPE_CHECKING:
    from leyden.profilers.advanced import AdvancedProfiler as AdvancedProfiler
    from leyden.profilers.profiler import PassThroughProfiler as PassThroughProfiler
    from leyden.profilers.profiler import Profiler as Profiler
    from leyden.profilers.simple import SimpleProfiler as SimpleProfiler
    from leyden.profilers.torch import PyTorchProfiler as PyTorchProfiler

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AdvancedProfiler": "leyden.profilers.advanced",
        "PassThroughProfiler": "leyden.profilers.profiler",
        "Profiler": "leyden.profilers.profiler",
        "PyTorchProfiler": "leyden.profilers.torch",
        "SimpleProfiler": "leyden.profilers.simple",
    },
    not_built={"XLAProfiler": "TPUs are not supported. Use PyTorchProfiler."},
)
