"""A loss that is not finite stops the run before the weights change, and the error says where it came from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import LBFGS, Optimizer

from leyden.core.backward import of_scalars
from leyden.core.results import Results
from leyden.core.state import Position, Stage
from leyden.utils.errors import NonFiniteLossError
from leyden.utils.lazy import LazyModule
from leyden.utils.paths import shown
from leyden.utils.seed import isolate_rng
from leyden.utils.tree import tree_leaves

_bundle = LazyModule("leyden.core.bundle")

# Where reading a number at once would leave the device idle. Apple's GPUs do wait: nobody has tried LateCheck on one.
_LATE = ("cuda",)
_ADVICE = 'To train on with such losses: Trainer(on_nonfinite_loss="ignore").'


@dataclass(slots=True)
class Step:
    """A call of a step method, and what it takes to repeat it.

    Attributes:
        call: The step method, as the loop calls it; None before the first.
        method: Its name.
        args: The batch, and the batch's index where the method takes it; empty when the batch is gone.
        rng: torch's generators as it began.
        position: Where training stood.
        has_stepped: An optimizer has stepped since it began, as several do in manual optimization.
        indices: The samples of the batch, where they are known.
    """

    call: Callable[..., Any] | None
    method: str
    args: tuple[Any, ...]
    rng: RngState
    position: Position
    has_stepped: bool = False
    indices: list[Any] | None = None


@dataclass(slots=True)
class RngState:
    """torch's generators, without Python's and NumPy's: to copy those takes 33 µs, and these 2."""

    cpu: Tensor
    cuda: Tensor | None = None

    def put_back(self, device: torch.device) -> None:
        """Draw from here again."""
        torch.default_generator.set_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, device)


