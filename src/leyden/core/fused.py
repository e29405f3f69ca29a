"""On a GPU, torch's Adam and AdamW step by their fused kernels, unless they were told how to step."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ours: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def prefer_fused(run: Any) -> None:
    """Have the optimizers of ``run`` step by their fused kernels, as with ``fused=True``, where they are free to.

    One kernel for all parameters takes less of the host's time than torch's default there, a kernel for each
    operation, and rounds otherwise in the last bits. It also obeys the flag by which steps are left out (finite.py).
    An optimizer keeps its way where ``foreach`` or ``fused`` was given, under ``"16-mixed"``, whose gradients could
    then not be clipped, and with ``fast_paths=False``. SGD keeps its own: its fused kernel takes no sparse gradients.
    """
    precise = getattr(run.precision, "scaler", None) is None and run.options.compile is None
    if run.options.fast_paths and precise:
        for optimizer in run.optimizers:
            groups, device = optimizer.param_groups, run.strategy.device.type
            if type(optimizer) in (Adam, AdamW) and all(_is_free(group, device) for group in groups):
                _fuse(optimizer)


def state_of(optimizer: Optimizer) -> dict[str, Any]:
    """``optimizer.state_dict()``, in which groups that were fused here are as they were given."""
    state = optimizer.state_dict()
    if optimizer in _ours:
        state["param_groups"] = [{**group, "fused": None} for group in state["param_groups"]]
    return state


def _is_free(group: dict[str, Any], device: str) -> bool:
    numbers = (group["lr"], *group["betas"])
    return (
        group["foreach"] is None
        and group["fused"] is None
        and not (group["capturable"] or group["differentiable"])
        and not any(isinstance(number, Tensor) for number in numbers)
        and all(type(p) in (Tensor, Parameter) and p.device.type == device for p in group["params"])
        and all(p.dtype in _DTYPES for p in group["params"])
    )


def _fuse(optimizer: Optimizer) -> None:
    """Do what ``fused=True`` does in the constructor; its state may be that of steps by other kernels."""
    _ours.add(optimizer)
    optimizer.defaults["fused"] = True  # of groups that are added
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["fused"] = True
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if state and isinstance(state.get("step"), Tensor):  # lies beside the parameter here, on the CPU elsewhere
                state["step"] = state["step"].to(device=parameter.device, dtype=torch.float32)
