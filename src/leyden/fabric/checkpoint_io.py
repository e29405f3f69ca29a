"""Checkpoints to disk and back: written atomically, checked before they are read, without running code from them."""

from __future__ import annotations

import difflib
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import IO, Any, cast

import torch
from torch import Tensor, nn

from leyden.utils.errors import CheckpointError, MisconfigurationError
from leyden.utils.paths import AnyPath, atomic_write, free_bytes, is_remote, list_dir, make_dirs, open_file, remove

EXTENSION = ".ckpt"
_ZIP_MAGIC = b"PK\x03\x04"


class CheckpointIO:
    """How checkpoints get to disk and back: each is one file of ``torch.save``, local or remote.

    A subclass may override any of the three methods; pass an instance to ``Trainer(plugins=)``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: AnyPath, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, making its folder; what was there before stays until the new file is whole.

        Args:
            checkpoint: What to save. ``unsafe_places`` tells beforehand whether it can be loaded again.
            path: A local file or a URL such as ``s3://bucket/last.ckpt``.
            storage_options: For a URL, what its file system takes.

        Raises:
            CheckpointError: It cannot be written or pickled.
            TypeError: ``storage_options`` were given with a local path.
        """
        path = os.fspath(path)
        if storage_options is not None and not is_remote(path):
            raise TypeError(
                f"storage_options={storage_options!r} mean nothing for the local path {path!r}. "
                "Leave them out, or give a URL such as s3://bucket/last.ckpt."
            )
        sink: _Sink | None = None
        try:
            if not is_remote(path):
                make_dirs(os.path.dirname(path))
            with atomic_write(path, storage_options) as file:
                sink = _Sink(file)
                torch.save(checkpoint, cast(IO[bytes], sink))
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError about positions in the file.
            cause = sink.error if sink and sink.error else error
            if not isinstance(cause, OSError):
                raise
            reason = cause.strerror or str(cause)
            raise CheckpointError(f"Could not save the checkpoint {path}: {reason}.{_free_space(path)}") from cause
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            places = "; ".join(unsafe_places(checkpoint)) or "none found"
            raise CheckpointError(
                f"Could not save the checkpoint {path}: {error}. What a checkpoint cannot hold: {places}."
            ) from error

    def load_checkpoint(
        self, path: AnyPath | IO[bytes], map_location: Any = None, weights_only: bool = True
    ) -> dict[str, Any]:
        """Read what ``save_checkpoint``, or plain ``torch.save``, wrote; the checksums in the file are verified first.

        Args:
            path: A local file, a URL (``http(s)://`` too), or a file open for reading bytes.
            map_location: Where tensors go, as in ``torch.load``.
            weights_only: False reads arbitrary Python objects too, and so runs whatever code the file holds.

        Raises:
            FileNotFoundError: There is no such file; the message names those that are near.
            CheckpointError: The file is damaged, or holds objects that only ``weights_only=False`` reads.
        """
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else "The open file"
        only = weights_only is not False  # None, which Lightning allows, is no leave to run code
        with _opened(path) as file:
            checked = _check_sums(file, name)
            try:
                loaded: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=only)
                return loaded
            except Exception as error:
                if only and isinstance(error, pickle.UnpicklingError) and (checked or _names_a_class(error)):
                    raise CheckpointError(_refusal(name, file, error)) from error
                if isinstance(error, AttributeError | ImportError):
                    raise CheckpointError(f"{name} holds objects whose class is not here: {error}") from error
                if checked and not isinstance(error, pickle.UnpicklingError):
                    raise  # the file is as it was written, so the matter is another, such as a missing device
                raise CheckpointError(f"{name} is damaged, or not a checkpoint: {_first_line(error)}") from error

    def remove_checkpoint(self, path: AnyPath) -> None:
        """Remove a checkpoint, a file or a folder; one that is gone already is no error."""
        try:
            remove(path)
        except FileNotFoundError:
            return