class Check:
    """Looks at every loss as it goes into backward, which on the CPU waits for nothing.

    To find the submodule that overflowed the step is run once more, from the same state of torch's generator. Steps
    that draw random numbers have it copied as they begin: those of modules with dropout, and of others if one of the
    first 16 losses shows that it has drawn. For those that draw nothing it is still the same when the loss is seen.

    Measured beside the same run with ``"ignore"``, on the tiny MLP of benchmarks/ (230 µs a step): +1.4 µs a
    step, 0.6 %; with dropout +2.5 µs, 1.0 %; with a BatchNorm1d +7 µs, 2.2 %, for the copy
    of its statistics. Further such layers add 1.5 µs each, 0.1 % of what one over small images takes.

    What the failed step has changed is put back: torch's generators, the running statistics of normalisation layers,
    and the weights where LBFGS has moved them inside its step. Other buffers, logged values, Python's and NumPy's
    generators and LBFGS's history stay as the step left them.
    """

    settles_late = False

    def __init__(self, run: Any) -> None:
        self.run = run
        self.device: torch.device = run.strategy.device
        self._state: Callable[[], Any] = torch.default_generator.get_state
        self._begun: tuple[Callable[..., Any] | None, float, Any] = (None, 0, None)
        self._draws = self.settles_late or any(isinstance(part, _DropoutNd) for part in run.module.modules())
        self._learning = 0 if self._draws else 16
        self._statistics = [] if self.settles_late else _running_statistics(run.module)
        self._kept = [statistic.clone() for statistic in self._statistics]
        self._backward: Callable[..., None] | None = None
        self._weights: list[Tensor] = []
        self._origin: list[Tensor] = []
        self._origin_of = -1

    def remember(self, step: Callable[..., Any]) -> None:
        """Note that ``step``, as it is bound, begins."""
        state = self._state() if self._draws or self._learning else None
        self._begun = step, self.run.state.position.global_step, state
        if self._kept or self._weights:
            self._keep()

    def watch(self) -> None:
        """Look at all that the run propagates from now on."""
        run, self._backward = self.run, of_scalars(self.run.backward)
        run.remember, run.backward = self.remember, self.guard(run.backward)
        self._leave_looking()

    def guard(self, backward: Callable[..., None]) -> Callable[..., None]:
        """``backward``, which is not reached by a loss that is not finite."""
        is_finite = math.isfinite

        def checked(loss: Tensor, *args: Any, **options: Any) -> None:
            try:
                finite = is_finite(loss.item())
            except (RuntimeError, TypeError):  # several numbers, or complex ones, as manual_backward may get
                finite = bool(torch.isfinite(loss).all())
            if not finite:
                self.stop(self._step(), loss, options.get("inputs"))
            if self._learning:
                self._learn()
            if args or options:
                backward(loss, *args, **options)
            else:
                backward(loss)

        return checked

    def refuse(self, loss: Tensor) -> NoReturn:
        """End the run because of ``loss``, that of the step in work."""
        self.stop(self._step(), loss)

    def arm(self, optimizers: list[Optimizer]) -> None:
        """Take note of the optimizers that will step."""
        self._weights = [
            parameter
            for optimizer in optimizers
            if isinstance(optimizer, LBFGS)  # it tries several weights within one step
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        if self._weights:
            self.run.remember = self.remember

    def settle(self) -> None:
        """Look at every loss that was not looked at yet; waits for the device where there is one."""

    def stop(self, step: Step, loss: Tensor, inputs: Any = None) -> NoReturn:
        """Put back what the step has changed, find out what happened, keep it in a file, and raise."""
        run = self.run
        if len(run.turns) > 1 or not run.turns[0].closure_first or not run.module.automatic_optimization:
            _discard_gradients(run)  # otherwise nothing of this batch is in them yet
        self._put_back(step)
        found = diagnose(run, step)
        self._put_back(step)
        kept = _kept_in_file(run, step)
        if self._weights and self._origin:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, self._origin)
        where = step.position
        raise NonFiniteLossError(
            "\n".join(
                [
                    f"The loss is {_value(loss)} in epoch {where.epoch}, batch {where.batch}, at global step "
                    f"{where.global_step}{_whose(run, step, inputs)}. The weights are as they were before this step.",
                    *_samples(step),
                    *found,
                    *kept,
                    _ADVICE,
                ]
            )
        )

    def _learn(self) -> None:
        """Compare torch's generator with what it was as the step began."""
        before, self._learning = self._begun[2], self._learning - 1
        if before is not None and not torch.equal(before, self._state()):
            self._draws, self._learning = True, 0
        self._leave_looking()

    def _leave_looking(self) -> None:
        """Have the loop look at plain losses itself, when nothing is to be learnt any more of one optimizer's steps."""
        run = self.run
        if self._learning or self.settles_late or len(run.turns) > 1 or not run.module.automatic_optimization:
            return
        run.unguarded = self._backward
        if run.plain_backward is not None:
            run.plain_backward, run.looks = self._backward, True
        if not (self._draws or self._kept or self._weights):
            self._begun = run.turns[0].step, math.inf, None
            run.remember = None

    def _keep(self) -> None:
        """Copy what a step changes before its loss can be looked at."""
        if self._kept:
            torch._foreach_copy_(self._kept, self._statistics)
        if self._weights and self._origin_of != (batch := self.run.state.position.batch_total):
            self._origin = [weight.detach().clone() for weight in self._weights]
            self._origin_of = batch

    def _put_back(self, step: Step) -> None:
        step.rng.put_back(self.device)
        if self._kept:
            torch._foreach_copy_(self._statistics, self._kept)

    def _step(self) -> Step:
        """The step in work."""
        call, steps_before, rng = self._begun
        if self.run.remember is None:
            call = self.run.turns[0].step  # as it is bound now
        batch = self.run.results.batch
        at, takes_index = self.run.state.position, self.run.step_takes_index
        position = Position(at.epoch, at.batch, at.batches_before, at.global_step, at.stepped_batches)
        method = "training_step"
        for turn in self.run.turns:
            if turn.step is call and call is not self.run.training_step:
                method, takes_index = f"training_step_{turn.name}", turn.step_takes_index
        args = () if batch is None else (batch, at.batch) if takes_index else (batch,)
        rng = self._state() if rng is None else rng
        state = rng if isinstance(rng, RngState) else RngState(rng)
        has_stepped = call is not None and at.global_step > steps_before
        return Step(call, method, args, state, position, has_stepped, batch_indices(self.run))


@dataclass(slots=True)
class _Look:
    """A loss on its way to being looked at: the device is writing the verdict into ``verdict``, until ``event``."""

    step: Step
    loss: Tensor
    verdict: Tensor
    event: Any


