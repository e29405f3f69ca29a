"""Strategy: one process on one device, where collectives have nothing to collect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leyden.fabric.precision import DoublePrecision
from leyden.fabric.strategies.strategy import Strategy
from leyden.utils.errors import MisconfigurationError


def test_one_device_is_rank_0_of_1():
    strategy = Strategy("cpu")
    assert (strategy.world_size, strategy.num_nodes) == (1, 1)
    assert (strategy.global_rank, strategy.local_rank, strategy.node_rank) == (0, 0, 0)
    assert strategy.is_global_zero
    assert strategy.name == "single_device"


def test_a_module_is_cast_and_moved_in_place():
    module = nn.Linear(2, 2)
    weight = module.weight
    assert Strategy("cpu", DoublePrecision()).setup_module(module) is module
    assert module.weight is weight
    assert weight.dtype == torch.float64


def test_a_module_goes_to_the_device():
    assert Strategy("meta").setup_module(nn.Linear(2, 2)).weight.is_meta


class OwnMove(nn.Linear):
    """Counts how often it is told to move, by ``to`` or as a part of a module that is."""

    moves = 0

    def _apply(self, fn, recurse=True):
        self.moves += 1
        return super()._apply(fn, recurse)


class OwnTo(nn.Linear):
    moves = 0

    def to(self, *args, **kwargs):
        self.moves += 1
        return super().to(*args, **kwargs)


def test_classes_that_move_in_their_own_way_are_told_where_they_are_there_already_too():
    assert Strategy("cpu").setup_module(OwnTo(2, 2)).moves == 1
    assert Strategy("cpu").setup_module(nn.Sequential(nn.Linear(2, 2), OwnMove(2, 2)))[1].moves == 1


def test_a_module_of_which_one_tensor_is_elsewhere_is_moved():
    module = nn.Sequential(nn.BatchNorm1d(2, device="meta"), nn.Linear(2, 2, bias=False, device="meta"))
    module[0].register_buffer("there", torch.zeros(1), persistent=False)
    assert Strategy("meta").setup_module(module)[0].there.is_meta
    module[1].weight = nn.Parameter(torch.zeros(2, 2))
    assert Strategy("meta").setup_module(module)[1].weight.is_meta


def test_a_module_that_is_on_the_device_is_left_as_it_is():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    before = {name: (tensor, tensor.data_ptr()) for name, tensor in module.state_dict(keep_vars=True).items()}
    assert Strategy("cpu").setup_module(module) is module
    after = {name: (tensor, tensor.data_ptr()) for name, tensor in module.state_dict(keep_vars=True).items()}
    assert all(after[name][0] is tensor and after[name][1] == place for name, (tensor, place) in before.items())


def test_collectives_hand_back_what_they_got_without_waiting_for_the_device():
    strategy, value = Strategy("meta"), torch.ones(3, device="meta")  # reading a meta tensor's value would raise
    assert strategy.all_gather(value) is value
    assert strategy.reduce(value, "sum") is value
    assert strategy.broadcast(value) is value
    assert strategy.any(True) is True
    assert strategy.any(False) is False
    strategy.barrier("here")
    with strategy.no_sync(nn.Linear(1, 1)):
        pass


def test_an_unknown_reduction_is_refused_on_one_device_too():
    with pytest.raises(MisconfigurationError, match=r"reduce_op='maen' is unknown.*Did you mean 'mean'\?"):
        Strategy("cpu").reduce(torch.ones(1), "maen")


def test_checkpoints_are_saved_loaded_and_removed(tmp_path):
    strategy, path = Strategy("cpu"), tmp_path / "folder" / "a.ckpt"
    strategy.setup_environment()
    strategy.save_checkpoint({"step": 3, "weight": torch.arange(3)}, path)
    assert strategy.load_checkpoint(path)["step"] == 3
    assert strategy.load_checkpoint(path, map_location="meta")["weight"].is_meta
    strategy.remove_checkpoint(path)
    assert not path.exists()


def test_a_module_stays_on_its_device_when_the_run_ends():
    strategy = Strategy("meta")
    module = strategy.setup_module(nn.Linear(2, 2))
    strategy.teardown(module, [torch.optim.SGD(module.parameters())])
    assert module.weight.is_meta
