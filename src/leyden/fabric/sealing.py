"""The seal of a checkpoint file: a SHA-256 of its bytes, taken as they are written, compared before they are used."""

from __future__ import annotations

import hashlib
import os
import zipfile
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import IO, Any

from leyden.utils.errors import CheckpointError

# torch.save writes a zip file. The last that a zip holds is its end record, whose last two bytes are the length of a
# comment, which may follow. The seal is that comment, so the file stays one that every reader of zip files takes.
_SEAL = b"leyden:1:"
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size * 2
_END = b"PK\x05\x06"
_END_BYTES = 22
_LONGEST_COMMENT = 2**16 - 1
_ZIP_MAGIC = b"PK\x03\x04"

_CHUNK = 2**21  # bytes: each costs the threads a turn at the interpreter; yet what is hashed should still be cached


class SealedFile:
    """A file for ``torch.save`` to write to, which ends in a seal. What it is given is only ever held for ``_CHUNK``s.

    Attributes:
        error: Why a write failed, for torch does not say.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.error: OSError | None = None
        self._file = file
        self._hash = _Hash()
        self._held = b""  # the last bytes so far, which may turn out to be the end record

    def __enter__(self) -> SealedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None) -> None:
        self._hash.end()

    def write(self, data: Any) -> int:
        """Take ``data``, any bytes-like object; it may change once this returns."""
        view = memoryview(data).cast("B")
        if len(view) < _END_BYTES:
            both = self._held + bytes(view)
            self._pass_on(memoryview(both)[:-_END_BYTES])
            self._held = both[-_END_BYTES:]
        else:
            self._pass_on(memoryview(self._held))
            self._pass_on(view[:-_END_BYTES])
            self._held = bytes(view[-_END_BYTES:])
        return len(view)

    def flush(self) -> None:
        """Nothing to do yet: the end is held back until ``seal``."""

    def seal(self) -> str:
        """Write what is left and the seal, once all else is written.

        Returns:
            The SHA-256 of the whole file, in hexadecimal digits.
        """
        if self._held.startswith(_END) and self._held.endswith(b"\0\0"):
            self._pass_on(memoryview(self._held[:-2] + _SEAL_BYTES.to_bytes(2, "little")))
            seal = _SEAL + self._hash.end().encode()
            self._pass_on(memoryview(seal))
        else:  # not the zip file that torch writes today; the checksums in it are all there is then
            self._pass_on(memoryview(self._held))
        self._held = b""
        return self._hash.end()

    def _pass_on(self, view: memoryview) -> None:
        for start in range(0, len(view), _CHUNK):  # so that a part is hashed while the one before it is written
            part = view[start : start + _CHUNK]
            self._hash.update(part)
            try:
                self._file.write(part)
            except OSError as error:
                self.error = error
                raise


class _Hash:
    """A SHA-256 computed by a thread of its own, which takes about as long as writing, so that the two go on at once.

    The bytes are copied into one of a few buffers, for the caller's may change or be freed while they wait.
    """

    def __init__(self, buffers: int = 3) -> None:
        self._sum = hashlib.sha256()
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        self._full: SimpleQueue[memoryview | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._unused = buffers
        self._buffer = bytearray()
        self._used = 0

    def update(self, view: memoryview) -> None:
        """Add bytes; waits when all buffers are full."""
        while view:
            if self._used == len(self._buffer):
                self._hand_over()
            room = len(self._buffer) - self._used
            taken = view[:room]
            self._buffer[self._used : self._used + len(taken)] = taken
            self._used += len(taken)
            view = view[room:]

    def end(self) -> str:
        """The sum of all so far. Ends the thread; the next ``update`` starts another."""
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None
        self._sum.update(memoryview(self._buffer)[: self._used])
        self._used = 0
        return self._sum.hexdigest()

    def _hand_over(self) -> None:
        """Give the buffer, which is full, to the thread, and take an empty one."""
        if self._buffer:
            if self._thread is None:  # most checkpoints of tests and demos end before this
                self._thread = Thread(target=self._work, name="leyden-seal", daemon=True)
                self._thread.start()
            self._full.put(memoryview(self._buffer))
        if self._unused:
            self._unused -= 1
            self._buffer = bytearray(_CHUNK)
        else:
            self._buffer = self._free.get()
        self._used = 0

    def _work(self) -> None:
        while (full := self._full.get()) is not None:
            self._sum.update(full)
            assert isinstance(full.obj, bytearray)
            self._free.put(full.obj)


def is_sealed(file: IO[bytes]) -> bool:
    """True when ``file``, from where it stands to its end, has a seal, be it right or wrong; it is not moved."""
    start = file.tell()
    try:
        return _end_of(file, start)[1] == _SEAL_BYTES
    finally:
        file.seek(start)


def sha256_of(file: IO[bytes], size: int | None = None) -> str:
    """The SHA-256 of the next ``size`` bytes of ``file``, or of all that are left, in hexadecimal digits."""
    digest, left = hashlib.sha256(), size
    while data := file.read(_CHUNK if left is None else min(left, _CHUNK)):
        digest.update(data)
        left = None if left is None else left - len(data)
    return digest.hexdigest()


def verify(file: IO[bytes], name: str) -> bool:
    """Compare the bytes of ``file`` with its seal, or without one with the CRC-32 that torch.save stored per record.

    torch.load does neither, and would take a flipped bit for a weight. Reads all of ``file`` once, unpickles nothing,
    and leaves it where it stood.

    Args:
        file: Open for reading, seekable, at the start of the checkpoint.
        name: What messages call it.

    Returns:
        False when the file is not a zip, as those of torch before 1.6, and so cannot be told from a damaged one.

    Raises:
        CheckpointError: The file is not what was written.
    """
    start = file.tell()
    try:
        is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        size, comment_bytes, tail = _end_of(file, start)
        if comment_bytes is None:
            file.seek(start)
            if not is_zip and not zipfile.is_zipfile(file):
                return False
            raise CheckpointError(f"{name} is damaged: it was cut short, or its last bytes were changed.")
        file.seek(start)
        if comment_bytes != _SEAL_BYTES:
            _verify_records(file, name)
        elif tail != _SEAL + sha256_of(file, size - _SEAL_BYTES).encode():
            raise CheckpointError(f"{name} is damaged: its SHA-256 is not the one that it was sealed with.")
        return True
    finally:
        file.seek(start)


def _end_of(file: IO[bytes], start: int) -> tuple[int, int | None, bytes]:
    """The size of ``file`` from ``start``, the length of its comment, and the comment.

    The length is None when there is no end record which, with the comment that it announces, ends where the file does.
    """
    size = file.seek(0, os.SEEK_END) - start
    room = min(size, _END_BYTES + _LONGEST_COMMENT)
    file.seek(-room, os.SEEK_END)
    last = file.read(room)
    end = last.rfind(_END)
    comment = last[end + _END_BYTES :]
    announced = int.from_bytes(last[end + _END_BYTES - 2 : end + _END_BYTES], "little")
    whole = end >= 0 and len(last) >= end + _END_BYTES and announced == len(comment)
    return size, len(comment) if whole else None, comment


def _verify_records(file: IO[bytes], name: str) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            # All are 0 after torch.serialization.set_crc32_options(False).
            has_sums = any(record.CRC for record in archive.infolist())
            wrong = archive.testzip() if has_sums else None
    except Exception as error:  # zipfile raises a dozen types on bytes that make no sense
        raise CheckpointError(f"{name} is damaged: {first_line(error)}") from error
    if wrong is not None:
        raise CheckpointError(f"{name} is damaged: its record {wrong} is not what was written.")


def first_line(error: BaseException) -> str:
    """The beginning of what ``error`` says, as a sentence."""
    return (str(error) or type(error).__name__).partition("\n")[0][:200].rstrip(".") + "."