class LateCheck(Check):
    """Looks at every loss one step later, or as soon after as the device has come to it; never waits for the device.

    A flag on the device goes up with the first loss that is not finite, and stays up. Optimizers with ``fused=True``
    read it themselves, as they do for GradScaler, and leave their steps out while it is up, so that the weights are
    as before that step when the run is stopped. The others have stepped by then, and the error says so. With
    ``"16-mixed"`` the scaler leaves out every step whose gradients are not finite, whatever the optimizer.

    Running statistics and generators stay as the later steps left them.
    """

    settles_late = True

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._flag = torch.zeros((), device=self.device)
        self._one = torch.ones((), device=self.device)
        self._unseen: deque[_Look] = deque()
        self._free: list[Tensor] = []
        self._unprotected: list[str] = []
        if self.device.type == "cuda":
            self._state = self._both_states

    def arm(self, optimizers: list[Optimizer]) -> None:
        """Have the optimizers that can do so obey the flag."""
        self._unprotected = []
        if getattr(self.run.precision, "scaler", None) is not None:
            return  # which hands them a flag of its own
        for optimizer in optimizers:
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                optimizer.found_inf = self._flag  # type: ignore[attr-defined]
            else:
                self._unprotected.append(type(optimizer).__name__)

    def guard(self, backward: Callable[..., None]) -> Callable[..., None]:
        """``backward``, before which the verdict on the loss is on its way, and those that have come are read."""

        def checked(loss: Tensor, *args: Any, **options: Any) -> None:
            copied = loss.detach().to(self.device, copy=True)  # the next line writes into it
            torch._amp_foreach_non_finite_check_and_unscale_([copied], self._flag, self._one)
            verdict = self._free.pop() if self._free else _pinned(self.device)
            verdict.copy_(self._flag, non_blocking=True)
            event = _event(self.device)
            event.record()
            self._read(self._unseen)
            self._unseen.append(_Look(self._step(), loss.detach(), verdict, event))
            train = getattr(self.run, "train", None)
            if train is not None and train.is_last:
                self.settle()
            backward(loss, *args, **options)

        return checked

    def settle(self) -> None:
        """Wait for every verdict, and read it."""
        for look in self._unseen:
            look.event.synchronize()
        self._read(self._unseen)

    def _read(self, looks: deque[_Look]) -> None:
        while looks and looks[0].event.query():
            look = looks.popleft()
            if look.verdict.item():
                self._stop_late(look)
            self._free.append(look.verdict)
        for late in list(looks)[:-2]:
            late.step.args = ()  # a device far behind shall not keep batches alive

    def _stop_late(self, look: _Look) -> NoReturn:
        run, step, where = self.run, look.step, look.step.position
        self._unseen.clear()
        _discard_gradients(run)
        if self._unprotected:
            found = [*_about_batch(step.args[:1]), *_after_step(self._unprotected, run)]
            kept = []
        else:
            found = ["The weights are as they were before this step.", *diagnose(run, step)]
            kept = _kept_in_file(run, step)
        self._flag.zero_()
        later = run.state.position.batch_total - where.batch_total
        raise NonFiniteLossError(
            "\n".join(
                [
                    f"The loss is {_value(look.loss)} in epoch {where.epoch}, batch {where.batch}, at global step "
                    f"{where.global_step}{_whose(run, step, None)}; it was seen {later} batches later, as the device "
                    "came to it.",
                    *_samples(step),
                    *found,
                    *kept,
                    _ADVICE,
                ]
            )
        )

    def _both_states(self) -> RngState:
        of_device = torch.cuda.get_rng_state(self.device)  # kept on the host, so nothing waits
        return RngState(torch.default_generator.get_state(), of_device)


def make_check(run: Any) -> Check | None:
    """The check for ``run``; None where ``on_nonfinite_loss="ignore"``."""
    if run.options.on_nonfinite_loss == "ignore":
        return None
    return LateCheck(run) if run.strategy.device.type in _LATE else Check(run)


def batch_indices(run: Any) -> list[Any] | None:
    """Indices in the dataset of the samples of the batch in work; None where the loader does not tell."""
    indices = getattr(getattr(run, "train", None), "indices", None)
    return None if indices is None else list(indices)


# What happened.


