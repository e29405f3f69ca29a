"""What a training step costs between the user's code and torch's, counted and not timed."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from import_graph import SOURCE
from leyden.core.callback import Callback
from leyden.trainer import Trainer
from models import TinyModel, ready_loader

FRAMES, FILES = 6, 2
CALLS_OF_A_STEP = 20
CALLS_OF_A_LOG = 10
STEPS = 10


def train(model: TinyModel, **options: Any) -> None:
    """Ten steps with nothing attached but ``options``."""
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=1, accelerator="cpu", devices=1, **bare | options).fit(model, ready_loader(STEPS))


class CountingModel(TinyModel):
    """Counts our Python calls from the start of one ``training_step`` to the start of the next.

    Attributes:
        windows: One count for each pair of steps, by function.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.windows: list[Counter[str]] = []
        self.started = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        sys.setprofile(None)
        self.started += 1
        loss = self.loss(batch)
        if self.started < STEPS:  # what ends the epoch belongs to no step
            self.windows.append(Counter())
            sys.setprofile(self.count)
        return self.logged(loss)

    def logged(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def count(self, frame: FrameType, event: str, argument: object) -> None:
        """Count calls, and generators that go on, in our modules and in code that they made."""
        module = frame.f_globals.get("__name__", "")
        if event == "call" and (module == "leyden" or module.startswith("leyden.")):
            self.windows[-1][f"{module}.{frame.f_code.co_name}"] += 1


class LoggingModel(CountingModel):
    def logged(self, loss: torch.Tensor) -> torch.Tensor:
        self.log("train_loss", loss)
        return loss


def calls_of_a_step(model: CountingModel, **options: Any) -> Counter[str]:
    """What one step calls once it has settled: the first may prepare, all later ones must be the same."""
    try:
        train(model, **options)
    finally:
        sys.setprofile(None)
    settled = model.windows[2:]
    assert len(settled) == STEPS - 3
    assert all(window == settled[0] for window in settled)
    return settled[0]


def test_few_frames_lie_between_fit_and_training_step():
    class Model(TinyModel):
        def training_step(self, batch, batch_idx):
            nonlocal stack
            stack = traceback.extract_stack()[:-1]
            return self.loss(batch)

    stack = traceback.StackSummary()
    train(Model())
    ours = [f"{frame.filename} {frame.name}" for frame in stack]
    frames = ours[next(i for i, frame in enumerate(ours) if frame.startswith(str(SOURCE)) and frame.endswith(" fit")) :]
    assert len(frames) <= FRAMES, f"{len(frames)} frames are more than {FRAMES}: {frames}"
    files = {frame.split(" ")[0] for frame in frames}
    assert len(files) <= FILES, f"{len(files)} files are more than {FILES}: {frames}"


def test_a_step_with_nothing_attached_calls_little_of_ours():
    calls = calls_of_a_step(CountingModel())
    print(f"{calls.total()} calls: {dict(calls)}")
    assert 0 < calls.total() <= CALLS_OF_A_STEP, f"{calls.total()} are more than {CALLS_OF_A_STEP}: {dict(calls)}"


def test_one_logged_value_adds_few_calls():
    added = calls_of_a_step(LoggingModel()) - calls_of_a_step(CountingModel())
    print(f"{added.total()} calls: {dict(added)}")
    assert 0 < added.total() <= CALLS_OF_A_LOG, f"{added.total()} are more than {CALLS_OF_A_LOG}: {dict(added)}"


class OutsideTheStep(Callback):
    """Has hooks, but none that a step fires."""

    def on_fit_start(self, trainer, pl_module):
        pass

    def on_train_epoch_end(self, trainer, pl_module):
        pass


@pytest.mark.parametrize("callback", [Callback, OutsideTheStep])
def test_a_callback_without_the_hooks_of_a_step_adds_no_call(callback):
    assert calls_of_a_step(CountingModel(), callbacks=[callback()]) == calls_of_a_step(CountingModel())


def test_a_hook_of_a_step_that_is_used_is_counted():
    class Used(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.current_epoch  # noqa: B018

    assert calls_of_a_step(CountingModel(), callbacks=[Used()]) - calls_of_a_step(CountingModel())


class Waits(TorchDispatchMode):
    """Records operations that make Python wait for the device, with our lines that led to each."""

    WAITING = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in self.WAITING:
            ours = [f for f in traceback.extract_stack() if f.filename.startswith(str(SOURCE))]
            self.seen.append(f"{func.name()} from " + " > ".join(f"{f.filename}:{f.lineno}" for f in ours[-3:]))
        return func(*args, **kwargs or {})


class WatchedModel(TinyModel):
    """Notes at the start of every ``training_step`` how often Python has waited so far; logs to the progress bar.

    Its optimizer is SGD: torch's Adam on a CPU reads its own step count with ``item()``.
    """

    def __init__(self, waits: Waits) -> None:
        super().__init__("sgd")
        self.waits, self.so_far = waits, []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.so_far.append(len(self.waits.seen))
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss


def waits_between_steps(kind: type[WatchedModel], **options: Any) -> list[str]:
    with Waits() as waits:
        model = kind(waits)
        # The check of the loss reads it where that waits for nothing, as on the CPU; tests/core/test_finite.py.
        train(model, **{"on_nonfinite_loss": "ignore", **options})
    assert len(model.so_far) == STEPS
    return waits.seen[model.so_far[0] : model.so_far[-1]]


def test_no_step_between_flushes_waits_for_the_device():
    assert waits_between_steps(WatchedModel, log_every_n_steps=50) == []


def test_a_step_that_waits_is_found():
    class Waiting(WatchedModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            loss.item()
            return loss

    assert len(waits_between_steps(Waiting)) == STEPS - 1


@pytest.mark.gpu
def test_no_step_between_flushes_waits_for_the_gpu():
    class Model(TinyModel):
        def training_step(self, batch, batch_idx):
            # The first steps load kernels and make the optimizer's state; the last one ends the epoch.
            torch.cuda.set_sync_debug_mode("error" if 2 <= batch_idx < STEPS - 1 else "default")
            loss = self.loss(batch)
            self.log("train_loss", loss, prog_bar=True)
            return loss

    try:
        train(Model("adam"), accelerator="gpu", log_every_n_steps=50)
    finally:
        torch.cuda.set_sync_debug_mode("default")
