"""Counting the floating-point operations of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


def measure_flops(
    model: nn.Module, forward_fn: Callable[[], Tensor], loss_fn: Callable[[Tensor], Tensor] | None = None
) -> int:
    """Floating-point operations of one forward pass, and of the backward pass too if there is a loss.

    Counts what matrix products, convolutions, attention and recurrent layers do, one multiplication and addition as 2;
    element-wise operations are left out. On the meta device, only shapes are computed, so that the model may be of any
    size::

        with torch.device("meta"):
            model, x = MyModel(), torch.randn(2, 32)
        flops = measure_flops(model, lambda: model(x), lambda y: y.sum())

    Args:
        model: Whose gradients stay as they are.
        forward_fn: The forward pass; called once.
        loss_fn: A loss of shape ``()`` from what ``forward_fn`` returned.
    """
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in gradients:
        parameter.grad = None
    try:
        with counting_flops() as counter:
            output = forward_fn()
            if loss_fn is not None:
                torch.autograd.backward(loss_fn(output))
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
    return counter.get_total_flops()


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Count what is computed inside; the counter's ``get_total_flops()`` tells how much it is so far."""
    from torch.utils.flop_counter import FlopCounterMode

    # In eval mode torch computes a TransformerEncoderLayer as one operation, which has no formula.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    counter.mod_tracker = _Everywhere()  # type: ignore[assignment]
    try:
        with counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


class _Everywhere:
    """Counts for the whole model alone; torch's own tracker hooks into every module, and compiled ones warn of that."""

    parents = frozenset(["Global"])

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None: ...


def _formulas() -> dict[Any, Callable[..., int]]:
    """Operations that torch's counter passes over in silence, and how to count them from the shapes of their inputs."""
    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        aten._cudnn_rnn: _recurrent,
        aten._cudnn_rnn_backward: _recurrent_backward,
        aten.mkldnn_rnn_layer: _recurrent_on_cpu,
        aten.mkldnn_rnn_layer_backward: _recurrent_on_cpu_backward,
    }


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """The products of queries with keys, and of the weights with the values."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(_: Shape, query: Shape, key: Shape, value: Shape, *__: Any, **___: Any) -> int:
    """The gradients of both products by both their factors, and the first product once more."""
    return 2 * math.prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


def _recurrent(inputs: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    """Every weight matrix, once a step of every sequence."""
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _recurrent_backward(inputs: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * _recurrent(inputs, weights)


def _recurrent_on_cpu(inputs: Shape, input_weight: Shape, hidden_weight: Shape, *_: Any, **__: Any) -> int:
    return _recurrent(inputs, (input_weight, hidden_weight))


def _recurrent_on_cpu_backward(inputs: Shape, input_weight: Shape, hidden_weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * _recurrent(inputs, (input_weight, hidden_weight))