def diagnose(run: Any, step: Step) -> list[str]:
    """Sentences on where a loss that is not finite came from; runs the step once more."""
    lines = [*_about_batch(step.args[:1]), *_about_parameters(run.module)]
    if step.call is None or not step.args:
        return [*lines, "Its step could not be run again."]
    outputs, losses = Outputs(), list[Tensor]()
    try:
        with isolate_rng(), unheard(run), outputs.recorded(run.module), _at_the_loss(run, losses):
            step.rng.put_back(run.strategy.device)
            result = step.call(*step.args)
            losses += losses_in(result)
    except _Enough:
        if not losses or not _not_finite(losses[-1]):
            return [*lines, f"{step.method}() could be run again up to its first optimizer.step() alone."]
    except Exception as error:  # what stopped the run matters more
        return [*lines, f"Its step failed when it was run again: {type(error).__name__}: {error}"]
    if (first := outputs.first_not_finite()) is not None:
        return [*lines, f"The first output that is not finite is that of {first.told()}."]
    if any(not bool(torch.isfinite(loss).all()) for loss in losses):
        behind = f", behind {outputs.last.told()}" if outputs.last is not None else ""
        return [*lines, f"The outputs of all submodules are finite: it arises in {step.method}() itself{behind}."]
    return [
        *lines,
        f"Run again with the same batch and random numbers of torch, {step.method}() gave a finite loss: it depends on "
        "something else, such as Python's or NumPy's random numbers, or on what it changed itself.",
    ]


@dataclass(slots=True)
class Output:
    """What a submodule put out, over all its calls in a step.

    Attributes:
        name: Its name in the module; empty for the module itself.
        kind: Its class.
        least: The least finite number; ``inf`` when there is none.
        greatest: The greatest finite number; ``-inf`` when there is none.
        numbers: How many numbers.
        not_finite: How many of them are NaN or infinite.
        input_not_finite: So many of its inputs' numbers were, in the call where its first output was.
        calls: How often it was called.
    """

    name: str
    kind: str
    least: float = math.inf
    greatest: float = -math.inf
    numbers: int = 0
    not_finite: int = 0
    input_not_finite: int = 0
    calls: int = 0

    def told(self) -> str:
        """Name, class and counts, for people."""
        text = f"{self.name or 'the module itself'} ({self.kind})"
        if self.not_finite:
            text += f", {self.not_finite} of {self.numbers} numbers, from "
            text += f"an input with {self.input_not_finite} of them" if self.input_not_finite else "a finite input"
        return text


