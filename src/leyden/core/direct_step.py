"""The direct step: torch's SGD, Adam and AdamW by torch's own kernels, without the Python around each of them.

Most of what ``optimizer.step()`` costs on a small model is not arithmetic: it is one Python call for each operation and
parameter, profiler regions, and on the CPU a new tensor for every number. Here one call of a ``torch._foreach_*``
kernel does an operation for all parameters of a group, and the numbers are tensors that are kept. On the CPU such a
kernel is a loop over the very operations that ``optimizer.step()`` calls, so the results are the same to the last bit.

Nothing is remembered about the optimizer but what every step proves to be still so: options are read from
``param_groups``, tensors from ``optimizer.state``, where they stay. What is unusual, at whatever step, is left to
``optimizer.step()``, which also makes the state in the first place.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from itertools import chain, pairwise
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler
from torch.optim import optimizer as torch_optimizer

from leyden.core.hooks import overrides
from leyden.fabric.precision import MixedPrecision, Precision
from leyden.utils.dynamo import COMPILER

_gradient = attrgetter("grad")
_NUMBERS = (float, int)
_TENSORS = (Tensor, Parameter)
_HALVES = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, torch.float64, *_HALVES)
_BUFFERS = ("momentum_buffer",)
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_MAX_MOMENTS = (*_MOMENTS, "max_exp_avg_sq")
_ONE = torch.ones((), dtype=torch.float32, device="cpu")
# Elements that are worked on at a time on a CPU, so that its cache holds them from one kernel to the next.
_CHUNK = 1 << 17


def advancing(optimizer: Optimizer, precision: Any) -> Callable[[], Any]:
    """What steps ``optimizer`` under ``precision``: a DirectStep where that is known to be the same."""
    plain = not overrides(precision, "step", Precision) or (
        not overrides(precision, "step", MixedPrecision) and precision.scaler is None
    )
    if plain and type(optimizer) in (SGD, Adam, AdamW) and _has_torchs_step(optimizer):
        return DirectStep(optimizer)
    return functools.partial(precision.step, optimizer)


def clearing(optimizer: Optimizer) -> Callable[[], Any]:
    """What clears the gradients of ``optimizer`` as ``optimizer.zero_grad()`` does."""
    kind, own, torchs = type(optimizer), vars(optimizer), Optimizer.zero_grad
    known = inspect.unwrap(torchs).__globals__ is vars(torch_optimizer) and hasattr(profiler, "_is_profiler_enabled")
    if kind.zero_grad is not torchs or not known:
        return lambda: optimizer.zero_grad()

    def clear() -> None:
        if "zero_grad" in own or kind.zero_grad is not torchs or profiler._is_profiler_enabled:
            return optimizer.zero_grad()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = None
        return None

    return clear


class DirectStep:
    """Steps one optimizer; called in place of ``optimizer.step()``.

    On a CPU it needs as much more memory as a few parameters do; on GPUs, as torch's own step there, as all of them.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        """Take an ``optimizer`` that is exactly an SGD, Adam or AdamW."""
        self._optimizer = optimizer
        self._kind = type(optimizer)
        self._step = self._kind.step
        within: Any = inspect.unwrap(self._step)  # torch's own step, without the two functions around it
        self._within = within
        self._run = _run_sgd if self._kind is SGD else _run_adam
        self._wrapper: Any = None  # what torch's schedulers put around optimizer.step, to know if it was called
        self._parts: list[_Part] = []

    def __call__(self) -> Any:
        """Step once."""
        optimizer = self._optimizer
        own = optimizer.__dict__
        wrapper = own.get("step")
        if (
            (wrapper is not self._wrapper and not self._accepts(wrapper))
            or self._kind.step is not self._step
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
            or profiler._is_profiler_enabled  # its trace has a region for the step
            or "found_inf" in own
            or "grad_scale" in own
            or optimizer.defaults["differentiable"]
        ):
            return optimizer.step()
        groups, parts, state = optimizer.param_groups, self._parts, optimizer.state
        while len(parts) < len(groups):
            parts.append(_Part())
        adam, run, enabled = self._kind is not SGD, self._run, torch.is_grad_enabled()
        # All groups are looked at before any is changed: the step is taken directly as a whole, or not at all.
        try:
            known = True
            for group, part in zip(groups, parts, strict=False):
                if not part.take(group, state, adam):
                    known = False
                    break
            if not known and COMPILER in sys.modules:
                return optimizer.step()
            if wrapper is not None:
                own["_opt_called"] = True
            torch.set_grad_enabled(False)
            if not known:  # torch's own step, without what would import its compiler
                return self._within(optimizer)
            for group, part in zip(groups, parts, strict=False):
                if part.gradients:
                    run(part, group)
        finally:
            torch.set_grad_enabled(enabled)
            for part in parts:
                part.gradients = []  # others decide when they are freed
        return None

    def _accepts(self, wrapper: Any) -> bool:
        """``wrapper``, found in the place of ``optimizer.step``, does nothing but tell torch's schedulers of calls."""
        fits = wrapper is None or (
            getattr(wrapper, "__globals__", None) is vars(lr_scheduler)
            and getattr(wrapper, "__wrapped__", None) is self._step
        )
        if fits:
            self._wrapper = wrapper
        return fits


