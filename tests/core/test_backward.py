"""The short way into torch's backward pass, beside ``Tensor.backward``."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from leyden.core import backward as subject
from leyden.core.backward import resolve_backward
from models import TinyModel, tiny_loader
from recording import bare

CPU = torch.device("cpu")


def gradients(backward, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = ()) -> list[Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    loss = model(torch.randn(3, 7, dtype=dtype)).square().mean().reshape(shape)
    backward(loss)
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_gradients_are_those_of_tensor_backward_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ours = gradients(resolve_backward(CPU, fast=True), dtype, shape)
    torchs = gradients(Tensor.backward, dtype, shape)
    assert all(torch.equal(one, other) for one, other in zip(ours, torchs, strict=True))


def test_gradients_add_up_over_two_backward_passes() -> None:
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    for _ in range(2):
        resolve_backward(CPU, fast=True)((weight * weight).sum())
    assert torch.equal(weight.grad, torch.tensor([8.0, 12.0]))


def test_the_graph_is_kept_where_that_is_asked_for() -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    loss, backward = weight * weight, resolve_backward(CPU, fast=True)
    backward(loss, retain_graph=True)
    backward(loss)
    assert weight.grad.item() == 12.0
    with pytest.raises(RuntimeError, match="second time"):
        backward(loss)


def test_only_the_inputs_that_are_named_get_gradients() -> None:
    one, other = torch.tensor(3.0, requires_grad=True), torch.tensor(4.0, requires_grad=True)
    resolve_backward(CPU, fast=True)(one * other, inputs=[one])
    assert (one.grad.item(), other.grad) == (4.0, None)


@pytest.mark.parametrize("loss", [torch.ones(2), torch.ones((), dtype=torch.complex64)])
def test_what_cannot_be_propagated_is_refused_as_by_torch(loss: Tensor) -> None:
    loss = loss.requires_grad_() * 2
    with pytest.raises(RuntimeError) as torchs:
        loss.backward()
    with pytest.raises(RuntimeError) as ours:
        resolve_backward(CPU, fast=True)(loss)
    assert str(ours.value) == str(torchs.value)


def test_a_subclass_has_its_own_backward() -> None:
    class Loss(Tensor):
        def backward(self, *args, **options):
            seen.append(args)

    seen: list[object] = []
    resolve_backward(CPU, fast=True)(torch.tensor(1.0, requires_grad=True).as_subclass(Loss))
    assert seen == [()]


def test_whoever_patched_backward_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = Tensor.backward, []

    def patched(self: Tensor, *args: object, **options: object) -> None:
        seen.append(self.ndim)
        real(self, *args, **options)

    monkeypatch.setattr(Tensor, "backward", patched)
    bare(max_steps=3).fit(TinyModel(), tiny_loader(5))
    assert seen == [0, 0, 0]


def test_a_torch_function_mode_sees_the_backward_pass() -> None:
    class Seeing(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen: list[object] = []
    with Seeing():
        bare(max_steps=2).fit(TinyModel(), tiny_loader(5))
    assert seen.count(Tensor.backward) == 2


def test_torchs_log_of_the_engine_is_written_where_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="torch.autograd.graph"):
        gradients(resolve_backward(CPU, fast=True))
    assert any("Executing" in record.getMessage() for record in caplog.records)


def test_torchs_own_way_is_taken_with_the_fast_paths_off_and_on_other_devices() -> None:
    plain = resolve_backward(CPU, fast=False)
    assert plain is resolve_backward(torch.device("cuda"), fast=True)
    assert plain is not resolve_backward(CPU, fast=True)


def test_an_unknown_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_RUN_BACKWARD", None)
    assert resolve_backward(CPU, fast=True) is resolve_backward(CPU, fast=False)
