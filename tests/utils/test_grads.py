"""grad_norm: the norms of gradients, without waiting for the device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from leyden.utils.grads import grad_norm


def module_with(**grads: Tensor | None) -> nn.Module:
    """A module whose parameters have these gradients."""
    module = nn.Module()
    for name, grad in grads.items():
        dense = torch.zeros(2) if grad is None else grad.to_dense() if grad.is_sparse else grad
        parameter = nn.Parameter(torch.zeros_like(dense))
        parameter.grad = grad
        module.register_parameter(name, parameter)
    return module


def test_every_norm_and_the_total_have_lightnings_names():
    norms = grad_norm(module_with(a=torch.tensor([3.0, 4.0]), b=torch.full((2, 2), 6.0)), 2)
    assert {name: norm.item() for name, norm in norms.items()} == {
        "grad_2.0_norm/a": 5.0,
        "grad_2.0_norm/b": 12.0,
        "grad_2.0_norm_total": 13.0,
    }
    assert all(norm.shape == () for norm in norms.values())


@pytest.mark.parametrize(
    ("norm_type", "name", "total"), [(1, "1.0", 12), ("2", "2.0", math.sqrt(62)), ("inf", "inf", 7)]
)
def test_the_total_is_the_norm_of_all_numbers_together(norm_type, name, total):
    module = module_with(a=torch.tensor([-3.0]), b=torch.tensor([[-7.0, 0.0]]), c=torch.tensor([2.0]))
    norms = grad_norm(module, norm_type)
    assert list(norms)[-1] == f"grad_{name}_norm_total"
    assert norms[f"grad_{name}_norm_total"].item() == pytest.approx(total)


def test_the_separator_stands_before_the_parameter():
    assert list(grad_norm(module_with(a=torch.ones(1)), 1, group_separator=".")) == [
        "grad_1.0_norm.a",
        "grad_1.0_norm_total",
    ]


def test_parameters_without_a_gradient_or_without_numbers_are_left_out():
    assert list(grad_norm(module_with(a=None, b=torch.ones(0), c=torch.ones(1)), "inf")) == [
        "grad_inf_norm/c",
        "grad_inf_norm_total",
    ]
    assert grad_norm(nn.Linear(2, 2), 2) == {}


def test_types_may_differ_and_half_precision_does_not_overflow():
    module = module_with(
        a=torch.full((4,), 60000.0, dtype=torch.float16),
        b=torch.tensor([50000.0], dtype=torch.float64),
        c=torch.tensor([0.0], dtype=torch.bfloat16),
    )
    norms = grad_norm(module, 2)
    assert list(norms) == ["grad_2.0_norm/a", "grad_2.0_norm/b", "grad_2.0_norm/c", "grad_2.0_norm_total"]
    assert norms["grad_2.0_norm/a"].item() == 120000.0
    assert norms["grad_2.0_norm_total"].item() == 130000.0


def test_sparse_gradients_count_with_doubled_entries_added_up():
    torch.sparse.check_sparse_tensor_invariants.disable()
    sparse = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([1.0, 2.0]), (3,))
    assert grad_norm(module_with(a=sparse), 2)["grad_2.0_norm/a"].item() == 3.0


def test_the_device_is_not_waited_for():
    grad_norm(module_with(a=torch.ones(3, device="meta")), 2)  # reading a meta tensor's value would raise


@pytest.mark.parametrize("norm_type", [0, -1, "nan", "two", None])
def test_other_norms_are_refused(norm_type):
    with pytest.raises(ValueError, match=f"norm_type={norm_type!r} is not a number above 0"):
        grad_norm(nn.Linear(1, 1), norm_type)
