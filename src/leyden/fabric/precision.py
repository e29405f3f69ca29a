"""Precisions: which number types a module's weights, its computation and its gradients use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from leyden.utils.errors import MisconfigurationError, nearest
from leyden.utils.tree import tree_leaves, tree_map

CLIP_ALGORITHMS = ("norm", "value")


class Precision:
    """float32 throughout, as torch does by itself; the base of the others.

    Attributes:
        name: Its full name, as ``Trainer(precision=)`` takes it.
        dtype: The type of weights, inputs and new tensors; None leaves them as they are.
        casts_input: ``convert_input`` changes batches.
        has_context: ``forward_context`` does something.
        needs_closure_first: ``step`` runs a closure before it knows whether to step, so an optimizer that calls the
            closure itself, several times, cannot be used.
    """

    name = "32-true"
    dtype: torch.dtype | None = None
    casts_input = False
    has_context = False
    needs_closure_first = False

    @property
    def state_key(self) -> str:
        """The name under which a checkpoint keeps ``state_dict()``."""
        return type(self).__qualname__

    def convert_module(self, module: nn.Module) -> nn.Module:
        """``module`` with its floating-point parameters and buffers in ``dtype``; changed in place."""
        return module if self.dtype is None else module.to(self.dtype)

    def convert_input(self, batch: Any) -> Any:
        """``batch`` with its floating-point tensors in ``dtype``."""
        return batch if self.dtype is None else _floats_to(batch, self.dtype)

    def convert_output(self, output: Any) -> Any:
        """What Fabric's ``model(...)`` hands back: floating-point tensors in torch's default type, float32."""
        return output if self.dtype is None else _floats_to(output, torch.get_default_dtype())

    def forward_context(self) -> AbstractContextManager[Any]:
        """Run forward passes and compute losses inside this."""
        return nullcontext() if self.dtype is None else _default_dtype(self.dtype)

    def in_forward_context(self) -> bool:
        """True inside ``forward_context``, and wherever it would change nothing."""
        return self.dtype is None or torch.get_default_dtype() == self.dtype

    def init_context(self) -> AbstractContextManager[Any]:
        """Make modules and tensors inside this to have them in ``dtype`` from the start."""
        return nullcontext() if self.dtype is None else _default_dtype(self.dtype)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss that ``backward`` propagates."""
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Propagate ``loss``; further arguments go to ``Tensor.backward``."""
        self.scale(loss).backward(*args, **kwargs)

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse, before training, an optimizer that cannot work.

        Raises:
            MisconfigurationError: ``optimizer`` calls its closure itself, and this precision must call it first.
        """

    def unscale(self, optimizer: Optimizer) -> None:
        """Bring the gradients that ``optimizer`` steps on to their true size; once before each step."""

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Step ``optimizer``; returns what its ``step`` returns, which is the closure's result."""
        return optimizer.step() if closure is None else optimizer.step(closure)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        value: float,
        algorithm: str = "norm",
        *,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
    ) -> Tensor | None:
        """Clip the gradients that ``optimizer`` steps on, which ``unscale`` has seen; does not wait for the device.

        Args:
            optimizer: Whose parameters; their groups count as one.
            value: The largest norm of all gradients together, or the largest absolute element.
            algorithm: ``"norm"`` or ``"value"``.
            norm_type: Which norm; ``inf`` for the largest element.
            error_if_nonfinite: Raise RuntimeError when the norm is not finite, which waits for the device.

        Returns:
            The norm before clipping, shape ``()``; None for ``"value"``.
        """
        if algorithm not in CLIP_ALGORITHMS:
            raise MisconfigurationError(
                f"gradient_clip_algorithm={algorithm!r} is unknown. Choose one of: {', '.join(CLIP_ALGORITHMS)}."
                f"{nearest(algorithm, CLIP_ALGORITHMS)}"
            )
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if algorithm == "norm":
            return nn.utils.clip_grad_norm_(parameters, value, norm_type, error_if_nonfinite)
        nn.utils.clip_grad_value_(parameters, value)
        return None

    def state_dict(self) -> dict[str, Any]:
        """What must be remembered to go on training."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned."""