class _Sink:
    """A file that remembers why a write failed, for torch does not say."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _free_space(path: str) -> str:
    """A sentence on the space left where a local ``path`` was to be; empty for a remote one."""
    free = free_bytes(path)
    return "" if free is None else f" There are {free / 2**20:,.1f} MiB free."


@contextmanager
def _opened(path: AnyPath | IO[bytes]) -> Iterator[IO[bytes]]:
    """The file at ``path``, seekable; a remote one is fetched whole, as it is read twice."""
    if not isinstance(path, str | os.PathLike):
        yield path
        return
    try:
        file = open_file(path, "rb")
    except FileNotFoundError as error:
        raise _missing(path) from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{os.fspath(path)} is a folder, and a checkpoint is one file.") from error
    with file:
        if not is_remote(path):
            yield file
            return
        with tempfile.TemporaryFile() as fetched:
            shutil.copyfileobj(file, fetched, 2**24)
            fetched.seek(0)
            yield fetched


def _missing(path: AnyPath) -> FileNotFoundError:
    """The error for a file that is not there, naming up to three checkpoints beside it, the most similar first."""
    folder, name = os.path.split(os.fspath(path))
    try:
        names = [other for other in list_dir(folder or ".") if other.endswith(EXTENSION)]
        there = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0)) or f"no {EXTENSION} file"
        hint = f" Beside it: {there}."
    except MisconfigurationError:  # http folders have no list
        hint = ""
    except OSError:
        hint = f" Nor is there a folder {folder}."
    return FileNotFoundError(f"There is no checkpoint {os.fspath(path)}.{hint}")


def _check_sums(file: IO[bytes], name: str) -> bool:
    """Compare every record of ``file`` with the CRC-32 that torch.save stored beside it, and rewind.

    torch.load does not, and would take a flipped bit for a weight. This reads the file once more, at some GB a second.

    Returns:
        False when the file is not a zip, as those of torch before 1.6, and so cannot be told from a damaged one.

    Raises:
        CheckpointError: A record differs, or the zip's directory cannot be read: the file was cut short.
    """
    start = file.tell()
    is_zip = file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC or zipfile.is_zipfile(file)
    file.seek(start)
    if not is_zip:
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            # All are 0 after torch.serialization.set_crc32_options(False).
            has_sums = any(record.CRC for record in archive.infolist())
            wrong = archive.testzip() if has_sums else None
    except Exception as error:  # zipfile raises a dozen types on bytes that make no sense
        raise CheckpointError(f"{name} is damaged: {_first_line(error)}") from error
    if wrong is not None:
        raise CheckpointError(f"{name} is damaged: its record {wrong} is not what was written.")
    file.seek(start)
    return True


def _names_a_class(error: Exception) -> bool:
    """True when torch's weights-only reader stopped at an object, rather than at bytes that make no sense."""
    return "GLOBAL" in str(error)


def _refusal(name: str, file: IO[bytes], error: Exception) -> str:
    """What the weights-only reader refused in ``file``, and how to read it all the same."""
    try:
        file.seek(0)
        found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not a zip, or an operation which only a full unpickler knows
        found = re.findall(r"GLOBAL (\S+) ", str(error))
    what = ", ".join(found) or "a value that has no plain form"
    return (
        f"{name} holds {what}. Reading anything but tensors and plain values can run code that the file brings. "
        "If you trust where it comes from, pass weights_only=False."
    )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200].rstrip(".") + "."


