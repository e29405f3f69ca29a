"""ProfiledRun: a run whose parts are measured where they are bound, so that the loops know nothing of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from leyden.core.batches import Batches
from leyden.core.hooks import action_of
from leyden.core.run import Run
from leyden.core.state import Fn, Stage
from leyden.profilers.profiler import Profiler
from leyden.utils.dynamo import COMPILER

_WORDS = {
    Stage.TRAIN: "training",
    Stage.SANITY_CHECK: "sanity_check",
    Stage.VALIDATE: "validation",
    Stage.TEST: "test",
    Stage.PREDICT: "predict",
}
_END = object()


class ProfiledRun(Run):
    """A run that tells a profiler what starts and stops.

    Attributes:
        profiler: Who is told.
    """

    def __init__(self, profiler: Profiler, **given: Any) -> None:
        super().__init__(**given)
        self.profiler = profiler
        self._measuring = False
        self.strategy = _stand_in(
            self.strategy,
            setup_module=self.timed(
                f"[Strategy]{type(self.strategy).__name__}.setup_module", self.strategy.setup_module
            ),
            save_checkpoint=self.timed("save_checkpoint", self.strategy.save_checkpoint),
        )

    def begin(self) -> None:
        """Set the profiler up."""
        if self.fn is Fn.FIT:  # torch's optimizers import it as they first step, which is no time of theirs
            importlib.import_module(COMPILER)
        self.profiler.setup(str(self.fn), self.strategy.local_rank, self.trainer.log_dir)
        self._measuring = True

    def end(self) -> None:
        """Have the profiler report."""
        if self._measuring:
            self._measuring = False
            try:
                self.profiler.describe()
            finally:
                self.profiler.teardown(str(self.fn))

    def hook(self, owner: object, name: str) -> Callable[..., Any]:
        """The method ``name`` of module, datamodule or a callback, for one call, measured."""
        return self.timed(action_of(owner, name), super().hook(owner, name))

    def timed(self, action: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, measured as ``action``."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            if not self._measuring:  # a checkpoint, say, after the run
                return call(*args, **kwargs)
            self.profiler.start(action)
            try:
                return call(*args, **kwargs)
            finally:
                self._stop(action)

        return measured

    @contextmanager
    def _measured(self, action: str) -> Iterator[None]:
        self.profiler.start(action)
        try:
            yield
        finally:
            self._stop(action)

    def _stop(self, action: str) -> None:
        if self._measuring:  # after a failure, what is suspended is only closed when the report is out
            self.profiler.stop(action)

    def place_module(self) -> None:
        """Place it, and measure how batches get to it."""
        super().place_module()
        if self._transfer is not None:
            self._transfer = self.timed("transfer_batch_to_device", self._transfer)
        self.profiler.watch(self.module)

    def prepare_training(self) -> None:
        """Bind what a training step calls, and measure it."""
        self.precision = _stand_in(self.precision, step=self.timed("optimizer_step", self.precision.step))
        super().prepare_training()
        self.backward = self.timed("backward", self.backward)
        self.zero_grad = self.timed("optimizer_zero_grad", self.zero_grad or _zero_grad)
        self.step_scheduler = self.timed("lr_scheduler_step", self.step_scheduler)
        if self.clip is not None:
            self.clip = self.timed("clip_gradients", self.clip)

    def renew_training_data(self) -> None:
        """Ask for the loader where that is due, and measure its batches."""
        super().renew_training_data()
        self._measure_batches(self.train, "rest_of_epoch")

    def evaluation(self, stage: Stage) -> list[Batches]:
        """The loaders of ``stage``, measured."""
        loaders = super().evaluation(stage)
        for batches in loaders:
            self._measure_batches(batches, "run")
        return loaders

    def _measure_batches(self, batches: Batches, begin: str) -> None:
        """Measure what the method ``begin`` of ``batches`` hands out, and what is done with it until it goes on."""
        if begin in vars(batches):  # they are asked for again and again
            return
        begin_pass = getattr(batches, begin)
        vars(batches)[begin] = lambda *args: self._each(lambda: begin_pass(*args))

    def _each(self, begin_pass: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        word = _WORDS[self.state.stage or Stage.TRAIN]
        batches: Iterator[Any] | None = None
        with self._measured(f"run_{word}_epoch"):
            while True:
                with self._measured(f"[{word}] next batch"):
                    if batches is None:  # with it, the workers of the loader start
                        batches = begin_pass()
                    batch = next(batches, _END)
                if batch is _END:
                    return
                with self._measured(f"run_{word}_batch"):
                    yield batch


class _StandIn:
    """Has everything that another object has, but some methods of its own."""

    def __init__(self, inner: object, methods: dict[str, Any]) -> None:
        self.__dict__.update(methods, _inner=inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)


def _stand_in(inner: object, **methods: Any) -> Any:
    return _StandIn(inner, methods)


def _zero_grad(epoch: int, index: int, optimizer: Optimizer) -> None:
    optimizer.zero_grad()
