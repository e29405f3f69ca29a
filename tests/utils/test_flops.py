"""Counting floating-point operations: against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leyden.utils.flops import counting_flops, measure_flops


def counted(module: nn.Module, *inputs: torch.Tensor) -> int:
    """Of a forward pass without gradients."""
    with torch.no_grad():
        return measure_flops(module, lambda: module(*inputs))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_multiplication_and_addition_count_two_and_the_backward_pass_twice_as_much(device):
    with torch.device(device):
        model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5)), torch.ones(2, 4)
    forward = 2 * 2 * (4 * 3 + 3 * 5)
    assert measure_flops(model, lambda: model(x)) == forward
    # The gradient of x is not asked for.
    assert measure_flops(model, lambda: model(x), lambda y: y.sum()) == 3 * forward - 2 * 2 * 4 * 3


def test_a_model_larger_than_memory_can_be_measured():
    with torch.device("meta"):
        model, x = nn.Linear(10**6, 10**6), torch.ones(1, 10**6)
    assert measure_flops(model, lambda: model(x)) == 2 * 10**12


def test_convolutions_count():
    assert counted(nn.Conv2d(3, 4, 3), torch.ones(1, 3, 5, 5)) == 2 * (3 * 3 * 3) * 4 * 9


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_on_every_device(device):
    query, key = torch.ones(2, 3, 5, 4, device=device), torch.ones(2, 3, 7, 4, device=device)
    attend = nn.functional.scaled_dot_product_attention
    assert measure_flops(nn.Module(), lambda: attend(query, key, key)) == 2 * (2 * 3 * 5 * 7 * (4 + 4))


def test_the_backward_pass_of_attention_computes_the_weights_again():
    query = torch.ones(2, 3, 5, 4, requires_grad=True)
    attend = nn.functional.scaled_dot_product_attention
    product = 2 * (2 * 3 * 5 * 5 * 4)
    assert measure_flops(nn.Module(), lambda: attend(query, query, query), lambda y: y.sum()) == (2 + 5) * product


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_layer_counts_the_same_in_both_modes(training):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train(training)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    projections, attention, feed_forward = 4 * 8 * 8, 2 * 5 * 8, 2 * 8 * 16
    assert counted(layer, torch.ones(2, 5, 8)) == 2 * (2 * 5) * (projections + attention + feed_forward)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_count_every_weight_once_a_step(device, kind):
    layer = kind(6, 8, num_layers=2, bidirectional=True).to(device)
    weights = sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
    assert counted(layer, torch.ones(5, 3, 6, device=device)) == 2 * (5 * 3) * weights


def test_gradients_stay_as_they_are():
    model = nn.Linear(2, 2)
    model.weight.grad = gradient = torch.ones(2, 2)
    with pytest.raises(RuntimeError, match="scalar outputs"):
        measure_flops(model, lambda: model(torch.ones(1, 2)), lambda y: y)
    measure_flops(model, lambda: model(torch.ones(1, 2)), lambda y: y.sum())
    assert model.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(2, 2))
    assert model.bias.grad is None


def test_the_count_can_be_read_on_the_way():
    layer, x = nn.Linear(2, 3), torch.ones(1, 2)
    with counting_flops() as counter:
        layer(x)
        first = counter.get_total_flops()
        layer(x)
    assert (first, counter.get_total_flops()) == (12, 24)
