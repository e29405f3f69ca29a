"""Strategy: where a module lives and how its processes talk; this one is a single device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from leyden.fabric.accelerators import ACCELERATORS, Accelerator
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.fabric.precision import Precision
from leyden.utils.errors import MisconfigurationError, nearest

T = TypeVar("T")

REDUCTIONS = ("mean", "avg", "sum", "min", "max", "product")


class Strategy:
    """One process on one device; the base of those for several.

    Attributes:
        device: Where the module and its batches go.
        precision: Which number types it computes in.
        checkpoint_io: How checkpoints get to disk.
    """

    name = "single_device"

    world_size = 1
    global_rank = 0
    local_rank = 0
    node_rank = 0
    num_nodes = 1
    is_global_zero = True

    def __init__(
        self,
        device: torch.device | str,
        precision: Precision | None = None,
        checkpoint_io: CheckpointIO | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision or Precision()
        self.checkpoint_io = checkpoint_io or CheckpointIO()

    def setup_environment(self) -> None:
        """Make this process ready to use its device; the first thing a run does."""
        ACCELERATORS.get(self.device.type, Accelerator)().setup(self.device)

    def setup_module(self, module: nn.Module) -> nn.Module:
        """``module`` in its precision's type and on the device; changed in place."""
        module = self.precision.convert_module(module)
        return module if _is_on(module, self.device) else module.to(self.device)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Inside, ``module``'s gradients stay in this process, as while accumulating; nothing to do on one device."""
        return nullcontext()

    def barrier(self, name: str | None = None) -> None:
        """Wait until every process is here."""

    def broadcast(self, obj: T, src: int = 0) -> T:
        """The ``obj`` of process ``src``, in every process. All of them must call it."""
        return obj

    def all_gather(self, tensor: T, sync_grads: bool = False) -> T:
        """The tensors of all processes, stacked in a new first dimension; on one device ``tensor`` as it is."""
        return tensor

    def reduce(self, tensor: T, op: str = "mean") -> T:
        """The tensors of all processes made one, in every process. All of them must call it.

        Raises:
            MisconfigurationError: ``op`` is unknown.
        """
        if op not in REDUCTIONS:
            raise MisconfigurationError(
                f"reduce_op={op!r} is unknown. Choose one of: {', '.join(REDUCTIONS)}.{nearest(op, REDUCTIONS)}"
            )
        return tensor

    def any(self, flag: bool) -> bool:
        """True when ``flag`` is true in some process. All of them must call it."""
        return flag

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, once for all processes; ``storage_options`` go to the checkpoint_io."""
        self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool = True) -> dict[str, Any]:
        """What ``path`` holds; only tensors and plain data unless ``weights_only`` is False, which runs its code."""
        return self.checkpoint_io.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete ``path``, once for all processes."""
        self.checkpoint_io.remove_checkpoint(path)

    def teardown(self, module: nn.Module | None = None, optimizers: list[Optimizer] | None = None) -> None:
        """End a run. The module stays on its device, where it can go on being used."""


def _is_on(module: nn.Module, device: torch.device) -> bool:
    """True when ``module.to(device)`` would change nothing; False where a class of it moves things in its own way."""
    if getattr(module.to, "__func__", None) is not nn.Module.to:
        return False
    for part in module.modules():
        if getattr(part._apply, "__func__", None) is not nn.Module._apply:
            return False
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            if tensor is not None and tensor.device != device:
                return False
    return True