class MixedPrecision(Precision):
    """Weights in float32, computation in float16 or bfloat16 where torch's autocast holds it to be safe.

    float16 gradients are kept from vanishing by a scaled loss: ``backward`` scales it, ``unscale`` undoes that, and
    ``step`` leaves a step out whose gradients are not finite, then adapts the scale.
    """

    has_context = True

    def __init__(self, precision: str, device: str | torch.device, scaler: torch.amp.GradScaler | None = None) -> None:
        """Choose the type.

        Args:
            precision: ``"16-mixed"`` or ``"bf16-mixed"``.
            device: The device, or its type, such as ``"cuda"``.
            scaler: Scales the loss of ``"16-mixed"``; None makes one with torch's defaults.

        Raises:
            MisconfigurationError: ``precision`` is another one, or a scaler comes with bfloat16, which needs none.
        """
        self.name = _one_of(precision, ("16-mixed", "bf16-mixed"), "MixedPrecision")
        self.device_type = torch.device(device).type
        self.autocast_dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16
        if precision == "bf16-mixed" and scaler is not None:
            raise MisconfigurationError(
                f"MixedPrecision('bf16-mixed', scaler={type(scaler).__name__}) cannot work: bfloat16 has float32's "
                "range, so its loss is never scaled. Leave scaler out, or use '16-mixed'."
            )
        self.scaler = torch.amp.GradScaler(self.device_type) if precision == "16-mixed" and scaler is None else scaler
        self.needs_closure_first = self.scaler is not None
        # Optimizers between unscale and step; of each its first gradient, that tensor's version, and the backward
        # passes so far. The scaler may not update meanwhile: it would forget, and divide the gradients twice.
        self._unscaled: dict[Optimizer, tuple[Tensor, int, int]] = {}
        self._backward_passes = 0
        self._in_backward = False

    def convert_output(self, output: Any) -> Any:
        """Floating-point tensors in float32; a bare ``loss.backward()`` on them is refused where losses are scaled."""
        output = _floats_to(output, torch.get_default_dtype())
        if self.scaler is not None:
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(self._refuse_bare_backward)
        return output

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast on this device."""
        return torch.autocast(self.device_type, dtype=self.autocast_dtype)

    def in_forward_context(self) -> bool:
        """True while autocast is on for this kind of device."""
        return torch.is_autocast_enabled(self.device_type)

    def scale(self, loss: Tensor) -> Tensor:
        """``loss`` times the scale, for float16."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Propagate the scaled loss."""
        self._backward_passes += 1
        self._in_backward = True
        try:
            super().backward(loss, *args, **kwargs)
        finally:
            self._in_backward = False

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse LBFGS where losses are scaled: it needs every gradient and cannot leave out a step."""
        if self.scaler is not None and isinstance(optimizer, LBFGS):
            raise MisconfigurationError(
                "LBFGS cannot train with precision='16-mixed': it calls its closure several times a step, and the "
                "scaled loss allows one call. Use precision='bf16-mixed' or '32-true'."
            )

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, for float16, once; fused optimizers do it themselves while stepping.

        Raises:
            RuntimeError: Scaled gradients were added since to those already unscaled.
        """
        if self.scaler is None or _unscales_itself(optimizer) or (first := _first_gradient(optimizer)) is None:
            return
        gradient, version, passes = self._unscaled.get(optimizer, (None, 0, 0))
        if gradient is first and (first._version == version or passes == self._backward_passes):
            return
        if gradient is not None and gradient is not first and len(self._unscaled) == 1:
            # They were cleared without a step, by an optimizer_step that only ran the closure, say.
            self.scaler.update()
        self.scaler.unscale_(optimizer)
        self._unscaled[optimizer] = (first, first._version, self._backward_passes)

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        """Step unless a float16 gradient is not finite, then adapt the scale.

        Returns:
            The closure's result; with float16 it runs once, before anything else.
        """
        if self.scaler is None:
            return super().step(optimizer, closure)
        self.check_optimizer(optimizer)
        result = None if closure is None else closure()
        if _first_gradient(optimizer) is not None:  # the scaler cannot step on none: training_step returned None
            self.scaler.step(optimizer)
            self._unscaled.pop(optimizer, None)
            if not self._unscaled:
                self.scaler.update()
        return result

    def clip_gradients(
        self, optimizer: Optimizer, value: float, algorithm: str = "norm", **options: Any
    ) -> Tensor | None:
        """Clip, as the base class does.

        Raises:
            RuntimeError: A fused optimizer, with float16: its gradients are still scaled.
        """
        if self.scaler is not None and _unscales_itself(optimizer):
            raise RuntimeError(
                f"Gradients cannot be clipped with precision='16-mixed' and {type(optimizer).__name__}(fused=True): "
                "it unscales them while stepping. Use fused=False, precision='bf16-mixed', or no clipping."
            )
        norm = super().clip_gradients(optimizer, value, algorithm, **options)
        if optimizer in self._unscaled:
            first, _, passes = self._unscaled[optimizer]
            self._unscaled[optimizer] = (first, first._version, passes)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state; waits for the device."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scaler's state; a checkpoint of another precision has none."""
        if self.scaler is not None and state_dict:
            self.scaler.load_state_dict(state_dict)

    def _refuse_bare_backward(self, gradient: Tensor) -> None:
        if not self._in_backward:
            raise RuntimeError(
                "loss.backward() leaves the loss unscaled, and float16 gradients would vanish. With "
                "precision='16-mixed' call fabric.backward(loss)."
            )


class HalfPrecision(Precision):
    """Weights, computation and floating-point inputs in float16 or bfloat16: half the memory, less exact."""

    casts_input = True
    has_context = True

    def __init__(self, precision: str) -> None:
        """Choose ``"16-true"`` or ``"bf16-true"``."""
        self.name = _one_of(precision, ("16-true", "bf16-true"), "HalfPrecision")
        self.dtype = torch.bfloat16 if precision == "bf16-true" else torch.float16


class DoublePrecision(Precision):
    """Weights, computation and floating-point inputs in float64."""

    name = "64-true"
    dtype = torch.float64
    casts_input = True
    has_context = True


def _one_of(precision: str, names: tuple[str, ...], kind: str) -> str:
    if precision not in names:
        raise MisconfigurationError(
            f"{kind}(precision={precision!r}) is unknown. Choose one of: {', '.join(names)}.{nearest(precision, names)}"
        )
    return precision


def _floats_to(tree: Any, dtype: torch.dtype) -> Any:
    return tree_map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, tree)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    outer = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(outer)


def _first_gradient(optimizer: Optimizer) -> Tensor | None:
    gradients = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
    return next((gradient for gradient in gradients if gradient is not None), None)


def _unscales_itself(optimizer: Optimizer) -> bool:
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
