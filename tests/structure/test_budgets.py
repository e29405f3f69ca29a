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
CALLS_OF_A_STEP = 12
CALLS_OF_A_LOG = 2
STEPS = 10

# What is added to a step, or a batch, by each thing more. These are measured numbers: lower them when they fall.
CALLS_OF_A_METRIC = 2
CALLS_OF_AN_EPOCH_METRIC = 3
CALLS_OF_A_CALLBACK_HOOK = 0
CALLS_OF_A_VALIDATION_BATCH = 8
CALLS_OF_A_PREDICT_BATCH = 6
OPERATORS_OF_A_STEP = -22  # than the loop written by hand
OPERATORS_OF_A_METRIC = 1
OPERATORS_OF_AN_EPOCH_METRIC = 2
OPERATORS_OF_A_VALIDATION_BATCH = 1
OPERATORS_OF_A_PREDICT_BATCH = 0
BATCHES, SETTLED = 24, 18  # the check of the loss looks more closely at the first 16


def train(model: TinyModel, **options: Any) -> None:
    """Ten steps with nothing attached but ``options``."""
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=1, accelerator="cpu", devices=1, **bare | options).fit(model, ready_loader(STEPS))


class Windows:
    """Counts things by name, between one call of ``mark`` and the next."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[Counter[str]] = []

    def mark(self) -> None:
        self.windows.append(Counter())

    def note(self, name: str) -> None:
        if self.windows:
            self.windows[-1][name] += 1

    def settled(self) -> Counter[str]:
        """What a window holds once all are alike; the last one of all holds the end of the run too."""
        late = self.windows[SETTLED:-1]
        assert len(late) == BATCHES - SETTLED - 1
        assert all(window == late[0] for window in late), late
        return late[0]


class Calls(Windows):
    """Python calls of functions of ours, while its ``with`` block runs."""

    def __enter__(self) -> Calls:
        sys.setprofile(self._count)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event == "call" and (module == "leyden" or module.startswith("leyden.")):
            self.note(f"{module}.{frame.f_code.co_name}")


class Operators(Windows, TorchDispatchMode):
    """torch's operators, those of backward and of the optimizer too, while its ``with`` block runs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.name().startswith("profiler::"):  # marks that torch's own Python sets, and computes nothing
            self.note(func.name())
        return func(*args, **kwargs or {})


class MarkedModel(TinyModel):
    """Marks the start of every step of training, and logs so many values there."""

    def __init__(self, windows: Windows, metrics: int = 0, **options: Any) -> None:
        super().__init__("adam")
        self.windows, self.names, self.options = windows, [f"metric_{index}" for index in range(metrics)], options

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.windows.mark()
        loss = self.loss(batch)
        for name in self.names:
            self.log(name, loss, **self.options)
        return loss


