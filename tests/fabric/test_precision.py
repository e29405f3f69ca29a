"""Precisions: number types of weights and computation, the scaled loss of float16, clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from leyden.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from leyden.utils.errors import MisconfigurationError


def scaled(scale=1024.0, **options):
    """float16 with a scaled loss, which the CPU can compute too."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale, **options))


def model_and_optimizer(kind=torch.optim.SGD, seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Linear(4, 2)
    return model, kind(model.parameters(), **{"lr": 0.1, **options})


def loss_of(model, factor=1.0):
    return (model(torch.arange(8.0).reshape(2, 4)) * factor).square().mean()


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


def true_gradients(factor=1.0):
    model, _ = model_and_optimizer()
    loss_of(model, factor).backward()
    return gradients(model)


# float32


def test_float32_leaves_everything_as_it_is():
    precision, (model, _) = Precision(), model_and_optimizer()
    batch = torch.ones(2, dtype=torch.float64)
    assert precision.convert_module(model) is model
    assert precision.convert_input(batch) is batch
    assert precision.convert_output(batch) is batch
    assert not (precision.casts_input or precision.has_context or precision.needs_closure_first)
    assert precision.in_forward_context()
    assert precision.state_dict() == {}
    assert precision.state_key == "Precision"
    with precision.forward_context(), precision.init_context():
        assert torch.ones(1).dtype == torch.float32


def test_float32_steps_as_the_optimizer_does():
    precision = Precision()
    model, optimizer = model_and_optimizer()
    by_hand, its_optimizer = model_and_optimizer()
    for one, its, step in ((model, optimizer, precision.step), (by_hand, its_optimizer, None)):
        precision.backward(loss_of(one)) if step else loss_of(one).backward()
        step(its) if step else its.step()
    assert torch.equal(model.weight, by_hand.weight)


def test_a_closure_is_handed_to_the_optimizer_and_its_result_comes_back():
    model, optimizer = model_and_optimizer(torch.optim.LBFGS, max_iter=3)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        calls.append(loss)
        return loss

    assert Precision().step(optimizer, closure) is calls[0]
    assert len(calls) == 3


def test_further_arguments_of_backward_reach_it():
    model, _ = model_and_optimizer()
    loss = loss_of(model)
    Precision().backward(loss, retain_graph=True)
    Precision().backward(loss)
    assert torch.equal(model.weight.grad, 2 * true_gradients()[0])


# Clipping


def test_clipping_by_norm_is_torch_s_to_the_last_bit():
    model, optimizer = model_and_optimizer()
    by_hand, _ = model_and_optimizer()
    loss_of(model, 9).backward()
    loss_of(by_hand, 9).backward()
    norm = Precision().clip_gradients(optimizer, 0.7)
    expected = nn.utils.clip_grad_norm_(by_hand.parameters(), 0.7)
    assert torch.equal(norm, expected)
    assert norm > 0.7
    assert all(map(torch.equal, gradients(model), gradients(by_hand)))


def test_clipping_by_value_is_torch_s():
    model, optimizer = model_and_optimizer()
    loss_of(model, 9).backward()
    assert Precision().clip_gradients(optimizer, 0.5, "value") is None
    assert all(torch.equal(g, t.clamp(-0.5, 0.5)) for g, t in zip(gradients(model), true_gradients(9), strict=True))


def test_the_groups_of_an_optimizer_are_clipped_as_one():
    model, _ = model_and_optimizer()
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1)
    loss_of(model, 9).backward()
    Precision().clip_gradients(optimizer, 1.0)
    total = math.sqrt(sum(float(g.square().sum()) for g in gradients(model)))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_parameters_without_gradient_are_passed_over():
    model, optimizer = model_and_optimizer()
    model.bias.requires_grad_(False)
    loss_of(model, 9).backward()
    Precision().clip_gradients(optimizer, 1.0)
    assert float(model.weight.grad.norm()) == pytest.approx(1.0, abs=1e-5)


def test_clipping_never_waits_for_the_device():
    weight = torch.ones(3, device="meta", requires_grad=True)
    weight.grad = torch.ones(3, device="meta")
    optimizer = torch.optim.SGD([weight], lr=0.1, foreach=False)
    Precision().clip_gradients(optimizer, 1.0)  # reading a meta tensor's value would raise


def test_an_unknown_clipping_algorithm_is_refused():
    _, optimizer = model_and_optimizer()
    with pytest.raises(MisconfigurationError, match=r"gradient_clip_algorithm='nrom'.*norm, value.*'norm'\?"):
        Precision().clip_gradients(optimizer, 1.0, "nrom")


