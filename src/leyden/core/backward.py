"""How a loss is propagated: torch's backward pass, by the shortest way that does the same."""

from __future__ import annotations

import logging
from collections.abc import Callable
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable, graph


def resolve_backward(device: torch.device, fast: bool) -> Callable[..., None]:
    """``Tensor.backward``, or what does the same to the last bit without the Python around torch's engine.

    That saves 8 us a backward pass, 5 % of a tiny step. It is done on CPUs only: where the engine works in threads of
    its own, torch hands them the caller's context.
    """
    if not fast or device.type != "cpu" or not _is_torchs_own():
        return _backward
    return _short_backward


def of_scalars(backward: Callable[..., None]) -> Callable[[Tensor], None]:
    """``backward`` for losses that are plain real tensors of shape ``()``, with nothing to look at any more."""
    return _NAMED if backward is _backward else _propagate if backward is _short_backward else backward


def _backward(loss: Tensor, *args: Any, **options: Any) -> None:
    loss.backward(*args, **options)


def _short_backward(loss: Tensor, *args: Any, **options: Any) -> None:
    if args or options or type(loss) is not Tensor or loss.ndim or not loss.is_floating_point():
        loss.backward(*args, **options)
    else:
        _propagate(loss)


def _propagate(
    loss: Tensor,
    run: Callable[..., Any] = Variable._execution_engine.run_backward,
    ones_like: Callable[[Tensor], Tensor] = torch.ones_like,
) -> None:
    if Tensor.backward is not _TENSOR_BACKWARD:  # somebody has patched it since
        loss.backward()
        return
    run((loss,), (ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)


_NAMED = methodcaller("backward")  # without a frame of Python's


def _is_torchs_own() -> bool:
    """Nobody has put anything around ``Tensor.backward``, and nobody asked torch to log what the engine does."""
    log = getattr(graph, "log", None)
    return (
        Tensor.backward is _TENSOR_BACKWARD
        and getattr(_TENSOR_BACKWARD, "__globals__", None) is vars(torch._tensor)  # nobody had before this file came
        and torch.autograd.backward is _AUTOGRAD_BACKWARD
        and getattr(_AUTOGRAD_BACKWARD, "__globals__", None) is vars(torch.autograd)
        and getattr(graph, "_engine_run_backward", None) is _RUN_BACKWARD is not None
        and isinstance(log, logging.Logger)
        and log.getEffectiveLevel() > logging.DEBUG
        and torch._C._len_torch_function_stack() == 0
    )


_TENSOR_BACKWARD = Tensor.backward
_AUTOGRAD_BACKWARD = torch.autograd.backward
_RUN_BACKWARD = getattr(graph, "_engine_run_backward", None)
