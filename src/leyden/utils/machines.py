"""What the machines of a run have: processors for loader workers, and a file system in common or not."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from leyden.utils.paths import AnyPath, is_remote


def suggested_max_num_workers(local_world_size: int) -> int:
    """The most workers that each process' DataLoader should have: the processors, shared out, less one to train.

    Args:
        local_world_size: Processes that train on this machine.

    Raises:
        ValueError: ``local_world_size`` is less than 1.
    """
    if local_world_size < 1:
        raise ValueError(f"local_world_size={local_world_size!r} is less than 1, the number of processes here.")
    return max(1, _processors() // local_world_size - 1)


def _processors() -> int:
    """Processors that this process may use; less than there are, where a container or a scheduler says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_shared_filesystem(strategy: Any, path: AnyPath | None = None, timeout: float = 3) -> bool:
    """True when every process sees the same files at ``path``. All processes must call it.

    Tries it out: rank 0 makes a file, and every process looks for it. One process alone, and anything remote, is
    taken as shared.

    Args:
        strategy: How the processes talk: ``trainer.strategy``.
        path: A folder, or a file, whose folder is then meant; None is the current folder.
        timeout: Seconds to wait for the file, which a network's file system may show late.

    Raises:
        FileNotFoundError: There are several processes, and ``path`` is not there on this one.
    """
    if strategy.world_size == 1 or (path is not None and is_remote(path)):
        return True
    folder = Path(os.fspath(path) if path is not None else ".").absolute()
    if not folder.exists():
        raise FileNotFoundError(f"path={os.fspath(folder)!r} is not there, so that it cannot be known to be shared.")
    if not folder.is_dir():
        folder = folder.parent
    ours = None
    try:
        if strategy.is_global_zero:
            descriptor, ours = tempfile.mkstemp(prefix=".leyden-shared-", dir=folder)
            os.close(descriptor)
        missing = not _appears(Path(strategy.broadcast(ours)), timeout)
        return not strategy.any(missing)
    finally:
        if ours is not None:
            Path(ours).unlink(missing_ok=True)


def _appears(file: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not file.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(0.05, timeout))
    return True
