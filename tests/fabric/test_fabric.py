"""Fabric: a loop of one's own, on one device."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from leyden.fabric.accelerators import Accelerator
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.fabric.fabric import Fabric
from leyden.fabric.precision import MixedPrecision
from leyden.fabric.strategies.strategy import Strategy
from leyden.loggers.logger import Logger
from leyden.utils.errors import CheckpointError, MisconfigurationError, NotBuiltError


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 4, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


def loader_of(**options):
    return DataLoader(data(), batch_size=5, **options)


def cpu(**options):
    return Fabric(accelerator="cpu", **options)


def float16(scale=1024.0):
    return cpu(plugins=MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale)))


class Nowhere(Accelerator):
    """A device that is visibly not the CPU, on every machine."""

    name = "meta"


class Recorder(Logger):
    def __init__(self):
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((dict(metrics), step))


# Training


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_float32_loop_gives_the_same_bits_as_one_by_hand(kind):
    by_hand = model_of()
    optimizer = kind(by_hand.parameters(), lr=0.05)
    for _ in range(3):
        for x, y in loader_of(shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand(x), y).backward()
            nn.utils.clip_grad_norm_(by_hand.parameters(), 0.3)
            optimizer.step()

    fabric, model = cpu(), model_of()
    model, optimizer = fabric.setup(model, kind(model.parameters(), lr=0.05))
    loader = fabric.setup_dataloaders(loader_of(shuffle=True))
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            fabric.backward(nn.functional.cross_entropy(model(x), y))
            fabric.clip_gradients(model, optimizer, max_norm=0.3)
            optimizer.step()

    assert not torch.equal(by_hand[0].weight, model_of()[0].weight)
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_learns(precision):
    fabric, model = cpu(precision=precision), model_of()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.5))
    losses = []
    for _ in range(15):
        for x, y in fabric.setup_dataloaders(loader_of()):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_float16_learns_with_a_scaled_loss_and_clipping():
    fabric, model = float16(), model_of()
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.5))
    x, y = data().tensors
    before = nn.functional.cross_entropy(model(x), y).item()
    for _ in range(20):
        optimizer.zero_grad()
        fabric.backward(nn.functional.cross_entropy(model(x), y))
        assert fabric.clip_gradients(model, optimizer, max_norm=1.0) < 3  # unscaled first
        optimizer.step()
    assert nn.functional.cross_entropy(model(x), y).item() < 0.6 * before


def test_a_bare_backward_is_refused_where_the_loss_is_scaled():
    fabric = float16()
    model = fabric.setup(nn.Linear(2, 1))
    with pytest.raises(RuntimeError, match=r"call fabric\.backward\(loss\)"):
        model(torch.ones(1, 2)).sum().backward()


def test_autocast_computes_in_the_precision():
    with cpu(precision="bf16-mixed").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_gradients_accumulate_without_synchronising():
    fabric = cpu()
    model = fabric.setup(nn.Linear(1, 1, bias=False))
    for enabled in (True, False):
        with fabric.no_backward_sync(model, enabled=enabled):
            fabric.backward(model(torch.ones(1, 1)).sum())
    assert model.weight.grad.item() == 2.0
    with pytest.raises(TypeError, match=r"takes what setup\(\) returned, got Linear"):
        fabric.no_backward_sync(model.module)


# Clipping


def clipping():
    fabric, model = cpu(), nn.Linear(3, 1, bias=False)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=1.0))
    fabric.backward(model(torch.tensor([[3.0, 0.0, -4.0]])).sum())
    return fabric, model, optimizer


def test_clipping_by_norm_returns_the_norm_before():
    fabric, model, optimizer = clipping()
    assert fabric.clip_gradients(model, optimizer, max_norm=1.0).item() == 5.0
    assert model.weight.grad.tolist() == [pytest.approx([0.6, 0.0, -0.8])]


def test_clipping_by_another_norm():
    fabric, model, optimizer = clipping()
    assert fabric.clip_gradients(model, optimizer, max_norm=1.0, norm_type=float("inf")).item() == 4.0


def test_clipping_by_value():
    fabric, model, optimizer = clipping()
    assert fabric.clip_gradients(model, optimizer, clip_val=1.0) is None
    assert model.weight.grad.tolist() == [[1.0, 0.0, -1.0]]


@pytest.mark.parametrize("options", [{}, {"clip_val": 1.0, "max_norm": 1.0}])
def test_clipping_takes_one_of_value_and_norm(options):
    fabric, model, optimizer = clipping()
    with pytest.raises(ValueError, match="give one of the two"):
        fabric.clip_gradients(model, optimizer, **options)


def test_a_norm_that_is_not_finite_is_an_error_unless_allowed():
    fabric, model, optimizer = clipping()
    model.weight.grad[0, 0] = torch.nan
    fabric.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False)
    with pytest.raises(RuntimeError, match="non-finite"):
        fabric.clip_gradients(model, optimizer, max_norm=1.0)


# Setting up


def test_setup_returns_what_it_was_given():
    fabric, net = cpu(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model, wrapped, same = fabric.setup(net, optimizer, scheduler=scheduler)
    assert model.module is net
    assert wrapped.optimizer is optimizer
    assert same is scheduler
    assert fabric.setup(nn.Linear(1, 1)).weight.shape == (1, 1)
    first, second = fabric.setup_optimizers(torch.optim.SGD(net.parameters()), torch.optim.SGD(net.parameters()))
    assert isinstance(first, torch.optim.SGD) and isinstance(second, torch.optim.SGD)
    assert len(fabric.setup_dataloaders(loader_of(), loader_of())) == 2


def test_nothing_is_set_up_twice():
    fabric, net = cpu(), nn.Linear(1, 1)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters()))
    loader = fabric.setup_dataloaders(loader_of())
    with pytest.raises(ValueError, match="a Linear that is set up already"):
        fabric.setup(model)
    with pytest.raises(ValueError, match="a SGD that is set up already"):
        fabric.setup_optimizers(optimizer)
    with pytest.raises(ValueError, match="a DataLoader that is set up already"):
        fabric.setup_dataloaders(loader)


def test_things_of_another_kind_are_refused():
    fabric, net = cpu(), nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"setup\(\) takes a module, got int"):
        fabric.setup(3)
    with pytest.raises(TypeError, match=r"setup\(\) takes an optimizer, got StepLR"):
        fabric.setup(net, torch.optim.lr_scheduler.StepLR(torch.optim.SGD(net.parameters()), 1))
    with pytest.raises(TypeError, match=r"takes a torch\.utils\.data\.DataLoader, got list"):
        fabric.setup_dataloaders([loader_of()])
    with pytest.raises(ValueError, match="at least one loader"):
        fabric.setup_dataloaders()
    with pytest.raises(ValueError, match="at least one optimizer"):
        fabric.setup_optimizers()


def test_an_optimizer_of_another_module_is_refused():
    other = torch.optim.SGD(nn.Linear(1, 1).parameters())
    with pytest.raises(MisconfigurationError, match="a SGD that has none of Linear's parameters"):
        cpu().setup(nn.Linear(1, 1), other)


def test_lbfgs_is_refused_at_setup_where_the_loss_is_scaled():
    net = nn.Linear(1, 1)
    with pytest.raises(MisconfigurationError, match="LBFGS"):
        float16().setup(net, torch.optim.LBFGS(net.parameters()))


def test_modules_and_batches_go_to_the_device_unless_told_otherwise():
    fabric = Fabric(accelerator=Nowhere())
    assert fabric.setup(nn.Linear(1, 1)).weight.is_meta
    assert not fabric.setup(nn.Linear(1, 1), move_to_device=False).weight.is_meta
    assert next(iter(fabric.setup_dataloaders(loader_of())))[0].is_meta
    assert not next(iter(fabric.setup_dataloaders(loader_of(), move_to_device=False)))[0].is_meta
    assert fabric.to_device({"x": [torch.ones(1)]})["x"][0].is_meta
    assert fabric.to_device(nn.Linear(1, 1)).weight.is_meta
    with fabric.init_module():
        assert nn.Linear(1, 1).weight.is_meta


def test_modules_are_made_in_their_final_type():
    fabric = cpu(precision="bf16-true")
    with fabric.init_module():
        assert nn.Linear(1, 1).weight.dtype == torch.bfloat16
    with fabric.init_tensor():
        assert torch.zeros(1).dtype == torch.bfloat16
    assert torch.zeros(1).dtype == torch.float32


def test_weights_may_be_left_uninitialised():
    before = torch.get_rng_state()
    with cpu().init_module(empty_init=True):
        nn.Sequential(nn.Linear(64, 64), nn.Embedding(64, 64), nn.LayerNorm(8))
    assert torch.equal(torch.get_rng_state(), before)  # nothing was drawn
    with cpu().init_module():
        nn.Linear(2, 2)
    assert not torch.equal(torch.get_rng_state(), before)


# Choosing the hardware


def test_one_device_is_rank_0_of_1():
    fabric = cpu()
    assert fabric.device == torch.device("cpu")
    assert (fabric.world_size, fabric.global_rank, fabric.local_rank, fabric.node_rank) == (1, 0, 0, 0)
    assert fabric.is_global_zero
    assert fabric.accelerator.name == "cpu"
    assert type(fabric.strategy) is Strategy


@pytest.mark.parametrize(
    "options", [{"devices": 2}, {"strategy": "ddp"}, {"num_nodes": 2}, {"precision": "transformer-engine"}]
)
def test_what_is_not_built_is_refused_at_once(options):
    with pytest.raises(NotBuiltError):
        cpu(**options)


def test_plugins_reach_the_strategy():
    checkpoint_io = CheckpointIO()
    fabric = cpu(plugins=[checkpoint_io, MixedPrecision("bf16-mixed", "cpu")])
    assert fabric.strategy.checkpoint_io is checkpoint_io
    assert fabric.strategy.precision.name == "bf16-mixed"


def test_a_strategy_object_brings_its_device_and_precision():
    strategy = Strategy("cpu", MixedPrecision("bf16-mixed", "cpu"))
    assert Fabric(strategy=strategy).strategy is strategy


# Launching and processes


def test_launch_calls_the_function_with_this_fabric():
    fabric = cpu()
    assert fabric.launch(lambda itself, a, b: (itself is fabric, a, b), 1, b=2) == (True, 1, 2)


def test_launching_twice_is_refused():
    fabric = cpu()
    assert fabric.launch() is None
    with pytest.raises(RuntimeError, match="called before"):
        fabric.launch()


def test_launching_a_result_in_place_of_a_function_is_refused():
    with pytest.raises(TypeError, match=r"Write fabric\.launch\(train\), not launch\(train\(\)\)"):
        cpu().launch(3)


def test_collectives_of_one_process_hand_back_what_they_got():
    fabric, value = cpu(), torch.ones(2)
    assert fabric.all_gather(value) is value
    assert fabric.all_reduce({"a": value}, reduce_op="sum")["a"] is value
    assert fabric.broadcast("text") == "text"
    fabric.barrier()
    with fabric.rank_zero_first(), fabric.rank_zero_first(local=True):
        pass


def test_seeding_makes_draws_repeat():
    assert Fabric.seed_everything(3, verbose=False) == 3
    first = torch.rand(2)
    cpu().seed_everything(3, workers=True, verbose=False)
    assert torch.equal(first, torch.rand(2))


# Checkpoints


def trained(fabric, seed=0):
    net = model_of(seed)
    model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), lr=0.1))
    for x, y in loader_of():
        optimizer.zero_grad()
        fabric.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    return model, optimizer


def test_saving_and_loading_gives_everything_back():
    fabric = cpu()
    model, optimizer = trained(fabric)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "step": 5, "note": "kept"}
    fabric.save("a.ckpt", state)

    other, its_optimizer = trained(fabric, seed=1)
    its_scheduler = torch.optim.lr_scheduler.StepLR(its_optimizer, 3)
    into = {"model": other, "optimizer": its_optimizer, "scheduler": its_scheduler, "step": 0}
    assert fabric.load("a.ckpt", into) == {"note": "kept"}
    assert into["step"] == 5
    assert into["model"] is other
    assert its_scheduler.step_size == 7
    assert all(map(torch.equal, other.parameters(), model.parameters()))
    moments, its_moments = (o.state_dict()["state"][0]["exp_avg"] for o in (optimizer, its_optimizer))
    assert torch.equal(moments, its_moments)


def test_a_saved_file_is_plain_torch_and_needs_no_code():
    fabric = cpu()
    fabric.save("a.ckpt", {"model": fabric.setup(nn.Linear(1, 1))})
    assert list(torch.load("a.ckpt", weights_only=True)["model"]) == ["weight", "bias"]
    assert list(fabric.load("a.ckpt")) == ["model"]


def test_a_name_that_the_file_lacks_is_an_error_before_anything_changes():
    fabric = cpu()
    model = fabric.setup(nn.Linear(1, 1))
    fabric.save("a.ckpt", {"model": nn.Linear(1, 1), "step": 1})
    before = model.weight.item()
    into = {"model": model, "steps": 0}
    with pytest.raises(CheckpointError, match=r"a\.ckpt has no 'steps'; it has: 'model', 'step'.*'step'\?"):
        fabric.load("a.ckpt", into)
    assert model.weight.item() == before
    assert fabric.load("a.ckpt", into, strict=False) == {"step": 1}
    assert model.weight.item() != before
    assert into["steps"] == 0


def test_a_filter_keeps_part_of_a_state_dict():
    fabric = cpu()
    model = fabric.setup(nn.Linear(1, 1))
    fabric.save("a.ckpt", {"model": model, "step": 1}, filter={"model": lambda name, value: name == "bias"})
    assert list(fabric.load("a.ckpt")["model"]) == ["bias"]
    fabric.load("a.ckpt", {"model": model}, strict=False)
    with pytest.raises(RuntimeError, match="Missing key"):
        fabric.load("a.ckpt", {"model": model})


@pytest.mark.parametrize(
    ("filter", "error", "says"),
    [
        (3, TypeError, "takes a dict"),
        ({"modle": len}, ValueError, r"names 'modle', which state has not\. Did you mean 'model'\?"),
        ({"model": 3}, TypeError, "for 'model' takes a function"),
        ({"step": len}, TypeError, "something with a state dict"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(filter, error, says):
    with pytest.raises(error, match=says):
        cpu().save("a.ckpt", {"model": nn.Linear(1, 1), "step": 1}, filter=filter)


def test_a_raw_state_dict_loads_into_a_module_or_an_optimizer():
    fabric, net = cpu(), nn.Linear(1, 1)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    torch.save({"weight": torch.full((1, 1), 3.0)}, "weight.pt")
    torch.save(torch.optim.SGD(net.parameters(), lr=0.7).state_dict(), "optimizer.pt")
    fabric.load_raw("weight.pt", model, strict=False)
    fabric.load_raw("optimizer.pt", optimizer)
    assert model.weight.item() == 3.0
    assert optimizer.param_groups[0]["lr"] == 0.7


def test_code_in_a_file_runs_only_when_allowed():
    torch.save({"where": PurePosixPath("there")}, "a.ckpt")
    with pytest.raises(CheckpointError):
        cpu().load("a.ckpt")
    assert cpu().load("a.ckpt", weights_only=False) == {"where": PurePosixPath("there")}


# Telling the user


def test_values_go_to_every_logger_as_numbers():
    recorders = [Recorder(), Recorder()]
    fabric = cpu(loggers=recorders)
    fabric.log("loss", torch.tensor(0.5), step=3)
    fabric.log_dict({"a": 1, "b": 2.5})
    assert recorders[0].lines == recorders[1].lines == [({"loss": 0.5}, 3), ({"a": 1, "b": 2.5}, None)]
    assert fabric.logger is recorders[0]


def test_without_loggers_values_go_nowhere_and_nothing_waits():
    fabric = cpu()
    fabric.log("loss", torch.ones((), device="meta"))  # reading a meta tensor's value would raise
    assert fabric.logger is None


def test_something_that_is_no_logger_is_refused():
    with pytest.raises(TypeError, match="loggers='csv' is not a Logger"):
        cpu(loggers="csv")


def test_printing_prints(capsys):
    cpu().print("loss", 1, sep=": ")
    assert capsys.readouterr().out == "loss: 1\n"


def test_callbacks_are_called_by_name_where_they_have_it():
    class Counts:
        total = 0
        wrong = 3

        def on_step(self, by, twice=False):
            self.total += by * (2 if twice else 1)

    first, second = Counts(), Counts()
    fabric = cpu(callbacks=[first, object(), second])
    fabric.call("on_step", 2, twice=True)
    fabric.call("on_nothing")
    assert (first.total, second.total) == (4, 4)
    with pytest.raises(TypeError, match=r"Counts\.wrong is 3, which cannot be called"):
        fabric.call("wrong")