# Mixed


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    precision, (model, _) = MixedPrecision("bf16-mixed", "cpu"), model_and_optimizer()
    assert precision.convert_module(model).weight.dtype == torch.float32
    assert not precision.in_forward_context()
    with precision.forward_context():
        assert precision.in_forward_context()
        output = model(torch.ones(1, 4))
    assert output.dtype == torch.bfloat16
    assert precision.convert_output({"out": output})["out"].dtype == torch.float32


def test_bfloat16_scales_nothing():
    precision, (model, optimizer) = MixedPrecision("bf16-mixed", torch.device("cpu")), model_and_optimizer()
    loss = loss_of(model)
    assert precision.scale(loss) is loss
    precision.backward(loss)
    precision.unscale(optimizer)
    assert all(map(torch.equal, gradients(model), true_gradients()))
    assert precision.state_dict() == {}
    assert not precision.needs_closure_first
    assert precision.step(optimizer, lambda: loss) is loss


def test_a_scaler_for_bfloat16_is_refused():
    with pytest.raises(MisconfigurationError, match="Leave scaler out, or use '16-mixed'"):
        MixedPrecision("bf16-mixed", "cpu", torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("kind", [lambda name: MixedPrecision(name, "cpu"), HalfPrecision])
def test_another_precision_is_answered_with_those_that_work(kind):
    with pytest.raises(MisconfigurationError, match=r"is unknown\. Choose one of: "):
        kind("8-true")


# The scaled loss of float16


def test_float16_scales_the_loss_and_unscales_the_gradients():
    precision, (model, optimizer) = scaled(), model_and_optimizer()
    precision.backward(loss_of(model))
    assert all(torch.equal(g, 1024 * t) for g, t in zip(gradients(model), true_gradients(), strict=True))
    precision.unscale(optimizer)
    assert all(map(torch.equal, gradients(model), true_gradients()))
    assert precision.needs_closure_first


def test_a_step_without_unscaling_first_uses_the_true_gradients():
    precision, (model, optimizer) = scaled(), model_and_optimizer()
    before = model.weight.detach().clone()
    precision.backward(loss_of(model))
    precision.step(optimizer)
    assert torch.allclose(model.weight, before - 0.1 * true_gradients()[0])


def test_a_step_that_is_not_finite_is_left_out_and_the_scale_falls():
    precision, (model, optimizer) = scaled(), model_and_optimizer()
    before = model.weight.detach().clone()
    precision.backward(loss_of(model, math.inf))
    precision.unscale(optimizer)
    precision.step(optimizer)
    assert torch.equal(model.weight, before)
    assert precision.scaler.get_scale() == 512.0


def test_the_closure_runs_once_before_the_step_and_its_result_comes_back():
    precision, (model, optimizer) = scaled(), model_and_optimizer()
    before = model.weight.detach().clone()
    losses = []

    def closure():
        losses.append(loss_of(model))
        precision.backward(losses[-1])
        return losses[-1]

    assert precision.step(optimizer, closure) is losses[0]
    assert len(losses) == 1
    assert torch.allclose(model.weight, before - 0.1 * true_gradients()[0])


def test_a_step_without_any_gradient_is_no_step():
    precision, (model, optimizer) = scaled(), model_and_optimizer()
    before = model.weight.detach().clone()
    precision.unscale(optimizer)
    assert precision.step(optimizer, lambda: None) is None
    assert torch.equal(model.weight, before)


def test_unscaling_a_second_time_does_nothing():
    precision, (model, optimizer) = scaled(), model_and_optimizer()
    precision.backward(loss_of(model))
    precision.unscale(optimizer)
    precision.clip_gradients(optimizer, 1e9)
    precision.unscale(optimizer)
    assert all(torch.allclose(g, t) for g, t in zip(gradients(model), true_gradients(), strict=True))


def test_gradients_added_to_unscaled_ones_are_refused():
    precision, (model, optimizer) = scaled(), model_and_optimizer()
    precision.backward(loss_of(model))
    precision.unscale(optimizer)
    precision.backward(loss_of(model))
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called"):
        precision.unscale(optimizer)


def test_gradients_cleared_without_a_step_are_unscaled_anew():
    precision, (model, optimizer) = scaled(), model_and_optimizer()
    for _ in range(3):
        optimizer.zero_grad()
        precision.backward(loss_of(model))
        precision.unscale(optimizer)
        assert all(map(torch.equal, gradients(model), true_gradients()))
    precision.step(optimizer)


def test_two_optimizers_unscaled_before_both_step_are_unscaled_once_each():
    precision = scaled()
    pairs = [model_and_optimizer(), model_and_optimizer()]
    before = pairs[0][0].weight.detach().clone()
    for model, optimizer in pairs:
        precision.backward(loss_of(model))
        precision.unscale(optimizer)
    for _, optimizer in pairs:
        precision.step(optimizer)
    for model, _ in pairs:
        assert torch.allclose(model.weight, before - 0.1 * true_gradients()[0], atol=1e-6)


def test_another_optimizer_s_backward_does_not_unscale_twice():
    precision = scaled()
    (model, optimizer), (other, other_optimizer) = model_and_optimizer(), model_and_optimizer()
    precision.backward(loss_of(model))
    precision.unscale(optimizer)
    precision.clip_gradients(optimizer, 1e9)
    precision.backward(loss_of(other))
    precision.unscale(optimizer)
    precision.step(other_optimizer)
    precision.step(optimizer)
    assert torch.equal(model.weight, other.weight)


def test_lbfgs_is_refused_where_the_loss_is_scaled():
    _, optimizer = model_and_optimizer(torch.optim.LBFGS)
    with pytest.raises(MisconfigurationError, match="LBFGS cannot train with precision='16-mixed'"):
        scaled().check_optimizer(optimizer)
    with pytest.raises(MisconfigurationError, match="LBFGS"):
        scaled().step(optimizer, lambda: None)
    MixedPrecision("bf16-mixed", "cpu").check_optimizer(optimizer)
    Precision().check_optimizer(optimizer)


def test_fused_optimizers_unscale_themselves_and_refuse_clipping():
    precision, (model, optimizer) = scaled(), model_and_optimizer(torch.optim.Adam, fused=True)
    precision.backward(loss_of(model))
    precision.unscale(optimizer)
    assert torch.equal(model.weight.grad, 1024 * true_gradients()[0])
    with pytest.raises(RuntimeError, match=r"Adam\(fused=True\).*Use fused=False"):
        precision.clip_gradients(optimizer, 1.0)
    precision.step(optimizer)
    by_hand, its_optimizer = model_and_optimizer(torch.optim.Adam, fused=True)
    loss_of(by_hand).backward()
    its_optimizer.step()
    assert torch.equal(model.weight, by_hand.weight)


def test_fused_optimizers_are_clipped_where_nothing_is_scaled():
    precision, (model, optimizer) = (
        MixedPrecision("bf16-mixed", "cpu"),
        model_and_optimizer(torch.optim.Adam, fused=True),
    )
    precision.backward(loss_of(model, 9))
    assert precision.clip_gradients(optimizer, 1.0) > 1.0


def test_the_scale_is_saved_and_restored():
    precision, (model, optimizer) = scaled(growth_interval=1), model_and_optimizer()
    precision.backward(loss_of(model))
    precision.step(optimizer)
    state = precision.state_dict()
    assert state["scale"] == 2048.0
    other = MixedPrecision("16-mixed", "cpu")
    other.load_state_dict(state)
    assert other.state_dict() == state
    other.load_state_dict({})  # a checkpoint of another precision
    assert other.state_dict() == state


def test_a_bare_backward_on_an_output_is_refused_where_the_loss_is_scaled():
    precision, (model, _) = scaled(), model_and_optimizer()
    loss = precision.convert_output([model(torch.ones(1, 4))])[0].sum()
    with pytest.raises(RuntimeError, match=r"call fabric.backward\(loss\)"):
        loss.backward()
    precision.backward(precision.convert_output(model(torch.ones(1, 4))).sum())


# Half and double


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (HalfPrecision("16-true"), torch.float16),
        (HalfPrecision("bf16-true"), torch.bfloat16),
        (DoublePrecision(), torch.float64),
    ],
)
def test_true_precisions_cast_weights_inputs_and_new_tensors(precision, dtype):
    model = nn.BatchNorm1d(2)
    assert precision.convert_module(model).weight.dtype == dtype
    assert model.num_batches_tracked.dtype == torch.int64
    floats, whole = precision.convert_input((torch.ones(1), torch.ones(1, dtype=torch.int64)))
    assert (floats.dtype, whole.dtype) == (dtype, torch.int64)
    assert precision.convert_output(floats).dtype == torch.float32
    for context in (precision.forward_context, precision.init_context):
        with context():
            assert torch.ones(1).dtype == dtype
            assert precision.in_forward_context()
        assert torch.ones(1).dtype == torch.float32
    assert not precision.in_forward_context()
    assert precision.casts_input
    assert precision.has_context


def test_the_default_type_comes_back_after_a_failure():
    with pytest.raises(KeyError), DoublePrecision().forward_context():
        raise KeyError
    assert torch.get_default_dtype() == torch.float32


def test_double_precision_computes_in_float64():
    model = DoublePrecision().convert_module(nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model.weight.fill_(1 / 3)
    assert model(torch.ones(1, 1, dtype=torch.float64)).item() == 1 / 3


def test_states_are_kept_under_the_class_s_name():
    assert scaled().state_key == "MixedPrecision"
    assert DoublePrecision().state_key == "DoublePrecision"
