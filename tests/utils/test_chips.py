"""What GPUs can do at best, by the names that torch has for them."""

from __future__ import annotations

import warnings

import pytest
import torch

from leyden.utils.chips import get_available_flops, peak_flops
from leyden.utils.errors import LeydenWarning


@pytest.mark.parametrize(
    ("chip", "dtype", "tera"),
    [
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla V100-PCIE-32GB", "float16", 112),
        ("Tesla T4", "float16", 65),
        ("Tesla T4", "float32", 8.1),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA A10", "bfloat16", 124.96),
        ("NVIDIA A10G", "bfloat16", 70),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA RTX 6000 Ada Generation", "bfloat16", 364.4),
        ("NVIDIA GeForce RTX 3090", "bfloat16", 71.2),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "bfloat16", 88.2),
        ("NVIDIA GeForce RTX 5090", "int8", 838.4),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),
        ("NVIDIA GH200 480GB", "bfloat16", 989.4),
        ("NVIDIA H200", "float64", 67),
        ("NVIDIA B200", "bfloat16", 2250),
    ],
)
def test_chips_are_known_by_torchs_names_for_them(chip, dtype, tera):
    assert peak_flops(chip, dtype) == round(tera * 1e12)


@pytest.mark.parametrize(
    "chip",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "Quadro RTX 6000",
    ],
)
def test_slower_chips_of_a_similar_name_are_not_taken_for_the_faster_one(chip):
    with pytest.warns(LeydenWarning, match=f"{chip}.*Throughput\\(available_flops=.*LD190"):
        assert peak_flops(chip, "bfloat16") is None


def test_an_unknown_chip_warns_once():
    with pytest.warns(LeydenWarning, match="LD190"):
        peak_flops("Chip", "float32")
    with warnings.catch_warnings(record=True) as caught:
        assert peak_flops("Chip", "float16") is None
    assert caught == []


@pytest.mark.parametrize(("chip", "dtype"), [("Tesla T4", "bfloat16"), ("NVIDIA H200", "complex64")])
def test_a_type_without_units_warns(chip, dtype):
    with pytest.warns(LeydenWarning, match=f"{chip}.*{dtype}.*LD191"):
        assert peak_flops(chip, dtype) is None


def test_a_chip_without_tf32_computes_it_as_float32():
    assert peak_flops("Tesla T4", "tf32") == peak_flops("Tesla T4", "float32")


@pytest.mark.parametrize("device", ["cpu", "meta", torch.device("cpu")])
def test_nothing_is_known_of_other_devices(device):
    assert get_available_flops(device, torch.float32) is None


@pytest.mark.gpu
def test_float32_is_tf32_where_torch_may_use_it(monkeypatch):
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    before = torch.get_float32_matmul_precision()
    try:
        rates = []
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            rates.append(get_available_flops("cuda", torch.float32))
        assert rates[0] <= rates[1]
    finally:
        torch.set_float32_matmul_precision(before)
