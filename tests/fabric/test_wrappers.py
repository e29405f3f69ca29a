"""What setup() returns: it behaves as what went in, on the chosen device and in the chosen precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from leyden.fabric.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from leyden.fabric.wrappers import WrappedLoader, WrappedModule, WrappedOptimizer, unwrap


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("steps", torch.zeros(()))
        self.limit = 3
        self.seen = None

    def forward(self, x, double=None):
        self.seen = x.dtype
        return {"out": self.layer(x), "count": 1}

    def encode(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def describe(self):
        return f"limit {self.limit}"


def wrapped(precision=None):
    precision = precision or Precision()
    return WrappedModule(precision.convert_module(Net()), precision)


BF16 = MixedPrecision("bf16-mixed", "cpu")


# Modules


def test_names_are_those_of_the_module_itself():
    model = wrapped()
    net = model.module
    assert list(model.state_dict()) == ["steps", "layer.weight", "layer.bias"]
    assert [name for name, _ in model.named_parameters()] == ["layer.weight", "layer.bias"]
    assert [name for name, _ in model.named_buffers()] == ["steps"]
    assert [name for name, _ in model.named_modules()] == ["", "layer"]
    assert list(model.parameters()) == list(net.parameters())
    assert model.get_submodule("layer") is net.layer


def test_the_state_dict_loads_into_the_module_and_back():
    model, plain = wrapped(), Net()
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.layer.weight, plain.layer.weight)
    plain.load_state_dict(model.state_dict())


def test_inside_another_module_names_have_that_module_s_prefix():
    outer = nn.ModuleDict({"net": wrapped()})
    assert list(outer.state_dict()) == ["net.steps", "net.layer.weight", "net.layer.bias"]
    assert [name for name, _ in outer.named_parameters()] == ["net.layer.weight", "net.layer.bias"]


def test_attributes_are_read_from_and_written_to_the_module():
    model = wrapped()
    assert model.limit == 3
    model.limit = 5
    assert model.module.limit == 5
    assert model.describe() == "limit 5"
    model.head = nn.Linear(2, 1)
    assert "head.weight" in model.module.state_dict()


def test_an_attribute_that_nobody_has_is_named_as_the_module_s():
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'limitt'"):
        _ = wrapped().limitt


def test_train_and_eval_reach_the_module_and_its_parts():
    model = wrapped()
    model.eval()
    assert not (model.training or model.module.training or model.layer.training)
    model.train()
    assert model.training and model.module.training and model.layer.training


def test_float32_calls_the_module_as_it_is():
    model, batch = wrapped(), torch.ones(1, 2)
    assert torch.equal(model(batch)["out"], model.module(batch)["out"])


@pytest.mark.parametrize(
    ("precision", "inside"),
    [(HalfPrecision("bf16-true"), torch.bfloat16), (DoublePrecision(), torch.float64), (BF16, torch.float32)],
)
def test_inputs_are_cast_and_outputs_are_float32(precision, inside):
    model = wrapped(precision)
    output = model(x=torch.ones(1, 2))
    assert model.module.seen == inside
    assert output["out"].dtype == torch.float32
    assert output["count"] == 1


def test_a_training_step_computes_in_the_precision():
    exact = wrapped()
    model = WrappedModule(exact.module, BF16)
    batch = torch.full((4, 2), 1 / 3)
    difference = (model.training_step(batch, 0) - exact.training_step(batch, 0)).abs().item()
    assert 0 < difference < 0.1


def test_a_marked_method_computes_in_the_precision():
    model, batch = wrapped(HalfPrecision("bf16-true")), torch.ones(1, 2)
    model.mark_forward_method("encode")
    assert model.encode(batch).dtype == torch.float32
    model.mark_forward_method(model.module.encode)


@pytest.mark.parametrize("precision", [BF16, HalfPrecision("bf16-true"), DoublePrecision()])
def test_an_unmarked_method_that_computes_is_refused(precision):
    model = wrapped(precision)
    with pytest.raises(RuntimeError, match=r"encode\(\) runs Linear outside.*mark_forward_method\('encode'\)"):
        model.encode(torch.ones(1, 2))
    assert model.describe() == "limit 3"
    nn.Linear(2, 2)(torch.ones(1, 2))  # the watch is over


def test_an_unmarked_method_may_compute_inside_autocast():
    with BF16.forward_context():
        assert wrapped(BF16).encode(torch.ones(1, 2)).dtype == torch.bfloat16


def test_an_unmarked_method_may_compute_in_float32():
    assert wrapped().encode(torch.ones(1, 2)).dtype == torch.float32


def test_marking_a_method_that_is_not_there_names_the_nearest():
    with pytest.raises(AttributeError, match=r"Net has no method 'encod'. Did you mean 'encode'\?"):
        wrapped().mark_forward_method("encod")


def test_a_copy_is_independent():
    model = wrapped()
    other = copy.deepcopy(model)
    other.limit = 7
    with torch.no_grad():
        other.layer.weight.zero_()
    assert model.limit == 3
    assert model.layer.weight.abs().sum() > 0
    assert torch.equal(other(torch.ones(1, 2))["out"], other.layer.bias.reshape(1, 2))


def test_a_compiled_module_keeps_its_names_and_is_called_compiled():
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    net = Net()
    model = WrappedModule(torch.compile(net, backend=backend), Precision())
    assert list(model.state_dict()) == ["steps", "layer.weight", "layer.bias"]
    assert unwrap(model) is net
    assert torch.equal(model(torch.ones(1, 2))["out"], net.layer(torch.ones(1, 2)))
    assert calls


# Optimizers


def sgd(**options):
    weight = nn.Parameter(torch.ones(2))
    return weight, torch.optim.SGD([weight], lr=0.5, **options)


def test_a_wrapped_optimizer_is_one_of_its_class():
    _, optimizer = sgd()
    made = WrappedOptimizer(optimizer, Precision())
    assert isinstance(made, torch.optim.SGD)
    assert isinstance(made, torch.optim.Optimizer)
    assert made.param_groups is optimizer.param_groups
    assert made.state_dict() == optimizer.state_dict()
    assert "SGD" in repr(made)


def test_a_wrapped_optimizer_steps_and_clears():
    weight, optimizer = sgd()
    made = WrappedOptimizer(optimizer, Precision())

    def closure():
        weight.sum().backward()
        return "the loss"

    assert made.step(closure) == "the loss"
    assert weight.tolist() == [0.5, 0.5]
    made.zero_grad()
    assert weight.grad is None


def test_schedulers_take_a_wrapped_optimizer():
    weight, optimizer = sgd()
    made = WrappedOptimizer(optimizer, Precision())
    scheduler = torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.1)
    for _ in range(2):
        weight.sum().backward()
        made.step()
        scheduler.step()  # warns if it believes that no step was made
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_a_scheduler_of_the_optimizer_itself_goes_on_working():
    weight, optimizer = sgd()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    made = WrappedOptimizer(optimizer, Precision())
    weight.sum().backward()
    made.step()
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert made.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_missing_attribute_of_an_optimizer_is_named():
    with pytest.raises(AttributeError, match="'SGD' object has no attribute 'stepp'"):
        WrappedOptimizer(sgd()[1], Precision()).stepp()


# Loaders


class EpochSampler(RandomSampler):
    def __init__(self, source):
        super().__init__(source)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def loader_of(**options):
    return DataLoader(TensorDataset(torch.arange(6.0), torch.arange(6)), batch_size=4, **options)


def test_batches_come_on_the_device():
    loader = WrappedLoader(loader_of(), torch.device("meta"))
    assert [x.is_meta and y.is_meta for x, y in loader] == [True, True]


def test_without_a_device_batches_come_as_they_are():
    assert [x.tolist() for x, _ in WrappedLoader(loader_of())] == [[0, 1, 2, 3], [4, 5]]


def test_everything_else_is_the_loader_s():
    loader = WrappedLoader(loader_of())
    assert len(loader) == 2
    assert loader.batch_size == 4
    assert len(loader.dataset) == 6
    with pytest.raises(AttributeError, match="'DataLoader' object has no attribute 'batchsize'"):
        _ = loader.batchsize


def test_the_sampler_learns_which_epoch_begins():
    sampler = EpochSampler(range(6))
    loader = WrappedLoader(loader_of(sampler=sampler), torch.device("cpu"))
    for _ in range(2):
        list(loader)
    loader.set_epoch(7)
    list(loader)
    list(loader)
    assert sampler.epochs == [0, 1, 7, 8]


def test_a_batch_sampler_learns_it_too():
    class EpochBatches(torch.utils.data.BatchSampler):
        epochs = ()

        def set_epoch(self, epoch):
            self.epochs = (*self.epochs, epoch)

    sampler = EpochSampler(range(6))
    batches = EpochBatches(sampler, 2, False)
    list(WrappedLoader(DataLoader(range(6), batch_sampler=batches)))
    assert batches.epochs == (0,)
    assert sampler.epochs == [0]


def test_unwrapping_gives_back_what_went_in():
    net, (_, optimizer), loader = Net(), sgd(), loader_of()
    assert unwrap(WrappedModule(net, Precision())) is net
    assert unwrap(WrappedOptimizer(optimizer, Precision())) is optimizer
    assert unwrap(WrappedLoader(loader)) is loader
    assert unwrap(3) == 3
