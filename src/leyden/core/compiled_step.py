"""The whole training step as one graph: forward, backward, clipping and the optimizer's update."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from operator import is_
from typing import Any

import torch
import torch._dynamo.config as dynamo_config
from torch import Tensor
from torch._dynamo import patch_dynamo_config
from torch.optim import SGD, Adam, AdamW
from torch.optim import optimizer as torch_optimizer

from leyden.core.hooks import overrides
from leyden.core.module import LightningModule
from leyden.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision

_OWN = ("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "clip_gradients")
_BUFFERS, _MOMENTS = ("momentum_buffer",), ("exp_avg", "exp_avg_sq")
_MAX_MOMENTS = (*_MOMENTS, "max_exp_avg_sq")
_BETWEEN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


_STATIC = "_dynamo_static_input_type"
_begin_replay: Callable[[], None] = torch.compiler.cudagraph_mark_step_begin


def why_not(run: Any) -> str:
    """Why the step of ``run`` cannot be one graph; empty if it can."""
    module, turns = run.module, run.turns
    if len(turns) != 1 or turns[0].optimizer is None or turns[0].name:
        return "it takes exactly one optimizer, without a name"
    optimizer = turns[0].optimizer
    if type(optimizer) not in (SGD, Adam, AdamW):
        return f"{type(optimizer).__name__} is not torch's SGD, Adam or AdamW"
    if own := [name for name in _OWN if overrides(module, name, LightningModule)]:
        return f"{type(module).__name__} overrides {own[0]}"
    if hasattr(module, "training_step_end"):
        return f"{type(module).__name__} has training_step_end"
    if listened := [name for name in _BETWEEN if getattr(run.hooks, name)]:
        return f"something implements {listened[0]}, which comes in the midst of the step"
    if run.accumulate != 1:
        return f"accumulate_grad_batches={run.accumulate}"
    if run.options.detect_anomaly:
        return "detect_anomaly=True looks at each operation"
    if run.options.profiler is not None:
        return "a profiler measures its parts"
    precision = run.precision
    if type(precision) not in (Precision, MixedPrecision, HalfPrecision, DoublePrecision):
        return f"the precision is {type(precision).__name__}"
    if getattr(precision, "scaler", None) is not None:
        return "precision='16-mixed' scales the loss"
    if run.strategy.world_size != 1:
        return "several processes train together"
    if not turns[0].closure_first or any(
        (
            optimizer._optimizer_step_post_hooks,
            torch_optimizer._global_optimizer_post_hooks,
            torch_optimizer._global_optimizer_pre_hooks,
        )
    ):
        return "somebody has hooked into optimizer.step()"
    for group in optimizer.param_groups:
        options = {name: value for name, value in group.items() if name != "params"}
        for name, value in options.items():
            if isinstance(value, Tensor) or (name == "betas" and any(isinstance(beta, Tensor) for beta in value)):
                return f"the optimizer's {name} is a tensor"
            if name in ("capturable", "differentiable") and value:
                return f"the optimizer has {name}=True"
    if not hasattr(dynamo_config, "trace_autograd_ops"):
        return f"torch {torch.__version__} cannot compile a backward pass within a function; torch 2.13 can"
    return ""


class CompiledStep:
    """Trains on one batch by one graph.

    Weights and the optimizer's state stay in their own tensors, which the graph writes into, so that checkpoints,
    callbacks and schedulers find them where they always are. Gradients live inside the graph alone.

    The optimizer is read anew at each step. What the graph is given, torch's guards compare with what it was compiled
    for; the counts of steps, which it is not given, are looked at here.

    Attributes:
        gradients_left: A step was taken as it is, so parameters may have gradients, and counts are others.
    """

    def __init__(self, compiling: Any) -> None:
        self._compiling = compiling
        self._run = run = compiling.run
        self._turn = run.turns[0]
        self._method = run.module.training_step
        self._sees = None if run.check is None else run.check.guard(lambda loss: None)
        self._built: dict[Any, Callable[..., Any]] = {}
        self.gradients_left = True
        self._device = device = run.strategy.device
        self._on_cpu = device.type == "cpu"
        # Autocast is part of the graph, since the update is not under it; a default dtype is none of an operation's.
        self._context = None if run.precision.dtype is None else run.precision.forward_context

    def bind(self) -> None:
        """Take the steps that were counted so far, and keep the counts in one piece of memory."""
        self._read()
        groups, states = self._groups, self._states
        self._group_count = len(groups)
        trained = [parameter.requires_grad for params in self._params for parameter in params]
        names = [_state_names(group) for group, params in zip(groups, self._params, strict=True) for _ in params]
        self._counted = tuple(
            trains and bool(state) and all(state.get(name) is not None for name in own)
            for trains, state, own in zip(trained, states, names, strict=True)
        )
        floats = [p.dtype for params in self._params for p in params if p.requires_grad]
        self._dtype, code = (torch.float64, "d") if torch.float64 in floats else (torch.float32, "f")
        self._numbers = array(code, (number for group in groups for number in _numbers(group, 1)))
        # Numbers that are written into the tensor's memory: to make a tensor takes ten times as long.
        self._given = torch.frombuffer(self._numbers, dtype=self._dtype) if self._on_cpu else None
        self._found = self._steps()
        steps = [step for step, counted in zip(self._found, self._counted, strict=True) if counted and step is not None]
        self._counts = _in_one_piece(steps)
        counts = set() if self._counts is None else set(self._counts.tolist())
        self._looks = self._counts is not None and self._counts.is_cpu
        self._count = int(counts.pop()) if len(counts) == 1 else 0
        # Adam's first step is torch's own, which makes the state; what has joined later counts its own steps.
        self._alike = not counts and (any(self._counted) or not any(names)) and (not steps or self._counts is not None)

    def _read(self) -> None:
        """Take parameters and state as they are now."""
        self._optimizer = optimizer = self._turn.optimizer
        self._groups = groups = optimizer.param_groups
        self._params = params = [group["params"] for group in groups]
        self._states = [*map(optimizer.state.get, chain.from_iterable(params))]

    def _steps(self) -> list[Tensor | None]:
        return [state.get("step") if state else None for state in self._states]

    def ready(self) -> bool:
        """The optimizer has made its state, and all parameters have taken the same number of steps."""
        self._read()
        found = self._steps()
        if (
            self.gradients_left
            or not self._alike
            or len(self._groups) != self._group_count
            or len(found) != len(self._found)
            or not all(map(is_, found, self._found))
            or (self._looks and {*self._counts.tolist()} != {self._count})  # type: ignore[union-attr]
        ):
            self.bind()
        return self._alike

    def __call__(self, batch: Any, index: int) -> Any:
        """Train on ``batch``; returns what ``training_step`` returned, detached."""
        run, turn = self._run, self._turn
        turn.stepped = False
        if remember := run.remember:
            remember(turn.step)
        loss, output = self.compute(batch, index)
        if (see := self._sees) is not None:
            see(loss)
        vars(self._optimizer)["_opt_called"] = True  # torch's schedulers ask
        turn.stepped, turn.pending = True, 0
        return output

    def compute(self, batch: Any, index: int) -> Any:
        """Run the graph, log what it logged, and count the step; returns the loss and the output."""
        compiling, groups = self._compiling, self._groups
        key = (self._counted, *map(_plan, groups))
        whole = self._built.get(key)
        if whole is None:
            whole = self._built[key] = compiling.compiled(self._whole(*key), self._tracing)
        if self.gradients_left:
            self._turn.clear()
            self.gradients_left = False
        count = self._count + 1
        numbers: array[float] = array(self._numbers.typecode)
        for group in groups:
            numbers.extend(_numbers(group, count))
        on_cpu = self._on_cpu
        if on_cpu:
            self._numbers[:] = numbers
            given = self._given
        else:
            given = torch.tensor(numbers, dtype=self._dtype).to(self._device, non_blocking=True)
        args = (batch, index, self._params, self._states, given, self._optimizer.__dict__.get("found_inf"))
        if compiling.replays and compiling.compilations:
            _begin_replay()
        if self._context is None:
            loss, output = compiling.recorded(whole, args)
        else:
            with self._context():
                loss, output = compiling.recorded(whole, args)
        counts = self._counts
        if counts is not None and (not on_cpu or self._sees is None or math.isfinite(loss.item())):
            counts.add_(1)
            self._count = count
        return loss, output

    @contextmanager
    def _tracing(self) -> Iterator[None]:
        """While the graph is compiled: it may hold a backward pass."""
        marked: list[Tensor] = []
        if self._compiling.replays:  # a CUDA graph may change only what stays where it is
            kept = [value for state in self._states if state for value in state.values() if isinstance(value, Tensor)]
            marked = [tensor for tensor in chain(*self._params, kept) if not hasattr(tensor, _STATIC)]
        for tensor in marked:
            torch._dynamo.mark_static_address(tensor, guard=False)
        try:
            with tracing(
                trace_autograd_ops=True,
                record_runtime_overhead=False,  # regions for a profiler, which would be entered at each step
                # The check that a parameter is the same in module and optimizer is in C++ then, not in Python.
                use_lamba_guard_for_object_aliasing=False,
            ):
                yield
        finally:
            for tensor in marked:
                delattr(tensor, _STATIC)  # which would go into checkpoints

    def _whole(self, counted: tuple[bool, ...], *plan: tuple[Any, ...]) -> Callable[..., Any]:
        """The step as a function of everything that changes."""
        run, method, takes_index = self._run, self._method, self._turn.step_takes_index
        precision, checks = run.precision, self._sees is not None
        limit = run.options.gradient_clip_val
        by_norm = (run.options.gradient_clip_algorithm or "norm") == "norm"
        autocast = type(precision) is MixedPrecision
        device_type, low = (precision.device_type, precision.autocast_dtype) if autocast else ("cpu", None)

        def whole(
            batch: Any, index: int, params: list[list[Tensor]], states: list[Any], numbers: Tensor, halted: Any
        ) -> Any:
            with (
                patch_dynamo_config(allow_unspec_int_on_nn_module=True),  # as _counting does
                torch.autocast(device_type, dtype=low) if autocast else nullcontext(),
            ):
                output = method(batch, index) if takes_index else method(batch)
            loss = output if isinstance(output, Tensor) else output["loss"]
            if not isinstance(output, Tensor) and "weight" in output:
                raise ValueError("the step returns a weight")
            flat = [parameter for group in params for parameter in group if parameter.requires_grad]
            gradients: list[Tensor | None] = [*torch.autograd.grad(loss, flat, allow_unused=True)]
            with torch.no_grad():
                found = [gradient for gradient in gradients if gradient is not None]
                if limit and by_norm:
                    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in found])
                    factor = torch.clamp(limit / (torch.linalg.vector_norm(norms) + 1e-6), max=1.0)
                    gradients = [None if gradient is None else gradient * factor for gradient in gradients]
                elif limit:
                    gradients = [None if gradient is None else gradient.clamp(-limit, limit) for gradient in gradients]
                fine = torch.isfinite(loss.detach()).reshape(()) if checks else None
                if halted is not None:
                    fine = halted == 0 if fine is None else fine & (halted == 0)
                first = place = 0
                for (update, names, count, *settings), group in zip(plan, params, strict=True):
                    own = [numbers[first + number] for number in range(count)]
                    first += count
                    for parameter in group:
                        gradient = gradients.pop(0) if parameter.requires_grad else None
                        has_state, state = counted[place], states[place]
                        place += 1
                        if gradient is None and names and has_state:
                            raise ValueError("a parameter has no gradient any more")  # its steps are not counted
                        if gradient is None:
                            continue
                        if names and not has_state:
                            raise ValueError("a parameter has its first gradient")
                        kept = [state[name] for name in names]
                        for tensor, value in update(parameter, gradient, kept, own, *settings):
                            value = value.to(tensor.dtype)
                            tensor.copy_(value if fine is None else torch.where(fine, value, tensor))
                return loss.detach(), _detached(output)

        return whole


def _in_one_piece(steps: list[Tensor]) -> Tensor | None:
    """The memory of ``steps``, from now on one piece, so that one operation counts them all.

    They stay the tensors they are, for the optimizer and for checkpoints. None if there are none, or unlike ones.
    """
    if len({(step.dtype, step.device, step.shape) for step in steps}) != 1 or steps[0].shape:
        return None
    with torch.no_grad():
        counts = torch.stack(steps)
        for step, place in zip(steps, counts.unbind(), strict=True):
            step.set_(place)  # type: ignore[call-overload]
    return counts


def tracing(**options: Any) -> AbstractContextManager[Any]:
    """A context in which torch compiles with ``options``, those that this version has."""
    options["skip_nnmodule_hook_guards"] = False  # hooks may be added in the midst of training
    known = {name: value for name, value in options.items() if hasattr(dynamo_config, name)}
    context: AbstractContextManager[Any] = dynamo_config.patch(known)
    return context


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, Mapping):
        return {name: _detached(value) for name, value in output.items()}
    if isinstance(output, list | tuple):
        return [_detached(value) for value in output] if isinstance(output, list) else tuple(map(_detached, output))
    return output


def _state_names(group: dict[str, Any]) -> tuple[str, ...]:
    """What the optimizer keeps for a parameter of ``group`` and the graph changes."""
    if "betas" not in group:
        return _BUFFERS if group["momentum"] else ()
    return _MAX_MOMENTS if group["amsgrad"] else _MOMENTS


# For each optimizer: what of its options is built into the graph, what goes into it as numbers, and the update.


def _plan(group: dict[str, Any]) -> tuple[Any, ...]:
    """The update of one group, what of the state it changes, how many numbers it takes, and what is built in."""
    decays, names = group["weight_decay"] != 0, _state_names(group)
    if "betas" in group:
        decoupled = decays and group["decoupled_weight_decay"]
        return _adam, names, 7, decays and not decoupled, decoupled, group["amsgrad"], group["maximize"]
    return _sgd, names, 5, decays, group["momentum"] != 0, group["nesterov"], group["maximize"]


def _numbers(group: dict[str, Any], count: int) -> list[float]:
    """What a change of which needs no other graph: ``count`` is that of the step."""
    lr, decay = group["lr"], group["weight_decay"]
    if "betas" not in group:
        return [-lr, decay, group["momentum"], 1 - group["dampening"], 0.0]
    beta1, beta2 = group["betas"]
    size, root = lr / (1 - beta1**count), (1 - beta2**count) ** 0.5
    return [-size, root, group["eps"], 1 - beta1, beta2, 1 - beta2, 1 - lr * decay if _decoupled(group) else decay]


def _decoupled(group: dict[str, Any]) -> bool:
    return bool(group["decoupled_weight_decay"])


def _adam(
    parameter: Tensor,
    gradient: Tensor,
    state: list[Tensor],
    numbers: list[Tensor],
    decays: bool,
    decoupled: bool,
    amsgrad: bool,
    maximize: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Kingma and Ba, https://arxiv.org/abs/1412.6980, in the order of torch's operations."""
    size, root, eps, share, beta2, share2, decay = numbers
    weight: Tensor = parameter
    if maximize:
        gradient = -gradient
    if decays:
        gradient = gradient + weight * decay
    if decoupled:
        weight = weight * decay
    average = torch.lerp(state[0], gradient.to(state[0].dtype), share.to(state[0].dtype))
    square = state[1] * beta2 + gradient * gradient * share2
    changed = [(state[0], average), (state[1], square)]
    largest = square
    if amsgrad:
        largest = torch.maximum(state[2], square)
        changed.append((state[2], largest))
    return [*changed, (parameter, weight + size * average / (largest.sqrt() / root + eps))]


def _sgd(
    parameter: Tensor,
    gradient: Tensor,
    state: list[Tensor],
    numbers: list[Tensor],
    decays: bool,
    momentum: bool,
    nesterov: bool,
    maximize: bool,
) -> list[tuple[Tensor, Tensor]]:
    size, decay, factor, share, _ = numbers
    if maximize:
        gradient = -gradient
    if decays:
        gradient = gradient + parameter * decay
    if not momentum:
        return [(parameter, parameter + size * gradient)]
    buffer = state[0] * factor + gradient * share
    step = gradient + buffer * factor if nesterov else buffer
    return [(state[0], buffer), (parameter, parameter + size * step)]
