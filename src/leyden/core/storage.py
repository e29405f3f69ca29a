"""What can be refused before the first step of checkpoints that a run is going to save: the place, and the content."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from leyden.core.checkpoint import PARTS
from leyden.core.run import Run
from leyden.fabric.unsafe import unsafe_places
from leyden.utils.errors import CheckpointError
from leyden.utils.paths import atomic_write, free_bytes, is_remote, join, make_dirs, remove
from leyden.utils.tree import tree_leaves

# Tensors of a parameter's size that an optimizer will keep, by its class, where its options do not say.
_KEPT = {"RMSprop": 1, "Rprop": 2, "Adadelta": 2, "Adagrad": 1}


def check_folder(folder: str) -> None:
    """Refuse a folder that cannot be written to, by a try; the folder is not made.

    Raises:
        CheckpointError: It names the folder and the cause.
    """
    made: list[str] = []
    try:
        if is_remote(folder):
            trial = join(folder, f".trial-{os.getpid()}")
            with atomic_write(trial) as file:
                file.write(b"\n")
            with suppress(OSError):  # whoever may write may not be allowed to remove
                remove(trial)
            return
        above = folder
        while above and not os.path.lexists(above):
            made.append(above)
            above = os.path.dirname(above)
        make_dirs(folder)
        descriptor, trial = tempfile.mkstemp(dir=folder, prefix=".trial-")
        try:
            os.write(descriptor, b"\n" * 512)
        finally:
            os.close(descriptor)
            os.unlink(trial)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(
            f"Checkpoints cannot be saved in {folder}: {reason}. Give ModelCheckpoint another dirpath=, or the Trainer "
            "another default_root_dir=; enable_checkpointing=False saves none."
        ) from error
    finally:
        for empty in made:
            with suppress(OSError):  # somebody else uses it already
                os.rmdir(empty)


def check_space(run: Run, folder: str, weights_only: bool, copies: float) -> None:
    """Refuse a disk with less room than ``copies`` checkpoints take, as estimated before the first step.

    Raises:
        CheckpointError: It names the folder and the numbers of bytes.
    """
    free = free_bytes(folder)
    if not free:  # remote, or a file system that does not tell
        return
    size = size_of_checkpoint(run, weights_only)
    needed = math.ceil(copies * size)
    if free < needed:
        raise CheckpointError(
            f"{folder} has too little space for the checkpoints of this run: one takes about {size:,} bytes, and with "
            f"the one that it replaces {needed:,} are needed, but {free:,} are free. Make room, give ModelCheckpoint "
            "another dirpath=, or save_weights_only=True, which leaves out the optimizers."
        )


def size_of_checkpoint(run: Run, weights_only: bool = False) -> int:
    """About how many bytes a checkpoint of ``run`` will take: weights and, unless left out, what optimizers keep.

    An optimizer that has not stepped yet counts with what its class and options tell; one of an unknown kind with
    nothing.
    """
    size = _bytes(run.module.state_dict())
    for optimizer in () if weights_only else run.optimizers:
        size += _bytes(list(optimizer.state.values())) if optimizer.state else _to_be_kept(optimizer)
    return size


def _bytes(nested: Any) -> int:
    """Bytes of all tensors, each storage counted once, as torch.save writes them."""
    storages = {}
    for tensor in _tensors(nested):
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a subclass without one
            storages[id(tensor)] = tensor.numel() * tensor.element_size()
        else:
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


def _tensors(nested: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor))


def _to_be_kept(optimizer: Optimizer) -> int:
    size = 0
    for group in optimizer.param_groups:
        if "betas" in group:
            kept = 2 + bool(group.get("amsgrad"))
        else:
            kept = _KEPT.get(type(optimizer).__name__, 0) + bool(group.get("momentum")) + bool(group.get("centered"))
        own = sum(p.numel() * p.element_size() for p in group["params"] if p.requires_grad)
        size += kept * own
    return size


def check_content(run: Run, weights_only: bool) -> None:
    """Refuse state that a checkpoint could not be read back with under ``weights_only=True``.

    Looks at what module, datamodule, callbacks, optimizers and schedulers have to say now, without copying or writing,
    and without calling ``on_save_checkpoint``, which may rely on being called when there is something to save. Whoever
    has given LD040 an action in ``Trainer(warnings=)`` has decided already.

    Raises:
        CheckpointError: It names the places.
    """
    if "LD040" in (run.options.warnings or {}):
        return
    places: list[str] = []
    for part in PARTS:
        if part.key == "leyden" or (weights_only and part.to_resume):
            continue
        try:
            value = part.capture(run)
        except Exception:  # not before there is something to save can it be said to fail
            continue
        if value is not None:
            places += unsafe_places({part.place(run): value})
    if places:
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        raise CheckpointError(
            f"The checkpoints of this run could not be read back: they would hold {', '.join(places[:3])}{more}. Keep "
            "plain numbers, strings, containers and tensors in state_dict(). A class that you trust is let in by "
            "torch.serialization.add_safe_globals([TheClass]), here and where the checkpoint is read. To save it all "
            "the same, and read it with weights_only=False, give Trainer(warnings={'LD040': 'ignore'})."
        )
