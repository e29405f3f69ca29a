"""Checkpoints to disk and back: written whole and sealed, checked before they are read, without running their code."""

from __future__ import annotations

import difflib
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

import torch

from leyden.utils.errors import CheckpointError, MisconfigurationError
from leyden.utils.lazy import LazyModule
from leyden.utils.paths import (
    AnyPath,
    atomic_write,
    free_bytes,
    is_remote,
    is_web,
    join,
    list_dir,
    make_dirs,
    open_file,
    remove,
)

_sealing = LazyModule("leyden.fabric.sealing")
_unsafe = LazyModule("leyden.fabric.unsafe")

EXTENSION = ".ckpt"
# Beside a remote checkpoint and written after it: what ``sha256sum`` prints and, with ``-c``, checks.
MARK = ".sha256"
_NEIGHBOURS = 5  # the newest that are looked at for a good one; each is read whole


class CheckpointIO:
    """How checkpoints get to disk and back: each is one file of ``torch.save``, local or remote, and sealed.

    The seal is in the comment of the zip file that torch writes, so any reader of such files takes it. Beside
    a remote checkpoint goes a second file, ``<name>.sha256``, once the first is there; without it the checkpoint is
    refused.

    A subclass may override any of the methods; pass an instance to ``Trainer(plugins=)``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: AnyPath, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``, making its folder; what was there before stays until the new file is whole.

        Args:
            checkpoint: What to save. ``leyden.fabric.unsafe`` tells beforehand whether it can be loaded again.
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
        sealed: Any = None
        try:
            if not is_remote(path):
                make_dirs(os.path.dirname(path))
            with atomic_write(path, storage_options) as file:
                sealed = _sealing.SealedFile(file)
                torch.save(checkpoint, cast(IO[bytes], sealed))
                sealed.seal()
                if is_remote(path):
                    file.seek(0)
                    digest = _sealing.sha256_of(file)
            if is_remote(path):
                with atomic_write(path + MARK, storage_options) as file:
                    file.write(f"{digest}  {path.rpartition('/')[2]}\n".encode())
        except Exception as error:
            cause = sealed.error if sealed is not None and sealed.error else first_error(error)
            raise save_error(path, cause, checkpoint) from cause

    def load_checkpoint(
        self, path: AnyPath | IO[bytes], map_location: Any = None, weights_only: bool = True
    ) -> dict[str, Any]:
        """Read what ``save_checkpoint`` or plain ``torch.save`` wrote, after comparing it with its seal or checksums.

        Args:
            path: A local file, a URL (``http(s)://`` too), or a file open for reading bytes.
            map_location: Where tensors go, as in ``torch.load``.
            weights_only: False reads arbitrary Python objects too, and so runs whatever code the file holds.

        Raises:
            FileNotFoundError: There is no such file; the message names those that are near.
            CheckpointError: The file is damaged, in which case the message names the newest good one beside it; or
                it holds objects that only ``weights_only=False`` reads.
        """
        name = _name_of(path)
        only = weights_only is not False  # None, which Lightning allows, is no leave to run code
        with _opened(path) as file:
            try:
                checked = _verify(path, file)
            except CheckpointError as error:
                raise CheckpointError(f"{error}{_good_neighbour(path)}") from error.__cause__
            try:
                loaded: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=only)
                return loaded
            except Exception as error:
                if only and isinstance(error, pickle.UnpicklingError) and (checked or _names_a_class(error)):
                    raise CheckpointError(_refusal(name, file, error)) from error
                if isinstance(error, AttributeError | ImportError):
                    raise CheckpointError(f"{name} holds objects whose class is not here: {error}") from error
                if checked and not isinstance(error, pickle.UnpicklingError) and _ZIP_READER not in str(error):
                    raise  # the file is as it was written, so the matter is another, such as a missing device
                raise CheckpointError(
                    f"{name} is damaged, or not a checkpoint: {_sealing.first_line(error)}{_good_neighbour(path)}"
                ) from error

    def when_written(self, path: AnyPath, callback: Callable[[str], None]) -> None:
        """Have ``callback(path)`` called once what ``save_checkpoint`` was last asked to write to ``path`` is safe.

        Here that is at once, since ``save_checkpoint`` returns only then. An IO that writes later keeps the callback,
        drops it if the save fails, and hands it out by ``finished``: it never calls it from another thread.
        """
        callback(os.fspath(path))

    def finished(self) -> list[Callable[[], None]]:
        """What ``when_written`` kept for files that are safe by now, to be called in order; each is given out once.

        Does not wait, and raises nothing: the error of a save that failed is raised by the next ``save_checkpoint``,
        ``wait`` or ``teardown``.
        """
        return []

    def wait(self) -> None:
        """Return once every file asked for is safe; ``finished`` then has all that is left.

        Raises:
            CheckpointError: A file that was asked for earlier could not be written.
        """

    def teardown(self) -> None:
        """Finish what is under way, as ``wait`` does, and end: the run is over. The next save begins anew."""

    def remove_checkpoint(self, path: AnyPath) -> None:
        """Remove a checkpoint, a file or a folder; one that is gone already is no error."""
        with suppress(FileNotFoundError):
            remove(path)
        if is_remote(path):
            with suppress(FileNotFoundError):
                remove(os.fspath(path) + MARK)


# The name that code written for Lightning uses.
TorchCheckpointIO = CheckpointIO


def verify_checkpoint(path: AnyPath) -> None:
    """Read the file at ``path`` once and compare it with its seal; nothing is unpickled.

    A file without a seal, as of Lightning, is compared with the checksum per record that torch stores.

    Raises:
        FileNotFoundError: There is no such file; the message names those that are near.
        CheckpointError: The file is damaged, or not a checkpoint; the message says in what.
    """
    with _opened(path) as file:
        if not _verify(path, file):
            raise CheckpointError(f"{_name_of(path)} is damaged, or not a checkpoint: it is no file of torch.save.")


# Writing.


def first_error(error: BaseException) -> Exception:
    """What went wrong first, where torch's ``error`` is that the archive it then closed is not complete."""
    while "inline_container" in str(error) and error.__context__ is not None:
        error = error.__context__
    return cast(Exception, error)


def save_error(path: str, error: Exception, checkpoint: Any) -> CheckpointError:
    """What to raise when ``error`` kept ``checkpoint`` from being written to ``path``."""
    if isinstance(error, OSError):
        why = f"{error.strerror or error}.{_free_space(path)}"
    elif isinstance(error, pickle.PicklingError | AttributeError | TypeError):
        places = "; ".join(_unsafe.unsafe_places(checkpoint)) or "none found"
        why = f"{error}. What a checkpoint cannot hold: {places}."
    else:
        why = f"{type(error).__name__}: {_sealing.first_line(error)}"
    return CheckpointError(f"Could not save the checkpoint {path}: {why}")


def _free_space(path: str) -> str:
    """A sentence on the space left where a local ``path`` was to be; empty for a remote one."""
    with suppress(OSError):
        free = free_bytes(path)
        return "" if free is None else f" There are {free / 2**20:,.1f} MiB free."
    return ""


# Reading.


def _name_of(path: AnyPath | IO[bytes]) -> str:
    return os.fspath(path) if isinstance(path, str | os.PathLike) else "The open file"


@contextmanager
def _opened(path: AnyPath | IO[bytes]) -> Iterator[IO[bytes]]:
    """The file at ``path``, seekable; a remote one is fetched whole, as it is read twice."""
    if not isinstance(path, str | os.PathLike):
        if path.seekable():
            yield path
        else:
            with _fetched(path) as file:
                yield file
        return
    try:
        file = open_file(path, "rb")
    except FileNotFoundError as error:
        raise _missing(path) from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{os.fspath(path)} is a folder, and a checkpoint is one file.") from error
    except OSError as error:
        raise CheckpointError(f"{os.fspath(path)} cannot be read: {error.strerror or error}.") from error
    with file:
        if is_remote(path) and not is_web(path):
            with _fetched(file) as local:
                yield local
        else:
            yield file


@contextmanager
def _fetched(file: IO[bytes]) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as local:
        shutil.copyfileobj(file, local, 2**24)
        local.seek(0)
        yield local


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


def _verify(path: AnyPath | IO[bytes], file: IO[bytes]) -> bool:
    """Compare ``file``, from ``path``, with its mark or else its seal; see ``sealing.verify``."""
    name = _name_of(path)
    try:
        if isinstance(path, str | os.PathLike) and is_remote(path) and not is_web(path):
            mark = _mark_of(path)
            if mark is not None:
                if mark != _sealing.sha256_of(file):
                    raise CheckpointError(
                        f"{name} is not what {name}{MARK} says: it is damaged, or was replaced and the mark was not."
                    )
                file.seek(0)
                return True
            if _sealing.is_sealed(file):
                raise CheckpointError(
                    f"{name} has no {name}{MARK} beside it, which is written last, so saving it was not finished. "
                    f"If it was copied there without it, add it: sha256sum FILE > FILE{MARK}"
                )
        return bool(_sealing.verify(file, name))
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror or error}.") from error


def _mark_of(path: AnyPath) -> str | None:
    """The SHA-256 that the mark of a remote checkpoint holds; None without one."""
    try:
        with open_file(os.fspath(path) + MARK, "rb") as file:
            found = re.match(rb"[0-9a-fA-F]{64}\b", file.read(65))
    except FileNotFoundError:
        return None
    return found and found[0].decode().lower()


def _good_neighbour(path: AnyPath | IO[bytes]) -> str:
    """A sentence that names the newest checkpoint beside the damaged one at ``path`` which is good."""
    if not isinstance(path, str | os.PathLike) or is_remote(path):
        return ""
    path = os.fspath(path).removeprefix("file://")
    folder = os.path.dirname(path)
    with suppress(OSError):
        others = [join(folder, name) for name in list_dir(folder or ".") if name.endswith(EXTENSION)]
        others = [other for other in others if os.path.isfile(other) and not os.path.samefile(other, path)]
        others.sort(key=os.path.getmtime, reverse=True)
        for other in others[:_NEIGHBOURS]:
            with suppress(CheckpointError, OSError):
                verify_checkpoint(other)
                return f" The newest good one beside it is {other}."
    return ""


# How errors of torch's reader of zip files begin.
_ZIP_READER = "PytorchStreamReader"


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