class _Part:
    """The tensors of one parameter group that a step works on, and what was found out about them.

    Attributes:
        gradients: Those of ``params``, while a step is taken.
        params: The parameters that had gradients in the last step.
        addresses: Where their data was.
        kept: What the optimizer keeps for them, one after the other.
        asked: What the step was to use: names in the optimizer's state, and the group's ``foreach`` and ``fused``.
        mode: ``"each"`` has the results of torch's loop over parameters, ``"foreach"`` and ``"fused"`` those of the
            implementations of these names; empty if the tensors are unusual.
        chunks: What is worked on at a time: a slice of ``gradients``, a list of parameters, and one of tensors for each
            name, empty ones at the end.
        numbers: Tensors of shape ``()`` that hold ``values``.
        root: One more of them.
    """

    __slots__ = ("addresses", "asked", "chunks", "gradients", "kept", "mode", "numbers", "params", "root", "values")

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.params: list[Tensor] = []
        self.addresses: list[int] = []
        self.kept: list[Any] = []
        self.asked: tuple[Any, ...] = ()
        self.mode = ""
        self.chunks: list[tuple[Any, ...]] = []
        self.numbers: list[Tensor] = []
        self.values: tuple[float, ...] = ()
        self.root = _ONE

    def take(self, group: dict[str, Any], state: dict[Tensor, Any], adam: bool) -> bool:
        """Take the gradients of ``group`` and what belongs to them; False where a direct step is not known to be right.

        Tensors that are those of the last step are not looked at again.

        Args:
            group: One of the optimizer's ``param_groups``.
            state: The optimizer's.
            adam: The optimizer is an Adam or AdamW, not an SGD.
        """
        if adam:
            numbers: tuple[Any, ...] = (group["lr"], group["eps"], group["weight_decay"], *group["betas"])
            names: tuple[str, ...] = _MAX_MOMENTS if group["amsgrad"] else _MOMENTS
        else:
            numbers = (group["lr"], group["dampening"], group["weight_decay"], momentum := group["momentum"])
            names = _BUFFERS if momentum != 0 else ()
        for number in numbers:
            if not isinstance(number, _NUMBERS):
                return False
        if group["differentiable"] or (adam and group["capturable"]):
            return False
        params = group["params"]
        gradients = [*map(_gradient, params)]
        missing = False
        for gradient in gradients:
            if gradient is None:
                missing = True
            elif type(gradient) is not Tensor or gradient.layout is not torch.strided:
                return False
        if missing:
            params = [parameter for parameter in params if parameter.grad is not None]
            gradients = [*map(_gradient, params)]
        self.gradients = gradients
        if not gradients:
            return True
        kept: list[Any] = []
        if names:
            states: list[Any] = [*map(state.get, params)]
            if {*map(type, states)} != {dict}:
                return False  # optimizer.step() makes what is missing
            kept = [*chain.from_iterable(map(dict.values, states))]
        asked = (names, group["foreach"], group["fused"])
        if (
            len(params) != len(self.params)
            or len(kept) != len(self.kept)
            or asked != self.asked
            or not all(map(is_, params, self.params))
            or not all(map(is_, kept, self.kept))
            or (self.mode and [*map(Tensor.data_ptr, params)] != self.addresses)
        ):
            self.params, self.kept, self.asked = list(params), kept, asked
            self.mode = self._examine([state[parameter] for parameter in params] if names else [])
        if self.mode == "foreach" and params[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return False  # the numbers of this step would be those of all replays
        return self.mode != ""

    def _examine(self, states: list[dict[str, Any]]) -> str:
        """Look at all tensors, keep them as the kernels take them, and return ``mode``."""
        params, (names, foreach, fused) = self.params, self.asked
        if any(type(parameter) not in _TENSORS for parameter in params):
            return ""
        first, device = params[0].dtype, params[0].device
        dtypes = {parameter.dtype for parameter in params}
        columns: list[list[Any]] = [[kept.get(name) for kept in states] for name in names]
        if not dtypes.issubset(_DTYPES) or any(parameter.device != device for parameter in params):
            return ""
        for name, column in zip(names, columns, strict=True):
            for parameter, tensor in zip(params, column, strict=True):
                if type(tensor) is not Tensor or tensor.layout is not torch.strided:
                    return ""
                if name == "step":
                    if tensor.shape or tensor.dtype not in (torch.float32, torch.float64) or not tensor.is_cpu:
                        return ""
                elif tensor.dtype != parameter.dtype or tensor.device != device:
                    return ""
        if _overlap([*params, *chain.from_iterable(columns)]):
            return ""  # an operation for all would see what torch's loop has not written yet, or no longer sees
        if device.type == "cpu":
            mode = "each" if not (foreach or fused) else "" if foreach and fused else "foreach" if foreach else "fused"
        elif device.type == "cuda" and not fused:
            default = (
                foreach is None and fused is None and torch_optimizer._default_to_fused_or_foreach(params, False)[1]
            )
            mode = "foreach" if foreach or default else ""
        else:
            mode = ""
        if mode == "each" and (
            (torch.float64 in dtypes and len(dtypes) > 1)
            or any(parameter.dtype in _HALVES and not parameter.shape for parameter in params)
        ):
            return ""  # the numbers in use are float32, or float64 for float64 alone; these round otherwise
        if mode != "each" and len(dtypes) > 1:
            return ""
        self.addresses = [parameter.data_ptr() for parameter in params]
        self.chunks = [
            (where, params[where], *(column[where] for column in columns), *([] for _ in range(4 - len(columns))))
            for where in (_chunks(params) if mode == "each" else [slice(0, len(params))])
        ]
        self.values = ()
        self.root, *self.numbers = torch.zeros(
            4, dtype=torch.promote_types(first, torch.float32), device="cpu"
        ).unbind()
        return mode

    def hold(self, *values: float) -> list[Tensor]:
        """``numbers``, holding ``values``."""
        if values != self.values:
            given = torch.tensor(values, dtype=torch.float64, device="cpu")
            torch._foreach_copy_(self.numbers[: len(values)], given.unbind())
            self.values = values
        return self.numbers


def _run_adam(part: _Part, group: dict[str, Any]) -> None:
    """Kingma and Ba, https://arxiv.org/abs/1412.6980, in the order of torch's operations."""
    lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
    amsgrad, maximize, weight_decay = group["amsgrad"], group["maximize"], group["weight_decay"]
    decoupled, each, root = group["decoupled_weight_decay"], part.mode == "each", part.root
    if part.mode == "fused":
        _, params, steps, averages, squares, largest = part.chunks[0]
        torch._foreach_add_(steps, 1)
        (torch._fused_adamw_ if decoupled else torch._fused_adam_)(
            params,
            part.gradients,
            averages,
            squares,
            largest,
            steps,
            amsgrad=amsgrad,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            maximize=maximize,
            grad_scale=None,
            found_inf=None,
        )
        return
    decay: Any = 1 - lr * weight_decay
    if each:
        to_beta2, to_eps, to_decay = part.hold(beta2, eps, decay)
    for where, params, steps, averages, squares, largest in part.chunks:
        gradients: Any = part.gradients[where]
        count = len(params)
        torch._foreach_add_(steps, [_ONE] * count)
        if maximize:
            gradients = torch._foreach_neg(gradients)
        if weight_decay != 0:
            if decoupled:
                torch._foreach_mul_(params, [to_decay] * count if each else decay)
            else:
                gradients = torch._foreach_add(gradients, params, alpha=weight_decay)
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_mul_(squares, [to_beta2] * count if each else beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        if amsgrad:
            torch._foreach_maximum_(largest, squares)
        counts = [*map(Tensor.item, steps)]
        roots: list[Any]
        if each and counts.count(counts[0]) == count:
            sizes = [-(lr / (1 - beta1 ** counts[0]))] * count
            roots = [root.fill_((1 - beta2 ** counts[0]) ** 0.5)] * count
        else:
            sizes = [-(lr / (1 - beta1**step)) for step in counts]
            roots = [(1 - beta2**step) ** 0.5 for step in counts]
            if each:
                roots = [torch.tensor(value, dtype=root.dtype, device="cpu") for value in roots]
        divisors = torch._foreach_sqrt(largest if amsgrad else squares)
        torch._foreach_div_(divisors, roots)
        torch._foreach_add_(divisors, [to_eps] * count if each else eps)
        torch._foreach_addcdiv_(params, averages, divisors, sizes)


def _run_sgd(part: _Part, group: dict[str, Any]) -> None:
    lr, momentum, dampening = group["lr"], group["momentum"], group["dampening"]
    weight_decay, nesterov, maximize = group["weight_decay"], group["nesterov"], group["maximize"]
    if part.mode == "fused":
        _, params, buffers, *_ = part.chunks[0]
        torch._fused_sgd_(
            params,
            part.gradients,
            buffers,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=dampening,
            nesterov=nesterov,
            maximize=maximize,
            is_first_step=False,
            grad_scale=None,
            found_inf=None,
        )
        return
    each = part.mode == "each"
    if each and momentum != 0:
        to_momentum, *_ = part.hold(momentum)
    for where, params, buffers, *_ in part.chunks:
        gradients: Any = part.gradients[where]
        if maximize:
            gradients = torch._foreach_neg(gradients)
        if weight_decay != 0:
            gradients = torch._foreach_add(gradients, params, alpha=weight_decay)
        if momentum != 0:
            torch._foreach_mul_(buffers, [to_momentum] * len(params) if each else momentum)
            torch._foreach_add_(buffers, gradients, alpha=1 - dampening)
            if not nesterov:
                gradients = buffers
            elif each:
                gradients = torch._foreach_add(gradients, buffers, alpha=momentum)
            else:  # torch writes into the gradients here
                torch._foreach_add_(gradients, buffers, alpha=momentum)
        torch._foreach_add_(params, gradients, alpha=-lr)


def _has_torchs_step(optimizer: Optimizer) -> bool:
    """The class's ``step`` is the one that torch defines, within the two functions that torch puts around it.

    False too for versions of torch that lack what is used here and is not public.
    """
    if not (hasattr(profiler, "_is_profiler_enabled") and hasattr(torch_optimizer, "_default_to_fused_or_foreach")):
        return False
    outer = type(optimizer).step
    middle = getattr(outer, "__wrapped__", None)
    inner = getattr(middle, "__wrapped__", None)
    return (
        getattr(outer, "__code__", None) is _HOOKED
        and _around is not None
        and getattr(middle, "__code__", None) is _around(lambda: None).__code__
        and getattr(inner, "__module__", "") in ("torch.optim.sgd", "torch.optim.adam", "torch.optim.adamw")
    )


_HOOKED = Optimizer.profile_hook_step(lambda: None).__code__
_around: Any = getattr(torch_optimizer, "_use_grad_for_differentiable", None)


def _chunks(params: list[Tensor]) -> list[slice]:
    """Slices of ``params``: each ends with the parameter that completes a chunk."""
    ends, elements = [], 0
    for end, parameter in enumerate(params, start=1):
        elements += parameter.numel()
        if elements >= _CHUNK or end == len(params):
            ends.append(end)
            elements = 0
    return [slice(start, end) for start, end in pairwise([0, *ends])]


def _overlap(tensors: list[Tensor]) -> bool:
    """Some of ``tensors`` may share memory, or are the same."""
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        return True
    spans = []
    for tensor in tensors:
        if tensor.numel():
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            spans.append((str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize))
    spans.sort()
    return any(here == there and end > begin for (here, _, end), (there, begin, _) in pairwise(spans))
