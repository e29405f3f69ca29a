"""Accelerators: what this machine has, and figures about it."""

from __future__ import annotations

import pytest
import torch

from leyden.fabric.accelerators import (
    ACCELERATORS,
    Accelerator,
    CUDAAccelerator,
    MPSAccelerator,
    available_accelerators,
)


def test_the_cpu_is_always_there_and_is_one_device():
    cpu = Accelerator()
    assert cpu.is_available()
    assert cpu.count() == 1
    assert cpu.device(0) == torch.device("cpu")
    assert available_accelerators()[-1] == "cpu"


def test_figures_about_the_cpu_are_percentages():
    pytest.importorskip("psutil")
    figures = Accelerator().memory_stats(torch.device("cpu"))
    assert set(figures) == {"cpu_percent", "cpu_vm_percent", "cpu_swap_percent"}
    assert 0 < figures["cpu_vm_percent"] <= 100


def test_setting_up_and_tearing_down_the_cpu_does_nothing():
    Accelerator().setup(torch.device("cpu"))
    Accelerator().teardown()


def test_every_accelerator_is_listed_under_its_name():
    assert {name: kind.name for name, kind in ACCELERATORS.items()} == {"cuda": "cuda", "mps": "mps", "cpu": "cpu"}


def test_devices_carry_their_index():
    assert CUDAAccelerator().device(1) == torch.device("cuda:1")
    assert MPSAccelerator().device(0) == torch.device("mps:0")


@pytest.mark.gpu
def test_a_gpu_becomes_current_and_counts_its_bytes():
    gpu = CUDAAccelerator()
    device = gpu.device(gpu.count() - 1)
    gpu.setup(device)
    assert torch.cuda.current_device() == device.index
    kept = torch.ones(1024, device=device)
    assert gpu.memory_stats(device)["allocated_bytes.all.current"] >= kept.nbytes
    gpu.teardown()
