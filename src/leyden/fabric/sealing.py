"""The seal of a checkpoint file, in which a changed byte is noticed before anything in it is used.

torch.save writes a zip file, and in its directory a CRC-32 of every record. The seal is a SHA-256 of all bytes that are
not in a record: the directory with those checksums, the headers, the padding. So each byte of the file is covered, at
the cost of what torch has computed anyway, and the file is sealed without reading the weights again. Where the
checksums are left out (``torch.serialization.set_crc32_options(False)``) the SHA-256 covers the records too.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from leyden.utils.errors import CheckpointError

# The last that a zip holds is its end record, whose last two bytes are the length of a comment, which may follow. The
# seal is that comment, so the file stays one that every reader of zip files takes.
_SEAL = b"leyden:1:"
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size * 2
_END = b"PK\x05\x06"
_END_BYTES = 22
_LONGEST_COMMENT = 2**16 - 1
_ZIP_MAGIC = b"PK\x03\x04"
_HEADER_BYTES = 30  # of a record, before its name and what else precedes its data

_CHUNK = 2**22  # bytes


class SealedFile:
    """A file for ``torch.save`` to write to, which ends in a seal.

    Args:
        file: Empty, open for writing and reading, seekable.

    Attributes:
        error: Why a write failed, for torch does not say.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.error: OSError | None = None
        self._file = file

    def write(self, data: Any) -> int:
        """Take ``data``, any bytes-like object."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def seal(self) -> None:
        """Write the seal, once all else is written."""
        file = self._file
        end = file.seek(0, os.SEEK_END) - _END_BYTES
        file.seek(max(0, end))
        record = file.read(_END_BYTES)
        if not (record.startswith(_END) and record.endswith(b"\0\0")):
            file.seek(0, os.SEEK_END)  # not the zip file that torch writes today; the checksums in it are all there is
            return
        file.seek(end + _END_BYTES - 2)
        self.write(_SEAL_BYTES.to_bytes(2, "little"))
        self.write(_SEAL + b"0" * (_SEAL_BYTES - len(_SEAL)))  # to be read as a zip file
        digest = _digest(file, 0, end + _END_BYTES)
        file.seek(end + _END_BYTES)
        self.write(_SEAL + digest)


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
    """Compare the bytes of ``file`` with its seal and with the CRC-32 that torch.save stored for each record.

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
        try:
            sealed = comment_bytes == _SEAL_BYTES
            if sealed and tail != _SEAL + _digest(file, start, start + size - _SEAL_BYTES):
                raise CheckpointError(f"{name} is damaged: its SHA-256 is not the one that it was sealed with.")
            wrong = _wrong_record(file, check_headers=not sealed)
        except CheckpointError:
            raise
        except Exception as error:  # zipfile raises a dozen types on bytes that make no sense
            raise CheckpointError(f"{name} is damaged: {first_line(error)}") from error
        if wrong is not None:
            raise CheckpointError(f"{name} is damaged: its record {wrong} is not what was written.")
        return True
    finally:
        file.seek(start)


def _digest(file: IO[bytes], start: int, end: int) -> bytes:
    """The SHA-256 of all between ``start`` and ``end`` that no CRC-32 covers, in hexadecimal digits."""
    digest, at = hashlib.sha256(), start
    for _, first, last, _ in sorted(_records(file), key=lambda record: record[1]):
        if not at <= first <= last <= end:
            raise ValueError("its records overlap")
        for part in _parts(file, at, first):
            digest.update(part)
        at = last
    for part in _parts(file, at, end):
        digest.update(part)
    return digest.hexdigest().encode()


def _records(file: IO[bytes]) -> list[tuple[str, int, int, int]]:
    """Name, first byte, byte behind the last, and CRC-32 of every record whose data are covered by that."""
    found = []
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if not any(entry.CRC for entry in entries):  # all are 0 where they were not computed
        return []
    for entry in entries:
        file.seek(entry.header_offset)
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES or not header.startswith(_ZIP_MAGIC) or entry.compress_type:
            raise ValueError(f"the header of its record {entry.filename} makes no sense")
        behind = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        first = entry.header_offset + _HEADER_BYTES + behind
        found.append((entry.filename, first, first + entry.compress_size, entry.CRC))
    return found


def _wrong_record(file: IO[bytes], check_headers: bool) -> str | None:
    """The first record that is not what its CRC-32 says; None for none."""
    if check_headers:  # which no seal covers: zipfile compares them with the directory
        with zipfile.ZipFile(file) as archive:
            has_sums = any(entry.CRC for entry in archive.infolist())
            return archive.testzip() if has_sums else None
    for name, first, last, expected in _records(file):
        found = 0
        for part in _parts(file, first, last):
            found = zlib.crc32(part, found)
        if found != expected:
            return name
    return None


def _parts(file: IO[bytes], first: int, last: int) -> Iterator[bytes]:
    """The bytes between ``first`` and ``last``, a few MiB at a time."""
    file.seek(first)
    while first < last:
        part = file.read(min(_CHUNK, last - first))
        if not part:
            raise EOFError("it ends too soon")
        first += len(part)
        yield part


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


def first_line(error: BaseException) -> str:
    """The beginning of what ``error`` says, as a sentence."""
    return (str(error) or type(error).__name__).partition("\n")[0][:200].rstrip(".") + "."
