"""What Fabric.setup returns: a module, an optimizer and a loader that use the chosen device and precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from leyden.fabric.precision import Precision
from leyden.utils.errors import nearest
from leyden.utils.tree import move_data_to_device

# A LightningModule's methods that compute as forward does.
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class WrappedModule(nn.Module):
    """A module whose ``forward`` computes in the chosen precision.

    Parameters, buffers and the state dict keep the names they have in the module itself, and every other attribute
    is read from it and written to it. Other methods that compute must be named to ``mark_forward_method``.
    """

    def __init__(self, module: nn.Module, precision: Precision) -> None:
        super().__init__()
        self._precision = precision
        self._forward_methods = set(_STEPS)
        # torch.compile puts the module in a shell, which is what to call, but its names begin with "_orig_mod.".
        self.__dict__["_called"] = module
        self._original = module._modules.get("_orig_mod") or module

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self._modules["_original"]  # type: ignore[return-value]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module: inputs cast to the precision, floating-point outputs in the default type."""
        return self._compute(self.__dict__["_called"], *args, **kwargs)

    def mark_forward_method(self, method: str | Callable[..., Any]) -> None:
        """Let a further method, such as ``"generate"``, compute in the chosen precision as ``forward`` does.

        Raises:
            AttributeError: The module has no such method.
        """
        name = method if isinstance(method, str) else getattr(method, "__name__", repr(method))
        if not callable(getattr(self.module, name, None)):
            kind = type(self.module)
            raise AttributeError(f"{kind.__name__} has no method {name!r}.{nearest(name, dir(kind))}")
        self._forward_methods.add(name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own state dict."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the module's own state dict."""
        return self.module.load_state_dict(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own; the names of parameters and buffers come from these."""
        return self.module.named_modules(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name == "_original" or "_original" not in modules:
            return super().__getattr__(name)
        found = getattr(modules["_original"], name)
        if name in self._forward_methods:
            return partial(self._compute, found)
        if self._precision.has_context and inspect.ismethod(found):
            return self._watched(found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in self.__dict__ or hasattr(type(self), name) or "_original" not in self._modules
        if own:
            super().__setattr__(name, value)
        else:
            setattr(self.module, name, value)

    def _compute(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        precision = self._precision
        if precision.casts_input:
            args, kwargs = precision.convert_input(args), precision.convert_input(kwargs)
        with precision.forward_context():
            output = function(*args, **kwargs)
        return precision.convert_output(output)

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method``, which is refused if it runs one of the module's parts outside the precision's context."""

        def refuse(part: nn.Module, inputs: Any) -> None:
            if not self._precision.in_forward_context() and any(part is own for own in self.modules()):
                raise RuntimeError(
                    f"{method.__name__}() runs {type(part).__name__} outside precision={self._precision.name!r}. Call "
                    f"model.mark_forward_method({method.__name__!r}) once after setup, or use fabric.autocast()."
                )

        @wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            watch = register_module_forward_pre_hook(refuse)
            try:
                return method(*args, **kwargs)
            finally:
                watch.remove()

        return watched


class WrappedOptimizer:
    """An optimizer that steps through the chosen precision; everything else is the optimizer's own."""

    def __init__(self, optimizer: Optimizer, precision: Precision) -> None:
        self._optimizer = optimizer
        self._precision = precision

    # Schedulers ask isinstance(..., Optimizer), which looks here when the type itself says no.
    @property  # type: ignore[misc]
    def __class__(self) -> type[Optimizer]:  # type: ignore[override]
        return type(self._optimizer)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer itself."""
        return self._optimizer

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step; returns the closure's result. Gradients that are not finite in float16 are left out."""
        return self._precision.step(self._optimizer, closure)

    def __getattr__(self, name: str) -> Any:
        if name == "_optimizer":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    def __repr__(self) -> str:
        return f"WrappedOptimizer({self._optimizer!r})"


class WrappedLoader:
    """A loader that moves batches to a device and tells its sampler which epoch begins.

    Every iteration calls ``set_epoch`` of the loader's samplers, where they have it, with the number of iterations
    begun before; ``set_epoch`` here changes that number, as after loading a checkpoint.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | None = None) -> None:
        self._loader = loader
        self._device = device
        self._epoch = 0

    @property
    def loader(self) -> DataLoader[Any]:
        """The loader itself."""
        return self._loader

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be epoch ``epoch``, counted from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = self._loader.batch_sampler
        samplers = (self._loader.sampler, batches, getattr(batches, "sampler", None))
        for sampler in {id(sampler): sampler for sampler in samplers}.values():
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(self._epoch)
        self._epoch += 1
        if self._device is None:
            return iter(self._loader)
        return (move_data_to_device(batch, self._device) for batch in self._loader)

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self._loader, name)


def unwrap(wrapped: Any) -> Any:
    """The module, optimizer or loader inside a wrapper; anything else as it is."""
    kind = type(wrapped)  # not isinstance, which a WrappedOptimizer answers as the optimizer would
    if kind is WrappedModule:
        return wrapped.module
    if kind is WrappedOptimizer:
        return wrapped.optimizer
    return wrapped.loader if kind is WrappedLoader else wrapped
