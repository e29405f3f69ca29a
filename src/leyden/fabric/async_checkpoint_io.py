"""Saving while training goes on: the state is copied at once and written by a thread."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import sys
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import IO, Any

import torch
from torch import TypedStorage, UntypedStorage

from leyden.fabric.checkpoint_io import CheckpointIO, save_error
from leyden.utils.errors import CheckpointError, warn
from leyden.utils.paths import AnyPath


class AsyncCheckpointIO(CheckpointIO):
    """Writes checkpoints in the background, one at a time: ``save_checkpoint`` copies the state and returns.

    While one file is being written the next save waits, so there never is more than one copy of the state. Its memory
    is kept until ``teardown``, as memory that was used before is copied into several times faster. Should the program
    end first, the file under way is still written whole.

    Attributes:
        checkpoint_io: Writes and reads the files.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        if not isinstance(checkpoint_io, CheckpointIO | None):
            raise TypeError(
                f"AsyncCheckpointIO(checkpoint_io={checkpoint_io!r}) is no CheckpointIO. Give one, or none."
            )
        self.checkpoint_io = checkpoint_io or CheckpointIO()
        self._memory = _Memory()
        self._thread: Thread | None = None
        self._path = ""  # which the thread writes, or wrote last
        self._callbacks: list[Callable[[], None]] = []  # for when it is safe
        self._ready: list[Callable[[], None]] = []
        self._failed: list[BaseException] = []  # what the thread met with, until it is raised
        weakref.finalize(self, _report, self._failed)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: AnyPath, storage_options: Any | None = None) -> None:
        """Copy ``checkpoint``, whose tensors may change from then on, and have it written to ``path``.

        Raises:
            CheckpointError: ``checkpoint`` cannot be pickled, or an earlier one could not be written. In neither case
                is this one.
        """
        self.wait()
        path = os.fspath(path)
        try:
            copy = self._memory.copy(checkpoint)
        except Exception as error:
            raise save_error(path, error, checkpoint) from error
        self._path = path
        # Not a daemon: Python waits for it before it ends.
        self._thread = Thread(target=self._write, args=(copy, path, storage_options), name="leyden-checkpoint")
        self._thread.start()

    def _write(self, copy: _Copy, path: str, storage_options: Any) -> None:
        """What the thread does."""
        try:
            self.checkpoint_io.save_checkpoint(copy.restored(), path, storage_options)
            self.checkpoint_io.wait()
        except BaseException as error:
            failure = error
            if not isinstance(error, CheckpointError):
                where = traceback.extract_tb(error.__traceback__)[-1]
                failure = CheckpointError(
                    f"Could not save the checkpoint {path}: {type(error).__name__}: {error} "
                    f"({where.filename}, line {where.lineno})."
                )
                failure.__cause__ = error
            _forget_frames(failure)
            self._failed.append(failure)

    def when_written(self, path: AnyPath, callback: Callable[[str], None]) -> None:
        """Have ``callback(path)`` handed out by ``finished`` once the file is safe.

        What another process writes counts as safe at once.
        """
        path = os.fspath(path)
        under_way = self._thread is not None and path == self._path
        (self._callbacks if under_way else self._ready).append(partial(callback, path))

    def finished(self) -> list[Callable[[], None]]:
        """What ``when_written`` kept for files that are safe by now, to be called in order; does not wait."""
        if self._thread is not None and not self._thread.is_alive() and not self._failed:
            self._settle()
        ready, self._ready = self._ready, []
        return ready

    def wait(self) -> None:
        """Return once the file under way is safe.

        Raises:
            CheckpointError: It could not be written; said once.
        """
        if self._thread is not None:
            self._thread.join()
            self._settle()
        if self._failed:
            raise self._failed.pop()

    def _settle(self) -> None:
        """The thread has ended."""
        self._thread = None
        if not self._failed:
            self._ready += self._callbacks
        self._callbacks = []

    def teardown(self) -> None:
        """Wait for the file under way and give the memory back.

        Raises:
            CheckpointError: The file could not be written.
        """
        try:
            self.wait()
        finally:
            self._memory = _Memory()
            self.checkpoint_io.teardown()

    def load_checkpoint(
        self, path: AnyPath | IO[bytes], map_location: Any = None, weights_only: bool = True
    ) -> dict[str, Any]:
        """Read ``path``, after the file under way is written."""
        if self._thread is not None:
            self._thread.join()
        return self.checkpoint_io.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: AnyPath) -> None:
        """Remove ``path``, after it is written if it is the file under way."""
        if self._thread is not None and os.fspath(path) == self._path:
            self._thread.join()
        self.checkpoint_io.remove_checkpoint(path)


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the frames that ``error`` came through, whose variables hold the whole copy."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _report(failed: list[BaseException]) -> None:
    """Nobody asked any more how the last save went."""
    for error in failed:
        warn("LD220", f"{error} It was saved in the background, and the program ended before it could be told.")