class MarkedEvaluation(MarkedModel):
    """Marks the start of every step of validation, which logs one value, and of prediction."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.windows.mark()
        self.log("val_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.windows.mark()
        return self(batch[0])


def quiet_trainer(callbacks: list[Callback] | None = None) -> Trainer:
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_epochs=1, accelerator="cpu", devices=1, callbacks=callbacks, **bare)


def in_a_step(kind: type[Any], metrics: int = 0, callbacks: list[Callback] | None = None, **options: Any) -> Any:
    """What ``kind`` counts from the start of one training step to the start of the next."""
    with kind() as windows:
        quiet_trainer(callbacks).fit(MarkedModel(windows, metrics, **options), ready_loader(BATCHES))
    return windows.settled()


def in_a_batch(kind: type[Any], method: str) -> Any:
    """What ``kind`` counts for a batch of ``Trainer.validate`` or ``Trainer.predict``."""
    with kind() as windows:
        getattr(quiet_trainer(), method)(MarkedEvaluation(windows), ready_loader(BATCHES))
    return windows.settled()


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
    calls = in_a_step(Calls)
    print(f"{calls.total()} calls: {dict(calls)}")
    assert 0 < calls.total() <= CALLS_OF_A_STEP, f"{calls.total()} are more than {CALLS_OF_A_STEP}: {dict(calls)}"


def test_one_logged_value_adds_few_calls():
    added = in_a_step(Calls, 1) - in_a_step(Calls)
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
    assert in_a_step(Calls, callbacks=[callback()]) == in_a_step(Calls)


def test_a_hook_of_a_step_that_is_used_is_counted():
    class Used(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pl_module.current_epoch  # noqa: B018

    assert in_a_step(Calls, callbacks=[Used()]) - in_a_step(Calls)


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


def in_the_loop_by_hand(evaluate: str = "") -> Any:
    """The operators of the same work in a loop written by hand: training, or one batch of evaluation."""
    with Operators() as windows:
        model = TinyModel("adam")
        optimizer = model.configure_optimizers()
        with torch.inference_mode(bool(evaluate)):
            for batch in ready_loader(BATCHES):
                windows.mark()
                if evaluate == "validate":
                    model.loss(batch)
                elif evaluate == "predict":
                    model(batch[0])
                else:
                    model.loss(batch).backward()
                    optimizer.step()
                    optimizer.zero_grad()
    return windows.settled()


def assert_added(limit: int, more: Counter[str], less: Counter[str]) -> None:
    """``more`` has at most ``limit`` more than ``less``."""
    added = more.total() - less.total()
    print(f"{added}, limit {limit}")
    assert added <= limit, f"{added} more than {limit}: {dict(more - less)}"


def test_each_logged_metric_adds_as_few_calls_as_the_first():
    assert_added(CALLS_OF_A_METRIC, in_a_step(Calls, 2), in_a_step(Calls, 1))
    assert_added(3 * CALLS_OF_A_METRIC, in_a_step(Calls, 4), in_a_step(Calls, 1))


def test_each_metric_by_epoch_adds_few_calls():
    both = {"on_step": True, "on_epoch": True}
    assert_added(CALLS_OF_AN_EPOCH_METRIC, in_a_step(Calls, 1, **both), in_a_step(Calls))


def test_each_further_hook_of_callbacks_adds_only_its_own_call():
    class NoOp(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pass

    ten = in_a_step(Calls, callbacks=[type(f"NoOp{index}", (NoOp,), {})() for index in range(10)])
    assert_added(9 * CALLS_OF_A_CALLBACK_HOOK, ten, in_a_step(Calls, callbacks=[NoOp()]))


def test_a_batch_of_validation_or_prediction_calls_little_of_ours():
    assert_added(CALLS_OF_A_VALIDATION_BATCH, in_a_batch(Calls, "validate"), Counter())
    assert_added(CALLS_OF_A_PREDICT_BATCH, in_a_batch(Calls, "predict"), Counter())


def test_a_step_runs_no_more_operators_than_the_loop_written_by_hand():
    assert_added(OPERATORS_OF_A_STEP, in_a_step(Operators), in_the_loop_by_hand())


def test_each_logged_metric_adds_few_operators():
    both = {"on_step": True, "on_epoch": True}
    for metrics in (1, 4):
        assert_added(metrics * OPERATORS_OF_A_METRIC, in_a_step(Operators, metrics), in_a_step(Operators))
        assert_added(
            metrics * OPERATORS_OF_AN_EPOCH_METRIC, in_a_step(Operators, metrics, **both), in_a_step(Operators)
        )


@pytest.mark.parametrize(
    ("method", "limit"), [("validate", OPERATORS_OF_A_VALIDATION_BATCH), ("predict", OPERATORS_OF_A_PREDICT_BATCH)]
)
def test_a_batch_of_evaluation_runs_few_more_operators_than_by_hand(method, limit):
    assert_added(limit, in_a_batch(Operators, method), in_the_loop_by_hand(method))


def test_an_operator_too_many_is_found():
    class NoOp(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pass

    class Wasteful(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            torch.zeros(())

    more, less = in_a_step(Operators, callbacks=[Wasteful()]), in_a_step(Operators, callbacks=[NoOp()])
    with pytest.raises(AssertionError, match=r"1 more than 0: \{'aten::zeros': 1\}"):
        assert_added(0, more, less)
