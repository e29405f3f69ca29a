"""What a GPU can compute at best, by its name and the type of the numbers."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch

from leyden.utils.errors import warn


class _Peaks(NamedTuple):
    """Tera-operations a second in matrix products, by type; None where the chip has no units for the type.

    With tensor cores where there are any for the type, summing up in float32 as torch does, and dense: datasheets of
    Ampere and later often print the doubled rates of sparse matrices.
    """

    float64: float | None
    float32: float
    tf32: float | None
    bfloat16: float | None
    float16: float
    int8: float | None


def _turing(float32: float) -> _Peaks:
    # NVIDIA Turing architecture whitepaper, table 4 and appendices.
    return _Peaks(float32 / 32, float32, None, None, 4 * float32, 16 * float32)


def _geforce(float32: float) -> _Peaks:
    # Tensor cores at half the rate of the professional cards when they sum up in float32.
    return _Peaks(float32 / 64, float32, float32, 2 * float32, 2 * float32, 8 * float32)


def _professional(float32: float) -> _Peaks:
    return _Peaks(float32 / 64, float32, 2 * float32, 4 * float32, 4 * float32, 8 * float32)


_H100 = _Peaks(67, 67, 494.7, 989.4, 989.4, 1978.9)
_H100_NVL = _Peaks(60, 60, 417.5, 835.5, 835.5, 1670.5)
_A100 = _Peaks(19.5, 19.5, 156, 312, 312, 624)

_CHIPS = {
    # Blackwell: NVIDIA HGX B200 and B300 specifications, an eighth; NVIDIA Blackwell datasheet for GB200.
    "b300": _Peaks(1.25, 75, 1125, 2250, 2250, 125),
    "b200": _Peaks(37, 75, 1125, 2250, 2250, 4500),
    "gb200": _Peaks(40, 80, 1250, 2500, 2500, 5000),
    # Hopper: NVIDIA H100, H200 and GH200 datasheets; H100 architecture whitepaper, table 2.
    "h200": _H100,
    "gh200": _H100,
    "h200 nvl": _H100_NVL,
    "h100": _H100,
    "h100 nvl": _H100_NVL,
    "h100 pcie": _Peaks(51.2, 51.2, 378, 756, 756, 1513),
    # Ada: NVIDIA L4, L40 and L40S datasheets; Ada architecture whitepaper for professional cards, appendix A.
    "l4": _Peaks(30.3 / 64, 30.3, 60, 121, 121, 242.5),
    "l40": _Peaks(90.5 / 64, 90.5, 90.5, 181, 181, 362),
    "l40s": _Peaks(91.6 / 64, 91.6, 183, 362, 362, 733),
    "rtx 6000 ada": _professional(91.1),
    # Ampere: NVIDIA A100, A30, A10, A2 and A40 datasheets; A10G datasheet of NVIDIA and AWS; RTX A6000 datasheet.
    "a100": _A100,
    "a100 pcie": _A100,
    "a30": _Peaks(10.3, 10.3, 82, 165, 165, 330),
    "a40": _professional(37.42),
    "a10": _professional(31.24),
    "a10g": _Peaks(35 / 64, 35, 35, 70, 70, 140),
    "a2": _professional(4.5),
    "rtx a6000": _professional(38.7),
    # Turing: NVIDIA T4 datasheet.
    "t4": _Peaks(8.1 / 32, 8.1, None, None, 65, 130),
    # Volta: NVIDIA V100 and V100S datasheets.
    "v100": _Peaks(7.8, 15.7, None, None, 125, None),
    "v100 pcie": _Peaks(7, 14, None, None, 112, None),
    "v100s pcie": _Peaks(8.2, 16.4, None, None, 130, None),
    # GeForce RTX 50: NVIDIA RTX Blackwell architecture whitepaper, appendix; GeForce product pages.
    "rtx 5090": _geforce(104.8),
    "rtx 5080": _geforce(56.3),
    "rtx 5070 ti": _geforce(43.9),
    "rtx 5070": _geforce(30.9),
    "rtx 5060 ti": _geforce(23.7),
    "rtx 5060": _geforce(19.2),
    "rtx 5050": _geforce(13.2),
    # GeForce RTX 40: NVIDIA Ada architecture whitepaper, appendix; GeForce product pages.
    "rtx 4090": _geforce(82.6),
    "rtx 4080 super": _geforce(52.2),
    "rtx 4080": _geforce(48.7),
    "rtx 4070 ti super": _geforce(44.1),
    "rtx 4070 ti": _geforce(40.1),
    "rtx 4070 super": _geforce(35.5),
    "rtx 4070": _geforce(29.1),
    "rtx 4060 ti": _geforce(22.1),
    "rtx 4060": _geforce(15.1),
    # GeForce RTX 30: NVIDIA Ampere GA102 architecture whitepaper, tables 2, 4 and appendix; GeForce product pages.
    "rtx 3090 ti": _geforce(40.0),
    "rtx 3090": _geforce(35.6),
    "rtx 3080 ti": _geforce(34.1),
    "rtx 3080": _geforce(29.8),
    "rtx 3070 ti": _geforce(21.7),
    "rtx 3070": _geforce(20.3),
    "rtx 3060 ti": _geforce(16.2),
    "rtx 3060": _geforce(12.7),
    "rtx 3050": _geforce(9.1),
    # GeForce RTX 20: NVIDIA Turing architecture whitepaper, reference cards.
    "rtx 2080 ti": _turing(13.4),
    "rtx 2080 super": _turing(11.2),
    "rtx 2080": _turing(10.1),
    "rtx 2070 super": _turing(9.1),
    "rtx 2070": _turing(7.5),
    "rtx 2060 super": _turing(7.2),
    "rtx 2060": _turing(6.5),
}

# What names say besides the chip, without saying that it is slower; PCIe, NVL, Laptop and MIG do say so.
_BESIDES = re.compile(r"nvidia|tesla|geforce|generation|sxm\d?|\d+gb?|hbm3e?")


def get_available_flops(device: torch.device | str, dtype: torch.dtype | str) -> int | None:
    """Floating-point operations that ``device`` can do a second, at best, in matrix products.

    Dense, with tensor cores, summing up in float32. float32 is as fast as TF32 where
    ``torch.set_float32_matmul_precision`` allows TF32.

    Args:
        device: Other than for CUDA devices nothing is known.
        dtype: The numbers' type, or its name in torch.

    Returns:
        The number; None when it is not known, which warns on a CUDA device.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    name = str(dtype).removeprefix("torch.")
    if name == "float32" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        name = "tf32"
    return peak_flops(torch.cuda.get_device_name(device), name)


def peak_flops(chip: str, dtype: str) -> int | None:
    """Operations a second of the GPU that calls itself ``chip``; None, with a warning, when they are not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bfloat16")
    989400000000000

    Args:
        chip: As ``torch.cuda.get_device_name`` has it.
        dtype: ``"tf32"`` or the name of a type in torch.
    """
    words = (word for word in re.split(r"[^a-z0-9]+", chip.lower()) if word and not _BESIDES.fullmatch(word))
    if (peaks := _CHIPS.get(" ".join(words))) is None:
        warn(
            "LD190",
            f"The peak performance of {chip!r} is not known here, so that its utilisation cannot be told. "
            "Pass what its datasheet says: Throughput(available_flops=...).",
            subject=chip,
        )
        return None
    tera: float | None = peaks._asdict().get(dtype)
    if tera is None and dtype == "tf32":
        tera = peaks.float32
    if tera is None:
        warn(
            "LD191",
            f"{chip!r} has no units for {dtype}, so that its peak performance in this type is not known.",
            subject=f"{chip} {dtype}",
        )
        return None
    return round(tera * 1e12)
