"""Norms of gradients."""

from __future__ import annotations

from functools import reduce

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
    grads = {
        name: parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and parameter.grad.numel()
    }
    if not grads:
        return {}
    norms: dict[str, Tensor] = {}
    for dtype in {grad.dtype for grad in grads.values()}:
        names = [name for name, grad in grads.items() if grad.dtype == dtype]
        wide = torch.promote_types(dtype, torch.float32)  # a norm above 65,504 is infinite in float16
        norms |= zip(names, torch._foreach_norm([grads[name] for name in names], order, dtype=wide), strict=True)
    named = {f"grad_{order}_norm{group_separator}{name}": norms[name] for name in grads}
    return {**named, f"grad_{order}_norm_total": _together(list(norms.values()), order)}


def _order(norm_type: float | int | str) -> float:
    try:
        order = float(norm_type)
    except (TypeError, ValueError):
        order = 0.0
    if not order > 0:  # nan neither
        raise ValueError(f"norm_type={norm_type!r} is not a number above 0. Give 2 for the usual norm, 1, or 'inf'.")
    return order


def _together(norms: list[Tensor], order: float) -> Tensor:
    """The norm of all gradients from the norm of each; on the first one's device."""
    widest = reduce(torch.promote_types, (norm.dtype for norm in norms))
    stacked = torch.stack([norm.to(norms[0].device, widest) for norm in norms])
    total: Tensor = torch.linalg.vector_norm(stacked, order)
    return total
