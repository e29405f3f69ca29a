"""Norms of gradients."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def grad_norm(module: nn.Module, norm_type: float | int | str, group_separator: str = "/") -> dict[str, Tensor]:
    """The norm of every parameter's gradient, and of all together; for ``self.log_dict``.

    Computed in at least float32, on the device, without waiting for it. Parameters without a gradient are left out.

    Args:
        module: Whose parameters, after the backward pass.
        norm_type: 1, 2, ... or ``"inf"``.
        group_separator: What stands before the parameter's name.

    Returns:
        ``{"grad_2.0_norm/net.weight": ..., "grad_2.0_norm_total": ...}``, tensors of shape ``()``; empty when there
        is no gradient.

    Raises:
        ValueError: ``norm_type`` is not a number above 0.
    """
    order = _order(norm_type)
    by_type: dict[torch.dtype, dict[str, Tensor]] = defaultdict(dict)
    for name, parameter in module.named_parameters():
        if (grad := parameter.grad) is not None and grad.numel():
            by_type[grad.dtype][name] = grad.coalesce().values() if grad.is_sparse else grad
    norms: dict[str, Tensor] = {}
    for dtype, grads in by_type.items():
        wide = torch.promote_types(dtype, torch.float32)  # a norm above 65,504 is infinite in float16
        norms.update(zip(grads, torch._foreach_norm(list(grads.values()), order, dtype=wide), strict=True))
    if not norms:
        return {}
    named = {f"grad_{order}_norm{group_separator}{name}": norms[name] for name, _ in _in_order(module, norms)}
    return {**named, f"grad_{order}_norm_total": _together(list(named.values()), order)}