@dataclass(slots=True)
class Outputs:
    """What every submodule put out, in the order in which they were done first.

    Attributes:
        table: By name.
        last: The one that was done last.
    """

    table: dict[str, Output] = field(default_factory=dict)
    last: Output | None = None
    _first: Output | None = None

    @contextmanager
    def recorded(self, module: nn.Module) -> Iterator[None]:
        """Inside, note what the submodules of ``module`` put out. Waits for the device at each."""
        handles = []
        for name, part in module.named_modules():

            def note(part: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                self.note(name, type(part).__name__, inputs, output)

            handles.append(part.register_forward_hook(note))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def note(self, name: str, kind: str, inputs: Any, output: Any) -> None:
        """Count one call."""
        entry = self.last = self.table.setdefault(name, Output(name, kind))
        entry.calls += 1
        for tensor in _floating(output):
            finite = tensor[torch.isfinite(tensor)]
            entry.numbers += tensor.numel()
            if finite.numel():
                entry.least = min(entry.least, float(finite.min()))
                entry.greatest = max(entry.greatest, float(finite.max()))
            if missing := tensor.numel() - finite.numel():
                if not entry.not_finite:
                    entry.input_not_finite = sum(_not_finite(given) for given in _floating(inputs))
                entry.not_finite += missing
                self._first = self._first or entry

    def first_not_finite(self) -> Output | None:
        """Whose output was not finite first; None when all were."""
        return self._first


class _Enough(Exception):
    """The step has come as far as it is to go."""


@contextmanager
def _at_the_loss(run: Any, losses: list[Tensor]) -> Iterator[None]:
    """Inside, backward only adds to ``losses``; the first that is not finite, or an optimizer's step, is the end."""
    before, steps = run.backward, [wrapped._step for wrapped in run.wrapped_optimizers]

    def backward(loss: Tensor, *args: Any, **options: Any) -> None:
        losses.append(loss.detach())
        if _not_finite(loss):
            raise _Enough

    def step(*_: Any) -> NoReturn:
        raise _Enough

    run.backward = backward
    for wrapped in run.wrapped_optimizers:
        wrapped.__dict__["_step"] = step
    try:
        yield
    finally:
        run.backward = before
        for wrapped, own in zip(run.wrapped_optimizers, steps, strict=True):
            wrapped.__dict__["_step"] = own


@contextmanager
def unheard(run: Any) -> Iterator[None]:
    """Inside, what the module logs goes nowhere."""
    owners = [part for part in run.module.modules() if "_results" in vars(part)]
    kept = [vars(part)["_results"] for part in owners]
    nowhere = Results(run.module)
    nowhere.enter(Stage.TRAIN)
    nowhere.hook = "training_step"
    nowhere.begin_batch(run.results.batch)
    for part in owners:
        vars(part)["_results"] = nowhere
    try:
        yield
    finally:
        for part, results in zip(owners, kept, strict=True):
            vars(part)["_results"] = results


def losses_in(output: Any) -> list[Tensor]:
    """The losses that a step returned: one, or those of several optimizers."""
    if isinstance(output, Mapping):
        found = [output["loss"]] if "loss" in output else list(output.values())
    else:
        found = [output]
    return [loss.detach() for loss in found if isinstance(loss, Tensor)]


def places(tree: Any, place: str = "batch") -> Iterator[tuple[str, Any]]:
    """Every leaf of a batch, with its place in it, such as ``batch['image']``."""
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from places(item, f"{place}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from places(item, f"{place}[{index}]")
    else:
        yield place, tree


def _about_batch(args: tuple[Any, ...]) -> list[str]:
    found = [
        f"{place} ({count} of {leaf.numel()} numbers)"
        for place, leaf in places(args[0] if args else None)
        if isinstance(leaf, Tensor) and (count := _not_finite(leaf))
    ]
    return [f"The batch holds NaN or infinite numbers: {', '.join(found[:5])}."] if found else []


def _about_parameters(module: nn.Module) -> list[str]:
    for name, parameter in module.named_parameters():
        if count := _not_finite(parameter):
            return [
                f"The parameter {name} holds NaN or infinite numbers already ({count} of {parameter.numel()}): a step "
                "before this one has overflowed. A smaller learning rate or gradient_clip_val= may help."
            ]
    return []


def _after_step(names: list[str], run: Any) -> list[str]:
    last = next((c.last_model_path or c.best_model_path for c in run.trainer.checkpoint_callbacks), "")
    return [
        f"{', '.join(names)} had stepped by then, so the weights have changed. The last checkpoint is "
        f"{shown(last) if last else 'none'}. With fused=True the optimizer would have left its step out."
    ]


def _samples(step: Step) -> list[str]:
    if step.indices is None:
        return []
    head = ", ".join(map(str, step.indices[:32]))
    return [
        f"Samples of the batch, by their indices in the dataset: {head}{', ...' if len(step.indices) > 32 else ''}."
    ]


def _kept_in_file(run: Any, step: Step) -> list[str]:
    """Write the step to a file, where files may be written; returns what to say of it."""
    options = run.options
    if options.enable_checkpointing is False or options.fast_dev_run or not step.args:
        return []
    said: str = _bundle.save(run, step)
    return [said]


def _whose(run: Any, step: Step, inputs: Any) -> str:
    """Which of several optimizers the loss is for, where that is known."""
    for turn in run.turns:
        if turn.name and (step.method == f"training_step_{turn.name}" or _holds(turn.optimizer, inputs)):
            return f", for the optimizer {turn.name!r}"
    return ""


def _holds(optimizer: Any, inputs: Any) -> bool:
    first = inputs[0] if isinstance(inputs, list) and inputs else None
    return first is not None and any(first is p for group in optimizer.param_groups for p in group["params"])


def _discard_gradients(run: Any) -> None:
    for optimizer in run.optimizers:
        optimizer.zero_grad()
    for turn in run.turns:
        turn.forget()


def _running_statistics(module: nn.Module) -> list[Tensor]:
    layers = [part for part in module.modules() if isinstance(part, _NormBase) and part.track_running_stats]
    found = [(layer.running_mean, layer.running_var, layer.num_batches_tracked) for layer in layers]
    return [statistic for of_layer in found for statistic in of_layer if isinstance(statistic, Tensor)]


def _floating(tree: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _not_finite(tensor: Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return tensor.numel() - int(torch.isfinite(tensor.detach()).sum())


def _value(loss: Tensor) -> str:
    return str(loss.item()) if loss.numel() == 1 else "not finite"


def _pinned(device: torch.device) -> Tensor:
    return torch.zeros((), pin_memory=device.type == "cuda")


class _Passed:
    """The event of a device that has always come to it."""

    def record(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """It is over."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""


def _event(device: torch.device) -> Any:
    return _Passed() if device.type == "cpu" else torch.Event(device)
