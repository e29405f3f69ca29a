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
