"""The whole training step as one graph: forward, backward, clipping and the optimizer's update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
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
_BETWEEN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


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

    Attributes:
        gradients_left: The parameters may have gradients, of a step that was taken as it is.
    """

    def __init__(self, compiling: Any) -> None:
        self._compiling = compiling
        self._run = run = compiling.run
        self._turn = run.turns[0]
        self._method = run.module.training_step
        self._sees = None if run.check is None else run.check.guard(lambda loss: None)
        self._built: dict[Any, Callable[..., Any]] = {}
        self.gradients_left = True
        self._on_cpu = run.strategy.device.type == "cpu"
        # Autocast is part of the graph, since the update is not under it; a default dtype is none of an operation's.
        self._context = None if run.precision.dtype is None else run.precision.forward_context

    def bind(self) -> None:
        """Take the parameters and their state as they are now."""
        optimizer = self._turn.optimizer
        self._optimizer, self._groups = optimizer, optimizer.param_groups
        self._params = [list(group["params"]) for group in self._groups]
        flat = [parameter for group in self._params for parameter in group if parameter.requires_grad]
        self._dtype = torch.float64 if any(p.dtype == torch.float64 for p in flat) else torch.float32
        self._kept = [
            [_kept(optimizer.state.get(p), _state_names(group)) if p.requires_grad else None for p in params]
            for group, params in zip(self._groups, self._params, strict=True)
        ]
        states = [optimizer.state[parameter] for parameter in flat if optimizer.state.get(parameter)]
        self._first: dict[str, Any] = states[0] if states else {}
        self._found = tuple(map(id, self._first.values()))
        self._steps = [state["step"] for state in states if "step" in state]
        self._ones = [torch.ones_like(step) for step in self._steps]
        counts = {int(step) for step in self._steps}
        self._count = counts.pop() if len(counts) == 1 else 0
        # Adam's first step is torch's own, which makes the state; what has joined later counts its own steps.
        self._alike = not counts and (bool(states) or not any(map(_state_names, self._groups)))

    def ready(self) -> bool:
        """The optimizer has made its state, and it is the one that ``bind`` saw."""
        steps = self._steps
        if (
            not self._alike
            or self._optimizer is not self._turn.optimizer
            or self._groups is not self._optimizer.param_groups
            or len(self._groups) != len(self._params)
            or tuple(map(id, self._first.values())) != self._found
            or (steps and steps[0].is_cpu and int(steps[0]) != self._count)
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
        compiling = self._compiling
        plan = tuple(map(_plan, self._groups))
        whole = self._built.get(plan)
        if whole is None:
            whole = self._built[plan] = compiling.compiled(self._whole(plan))
        if self.gradients_left:
            self._turn.clear()
            self.gradients_left = False
        numbers: list[float] = []
        count = self._count + 1
        for group in self._groups:
            numbers += _numbers(group, count)
        given = torch.tensor(numbers, dtype=self._dtype)
        on_cpu = self._on_cpu
        if not on_cpu:
            given = given.to(self._run.strategy.device, non_blocking=True)
        args = (batch, index, self._params, self._kept, given, self._optimizer.__dict__.get("found_inf"))
        if self._context is None:
            loss, output = compiling.recorded(whole, args, with_backward=True)
        else:
            with self._context():
                loss, output = compiling.recorded(whole, args, with_backward=True)
        if self._steps and (not on_cpu or self._sees is None or math.isfinite(loss.item())):
            torch._foreach_add_(self._steps, self._ones)
            self._count = count
        return loss, output

    def _whole(self, plan: tuple[Any, ...]) -> Callable[..., Any]:
        """The step as a function of everything that changes."""
        run, method, takes_index = self._run, self._method, self._turn.step_takes_index
        precision, checks = run.precision, self._sees is not None
        limit = run.options.gradient_clip_val
        by_norm = (run.options.gradient_clip_algorithm or "norm") == "norm"
        autocast = type(precision) is MixedPrecision
        device_type, low = (precision.device_type, precision.autocast_dtype) if autocast else ("cpu", None)

        def whole(
            batch: Any, index: int, params: list[list[Tensor]], kept: list[Any], numbers: Tensor, halted: Any
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
                first = 0
                for (update, count, *settings), group, states in zip(plan, params, kept, strict=True):
                    own = [numbers[first + place] for place in range(count)]
                    first += count
                    for parameter, state in zip(group, states, strict=True):
                        gradient = gradients.pop(0) if parameter.requires_grad else None
                        if gradient is None and state:
                            raise ValueError("a parameter has no gradient any more")  # its steps are not counted
                        if gradient is None:
                            continue
                        if state is None:
                            raise ValueError("a parameter has its first gradient")
                        for tensor, value in update(parameter, gradient, state, own, *settings):
                            value = value.to(tensor.dtype)
                            tensor.copy_(value if fine is None else torch.where(fine, value, tensor))
                return loss.detach(), _detached(output)

        return whole


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, Mapping):
        return {name: _detached(value) for name, value in output.items()}
    if isinstance(output, list | tuple):
        return [_detached(value) for value in output] if isinstance(output, list) else tuple(map(_detached, output))
    return output


def _state_names(group: dict[str, Any]) -> list[str]:
    """What the optimizer keeps for a parameter of ``group`` and the graph changes."""
    if "betas" not in group:
        return ["momentum_buffer"] if group["momentum"] else []
    return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]


def _kept(state: dict[str, Any] | None, names: list[str]) -> list[Tensor] | None:
    """A parameter's state; None where the optimizer has not made it yet."""
    kept = [(state or {}).get(name) for name in names]
    return None if any(tensor is None for tensor in kept) else kept  # type: ignore[return-value]


# For each optimizer: what of its options is built into the graph, what goes into it as numbers, and the update.


def _plan(group: dict[str, Any]) -> tuple[Any, ...]:
    """The update of one group, how many numbers it takes, and what is built in."""
    decays = group["weight_decay"] != 0
    if "betas" in group:
        decoupled = decays and group["decoupled_weight_decay"]
        return _adam, 7, decays and not decoupled, decoupled, group["amsgrad"], group["maximize"]
    return _sgd, 5, decays, group["momentum"] != 0, group["nesterov"], group["maximize"]


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
