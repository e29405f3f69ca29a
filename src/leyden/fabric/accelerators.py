"""The kinds of device a run may use: how many there are, choosing one, its memory statistics."""

from __future__ import annotations

import torch

from leyden.utils.optional import require


class Accelerator:
    """The CPU, which is one device however many cores it has; the base of the other kinds."""

    name = "cpu"

    @staticmethod
    def is_available() -> bool:
        """True when this machine has at least one such device that torch can use."""
        return True

    def count(self) -> int:
        """How many such devices this process sees."""
        return 1

    def device(self, index: int) -> torch.device:
        """The device with this index, from 0."""
        return torch.device(self.name)

    def setup(self, device: torch.device) -> None:
        """Make ``device`` the one that this process uses by default."""

    def memory_stats(self, device: torch.device) -> dict[str, float]:
        """Figures about ``device`` by name; for the CPU percentages in use, which need psutil.

        Raises:
            ModuleNotFoundError: psutil is missing.
        """
        psutil = require("psutil", "Statistics of the CPU")
        return {
            "cpu_percent": psutil.cpu_percent(),
            "cpu_vm_percent": psutil.virtual_memory().percent,
            "cpu_swap_percent": psutil.swap_memory().percent,
        }

    def teardown(self) -> None:
        """Give back what the device keeps cached; tensors in use stay."""


class CUDAAccelerator(Accelerator):
    """NVIDIA GPUs, and AMD's through ROCm."""

    name = "cuda"

    @staticmethod
    def is_available() -> bool:
        """True when torch is built for CUDA and sees a GPU; does not initialise CUDA."""
        return torch.cuda.device_count() > 0

    def count(self) -> int:
        """How many GPUs ``CUDA_VISIBLE_DEVICES`` lets this process see."""
        return torch.cuda.device_count()

    def device(self, index: int) -> torch.device:
        """The GPU with this index, counted within ``CUDA_VISIBLE_DEVICES``."""
        return torch.device("cuda", index)

    def setup(self, device: torch.device) -> None:
        """Make ``device`` the current one of this process."""
        torch.cuda.set_device(device)

    def memory_stats(self, device: torch.device) -> dict[str, float]:
        """What ``torch.cuda.memory_stats`` counts, in bytes where a name says bytes; does not wait for the GPU."""
        return dict(torch.cuda.memory_stats(device))

    def teardown(self) -> None:
        """Give cached memory back to the driver."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


class MPSAccelerator(Accelerator):
    """The GPU of an Apple computer."""

    name = "mps"

    @staticmethod
    def is_available() -> bool:
        """True on a Mac whose GPU torch can use."""
        return torch.backends.mps.is_available()

    def device(self, index: int) -> torch.device:
        """The one GPU."""
        return torch.device("mps", index)

    def memory_stats(self, device: torch.device) -> dict[str, float]:
        """Bytes held by tensors, and bytes held from the driver with what is cached."""
        return {
            "allocated_bytes": torch.mps.current_allocated_memory(),
            "driver_allocated_bytes": torch.mps.driver_allocated_memory(),
        }

    def teardown(self) -> None:
        """Give cached memory back to the driver."""
        torch.mps.empty_cache()


# The best first: the order in which accelerator="auto" tries them.
ACCELERATORS: dict[str, type[Accelerator]] = {"cuda": CUDAAccelerator, "mps": MPSAccelerator, "cpu": Accelerator}


def available_accelerators() -> list[str]:
    """Names of the kinds of device that this machine has, the best first."""
    return [name for name, kind in ACCELERATORS.items() if kind.is_available()]
