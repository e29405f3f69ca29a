"""The base of all loggers: where the values of a run go."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leyden.utils.errors import warn
from leyden.utils.rank import rank_zero_only

if TYPE_CHECKING:
    from torch import nn

    from leyden.loggers.media import Media


class Logger:
    """Receives the metrics and hyper-parameters of a run.

    A subclass overrides ``name``, ``version``, ``log_metrics`` and ``log_hyperparams``, and whatever else it can do;
    the rest does nothing. The Trainer calls it on rank 0 only, and no failure of it ends a run.

    Attributes:
        time_limit: Seconds that a call by the Trainer may take before it is broken off and the logger is off for the
            rest of the run; ``math.inf`` for no limit. The first call of a method, which may connect, and those that
            may upload, ``save``, ``finalize`` and ``after_save_checkpoint``, have ten times as much.
    """

    group_separator = "/"
    time_limit: float = 30.0

    @property
    def name(self) -> str | None:
        """Name of the experiment."""
        return None

    @property
    def version(self) -> int | str | None:
        """Version of the experiment: which run of that name."""
        return None

    @property
    def save_dir(self) -> str | None:
        """The folder given for all experiments; None when nothing is kept on disk."""
        return None

    @property
    def root_dir(self) -> str | None:
        """The folder of all versions of this experiment."""
        return self.save_dir

    @property
    def log_dir(self) -> str | None:
        """The folder of this run, where checkpoints go too by default; None when nothing is kept on disk."""
        return None

    @property
    def experiment(self) -> Any:
        """The tool's own object, such as a SummaryWriter, for what ``self.log`` cannot say."""
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record ``metrics`` at ``step``, the number of batches that stepped the optimizer, counted from 0."""

    @rank_zero_only
    def log_media(self, name: str, media: Media, step: int | None = None) -> None:
        """Record an image or the like; here as the file ``log_dir/media/name/step_N``, whatever the tool can show."""
        if self.log_dir is None:
            who = type(self).__name__
            warn("LD213", f"{who} has no folder, so that {name!r} is left out. Override {who}.log_media.", subject=who)
        else:
            media.write(self.log_dir, name, step)

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Record the hyper-parameters of the run."""

    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Record the model's graph, by a run on ``input_array`` where the tool needs one."""

    def save(self) -> None:
        """Write out what is still in memory."""

    def finalize(self, status: str) -> None:
        """The run has ended with ``status``: ``"success"`` or ``"failed"``. More runs may follow."""
        self.save()

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """``checkpoint_callback``, a ModelCheckpoint, has written a file."""


class DummyLogger(Logger):
    """Stands in for real loggers where nothing is to be kept, as in ``fast_dev_run``; takes every call."""

    @property
    def experiment(self) -> Any:
        """An object on which anything can be called."""
        return _Nothing()

    def log_media(self, name: str, media: Media, step: int | None = None) -> None:
        """Do nothing."""


class _Nothing:
    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __getitem__(self, key: Any) -> _Nothing:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self