class _Copy:
    """A checkpoint whose tensors are copied: pickled, but for the storages, to which the pickle refers by number."""

    def __init__(self, pickled: bytes, storages: list[TypedStorage | UntypedStorage]) -> None:
        self._pickled = pickled
        self._storages = storages

    def restored(self) -> Any:
        """The checkpoint, its tensors sharing storages as those of the original did."""
        unpickler = pickle.Unpickler(io.BytesIO(self._pickled))
        unpickler.persistent_load = self._storages.__getitem__  # type: ignore[method-assign]
        return unpickler.load()


class _Memory:
    """Memory for one copy of a checkpoint at a time, used again for the next."""

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._references = 0  # to the block, while nobody else has any

    def copy(self, checkpoint: Any) -> _Copy:
        """Copy ``checkpoint``, each storage once, to the CPU. The copy before it must not be needed any more."""
        pickled = io.BytesIO()
        pickler = _Pickler(pickled, pickle.HIGHEST_PROTOCOL)
        pickler.dump(checkpoint)
        storages = [
            storage._untyped_storage if isinstance(storage, TypedStorage) else storage for storage in pickler.storages
        ]
        different = {storage._cdata: storage for storage in storages}
        regions = self._regions([storage.nbytes() for storage in different.values()])
        copies = {}
        for (identity, storage), region in zip(different.items(), regions, strict=True):
            copies[identity] = region.copy_(storage)
            if storage.device.type != "cpu":
                region.leyden_location = torch.serialization.location_tag(storage)  # type: ignore[attr-defined]
        return _Copy(
            pickled.getvalue(),
            [
                TypedStorage(wrap_storage=copies[untyped._cdata], dtype=storage.dtype, _internal=True)
                if isinstance(storage, TypedStorage)
                else copies[untyped._cdata]
                for storage, untyped in zip(pickler.storages, storages, strict=True)
            ],
        )

    def _regions(self, sizes: list[int]) -> list[UntypedStorage]:
        """Storages of ``sizes`` bytes, one after another in one block of memory."""
        starts, end = [], 0
        for size in sizes:
            starts.append(end)
            end += -(-size // 64) * 64  # where a tensor of any type may begin
        # Each storage in the block holds on to it, so somebody may have kept tensors of the copy before, whose values
        # are not to change.
        if self._block is None or len(self._block) < end or sys.getrefcount(self._block) > self._references:
            self._block = None  # free it before there is another
            self._block = mmap.mmap(-1, max(end, 1))
            self._references = sys.getrefcount(self._block)
            with suppress(AttributeError, OSError):  # not Linux, or a kernel without huge pages
                self._block.madvise(mmap.MADV_HUGEPAGE)  # the first use is several times faster with them
        return [
            torch.frombuffer(self._block, dtype=torch.uint8, count=size, offset=start).untyped_storage()
            if size
            else UntypedStorage(0)
            for start, size in zip(starts, sizes, strict=True)
        ]


class _Pickler(pickle.Pickler):
    """Pickles all but storages, which it collects."""

    def __init__(self, file: IO[bytes], protocol: int) -> None:
        super().__init__(file, protocol)
        self.storages: list[TypedStorage | UntypedStorage] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, TypedStorage | UntypedStorage):
            return None
        self.storages.append(obj)  # and so it stays, and no other can get its identity
        return len(self.storages) - 1


def _location(storage: Any) -> str | None:
    """Where the original of a copied storage was, which is what the file is to say."""
    return getattr(storage, "leyden_location", None)


def _leave(storage: Any, location: str) -> None:
    """Where a storage goes that is read is not for us to say."""


torch.serialization.register_package(0, _location, _leave)