# What torch.load(weights_only=True) reads, found by an experiment that tests/fabric/test_checkpoint_io.py repeats.
# Types count exactly: a str-Enum, a named tuple or a defaultdict is pickled by way of its own class, and refused.
_PLAIN = {
    *(str, float, bool, complex, type(None), bytearray),
    *(torch.device, torch.dtype, torch.layout, torch.qscheme, torch.UntypedStorage, torch.TypedStorage),
}
_DICTS = (dict, OrderedDict, Counter)
_SEQUENCES = (list, tuple, set, torch.Size)
_TENSORS = (Tensor, nn.Parameter)
# Pickle names these before their content, so they may contain themselves; the others may not.
_MAY_CONTAIN_ITSELF = (list, dict, OrderedDict)
# As values themselves, not as the types of values.
_NAMED = {OrderedDict, Counter, Tensor, nn.Parameter, torch.Size, torch.device, set, complex, bytearray}
_INT_BITS = 255 * 8 - 1  # what pickle's LONG1 holds, beside the sign


def unsafe_places(value: Any, place: str = "checkpoint") -> list[str]:
    """Where ``value`` holds what ``torch.load(weights_only=True)`` could not read back.

    Types and functions that were given to ``torch.serialization.add_safe_globals`` count as readable.

    Args:
        value: A checkpoint, or a part of one.
        place: What to call ``value``. By default the entries begin with its own keys.

    Returns:
        Entries such as ``"hyper_parameters['cfg']: __main__.Cfg"``; none when all can be read.
    """
    found: list[str] = []
    walk = _Walk(found)
    if place == "checkpoint" and type(value) is dict and all(type(key) is str for key in value):
        walk.under_way.add(id(value))
        for key, item in value.items():
            walk.visit(item, key)
    else:
        walk.visit(value, place)
    return found


class _Walk:
    """One walk over nested values, visiting each container once."""

    def __init__(self, found: list[str]) -> None:
        self.found = found
        self.under_way: set[int] = set()
        self.done: set[int] = set()
        self.allowed = {
            entry[0] if isinstance(entry, tuple) else entry for entry in torch.serialization.get_safe_globals()
        }

    def visit(self, value: Any, place: str) -> None:
        kind = type(value)
        if kind in _PLAIN or kind in self.allowed:
            return
        if kind is int:
            if max(value, ~value).bit_length() > _INT_BITS:
                self.found.append(f"{place}: an int of {value.bit_length()} bits")
        elif kind is bytes:
            if not value:  # pickled as a call of bytes()
                self.found.append(f"{place}: empty bytes")
        elif kind in _DICTS or kind in _SEQUENCES or kind in _TENSORS:
            self.visit_once(value, place)
        elif isinstance(value, type | FunctionType | BuiltinFunctionType):
            if value not in _NAMED and value not in self.allowed:
                what = "class" if isinstance(value, type) else "function"
                self.found.append(f"{place}: {what} {_full_name(value)}")
        else:
            self.found.append(f"{place}: {_full_name(kind)}")

    def visit_once(self, value: Any, place: str) -> None:
        identity = id(value)
        if identity in self.done:
            return
        if identity in self.under_way:
            if type(value) not in _MAY_CONTAIN_ITSELF:
                self.found.append(f"{place}: a {type(value).__name__} that contains itself")
            return
        self.under_way.add(identity)
        self.visit_content(value, place)
        self.under_way.remove(identity)
        self.done.add(identity)

    def visit_content(self, value: Any, place: str) -> None:
        if type(value) in _DICTS:
            for key, item in value.items():
                self.visit(key, f"{place}, key {key!r}")
                self.visit(item, f"{place}[{key!r}]")
        elif type(value) is set:
            for item in value:
                self.visit(item, f"{place}, element")
        elif type(value) in _SEQUENCES:
            for index, item in enumerate(value):
                self.visit(item, f"{place}[{index}]")
        if type(value) is OrderedDict or type(value) in _TENSORS:  # whose attributes are pickled too
            for name, item in vars(value).items():
                self.visit(item, f"{place}.{name}")


def _full_name(what: Any) -> str:
    module = getattr(what, "__module__", None)
    name = str(getattr(what, "__qualname__", what))
    return name if module in (None, "builtins") else f"{module}.{name}"
