"""Open, list, make and remove files and folders, local or remote, and write files atomically."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import IO, Any, TypeAlias
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from leyden.utils.errors import MisconfigurationError
from leyden.utils.optional import require

AnyPath: TypeAlias = str | os.PathLike[str]

# "s3://", "simplecache::s3://"; a scheme has two letters at least, so C://data is a drive.
_URL = re.compile(r"[A-Za-z][\w+.-]+(::[A-Za-z][\w+.-]+)*://")
_FILE_URL = "file://"
_HTTP_SECONDS = 60  # without an answer for so long, the server is taken for dead

_LONGEST_NAME = 255  # bytes, on every file system in use
_TEMPORARY = re.compile(r"\..*\.tmp-(?P<host>.+)-(?P<pid>\d{1,9})-[0-9a-f]{8}")
# Some network file systems cannot sync a folder, or anything; there is nothing more to do for the data then.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES}

# Folders that a process, by its number, has cleared of what killed ones have left.
_tidied: set[tuple[int, str]] = set()


def is_remote(path: AnyPath) -> bool:
    """True for a URL such as ``s3://bucket/key`` or ``memory://file``; False for local paths, ``file://`` included."""
    text = os.fspath(path)
    return _URL.match(text) is not None and not text.startswith(_FILE_URL)


def is_web(path: AnyPath) -> bool:
    """True for ``http://`` and ``https://``, from where files can only be fetched."""
    return os.fspath(path).lower().startswith(("http://", "https://"))


def open_file(path: AnyPath, mode: str = "rb", newline: str | None = None) -> IO[Any]:
    """Open a file as ``open`` does; text is UTF-8. What ``http(s)://`` answers is fetched to a temporary file first."""
    encoding = None if "b" in mode else "utf-8"
    if not is_remote(path):
        return open(_local(path), mode, encoding=encoding, newline=newline)
    if is_web(path):
        _refuse_http_unless(mode in ("r", "rb", "rt"), path)
        fetched = _fetch(os.fspath(path))
        return fetched if "b" in mode else TextIOWrapper(fetched, encoding=encoding, newline=newline)
    system, target = _file_system(path)
    options = {} if "b" in mode else {"encoding": encoding, "newline": newline}
    opened: IO[Any] = system.open(target, mode, **options)
    return opened


def list_dir(path: AnyPath) -> list[str]:
    """Names, without their folder, of what is in the folder ``path``, sorted."""
    if not is_remote(path):
        return sorted(os.listdir(_local(path)))
    system, target = _file_system(path)
    entries = (entry.rstrip("/") for entry in system.ls(target, detail=False))
    # Object stores may list the folder itself, as an empty object.
    return sorted(entry.rpartition("/")[2] for entry in entries if entry != target.rstrip("/"))


def make_dirs(path: AnyPath) -> None:
    """Make the folder ``path`` and those above it where they are missing."""
    if not is_remote(path):
        os.makedirs(_local(path) or ".", exist_ok=True)
        return
    system, target = _file_system(path)
    system.makedirs(target, exist_ok=True)


def exists(path: AnyPath) -> bool:
    """True when there is a file or folder at ``path``."""
    if not is_remote(path):
        return os.path.exists(_local(path))
    if is_web(path):
        try:
            urlopen(Request(os.fspath(path), method="HEAD"), timeout=_HTTP_SECONDS).close()
        except HTTPError as error:
            error.close()
            return error.code == 405  # the server does not answer HEAD, so only fetching would tell
        return True
    system, target = _file_system(path)
    return bool(system.exists(target))


def is_dir(path: AnyPath) -> bool:
    """True when there is a folder at ``path``."""
    if not is_remote(path):
        return os.path.isdir(_local(path))
    if is_web(path):
        return False
    system, target = _file_system(path)
    return bool(system.isdir(target))


def remove(path: AnyPath) -> None:
    """Remove a file, a link (not what it points to), or a folder with all it holds.

    Raises:
        FileNotFoundError: There is nothing at ``path``.
    """
    if is_remote(path):
        system, target = _file_system(path)
        system.rm(target, recursive=system.isdir(target))
        return
    local = _local(path)
    if os.path.isdir(local) and not os.path.islink(local):
        shutil.rmtree(local)
    else:
        os.remove(local)


def join(*parts: AnyPath) -> str:
    """The parts as one path, with ``/`` where the first is a URL. As in ``os.path.join``, an absolute part or a URL
    starts anew."""
    texts = [os.fspath(part) for part in parts]
    urls = [index for index, text in enumerate(texts) if _URL.match(text)]
    return posixpath.join(*texts[urls[-1] :]) if urls else os.path.join(*texts)


@contextmanager
def atomic_write(path: AnyPath, storage_options: Mapping[str, Any] | None = None) -> Iterator[IO[bytes]]:
    """Open a binary file that appears at ``path``, whole and synced to disk, when the block ends without exception.

    It may be read too. Until then, and after an exception, ``path`` is what it was. The bytes go to a hidden file in
    the same folder, so that the last step is a rename, which a crash cannot leave half done. For a remote path they go
    to a local temporary file, and are uploaded when the block ends; object stores show an object only once it is
    complete. The first time that a process writes to a folder, it clears what killed ones have left there.

    Args:
        path: The file to write; the folder must be there.
        storage_options: For a remote path, what its file system takes, such as credentials.

    Raises:
        TypeError: ``storage_options`` were given with a local path.
    """
    if is_remote(path):
        system, target = _file_system(path, storage_options)
        with tempfile.TemporaryDirectory() as folder:
            staged = os.path.join(folder, "staged")
            with open(staged, "x+b") as file:
                yield file
            system.put_file(staged, target)
        return
    if storage_options is not None:
        raise TypeError(f"storage_options={storage_options!r} mean nothing for the local path {os.fspath(path)!r}.")
    local = _local(path)
    folder = os.path.dirname(local) or "."
    if (place := (os.getpid(), os.path.abspath(folder))) not in _tidied:
        _tidied.add(place)
        with suppress(OSError):
            remove_stale(folder)
    temporary = os.path.join(folder, _temporary_name(os.path.basename(local)))
    # O_EXCL: never a file that someone else is writing. 0o666: the umask decides, as for any file the user makes.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, local)
    except BaseException:
        with suppress(OSError):  # the error under way says more
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def replace_link(target: str, link: str) -> None:
    """Make ``link`` another name of what is at ``target``; it is never missing in between, and lasts a power cut.

    A hard link, which stays good when ``target`` is removed; for a folder, or where there are none, a symbolic one.

    Args:
        target: A local file or folder.
        link: Where the name is to be; a file or link that is there is replaced.

    Raises:
        FileNotFoundError: There is nothing at ``target``, or no folder for ``link``.
        MisconfigurationError: One of them is remote.
    """
    if remote := [path for path in (target, link) if is_remote(path)]:
        raise MisconfigurationError(f"{remote[0]!r} cannot be linked: only local files can. Save the file once more.")
    source, name = os.path.realpath(_local(target), strict=True), _local(link)
    folder = os.path.dirname(name) or "."
    temporary = os.path.join(folder, _temporary_name(os.path.basename(name)))
    try:
        try:
            os.link(source, temporary)
        except OSError:
            os.symlink(os.path.relpath(source, os.path.realpath(folder)), temporary)
        os.replace(temporary, name)
    finally:  # a rename does nothing when both already are names of one file
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(folder)


def remove_stale(folder: AnyPath) -> list[str]:
    """Remove the temporary files of processes of this host that were killed in ``atomic_write``; returns their names.

    Does nothing in a remote folder, where there are none, and on Windows, where a process cannot be asked after.
    """
    if is_remote(folder) or os.name == "nt" or not is_dir(folder):
        return []
    host = _host()
    stale = [
        name
        for name in list_dir(folder)
        if (found := _TEMPORARY.fullmatch(name)) and found["host"] == host and not _is_alive(int(found["pid"]))
    ]
    for name in stale:
        with suppress(FileNotFoundError):  # another process of the run was faster
            os.unlink(join(_local(folder), name))
    return stale


def free_bytes(path: AnyPath) -> int | None:
    """Bytes left where ``path`` is or is to be; None for a remote path."""
    if is_remote(path):
        return None
    folder = os.path.abspath(_local(path))
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free


def _local(path: AnyPath) -> str:
    return os.fspath(path).removeprefix(_FILE_URL)


def _refuse_http_unless(allowed: bool, path: AnyPath) -> None:
    if not allowed:
        raise MisconfigurationError(
            f"{os.fspath(path)!r} can be read, but not written, listed or removed. "
            "Use a local folder or an object store such as s3://."
        )


def _file_system(path: AnyPath, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it."""
    _refuse_http_unless(not is_web(path), path)
    text = os.fspath(path)
    system, target = require("fsspec", f"The path {text!r}").url_to_fs(text, **(options or {}))
    system.invalidate_cache()  # other processes write there too
    return system, target


def _fetch(url: str) -> IO[bytes]:
    """What ``url`` answers, in a temporary file that is gone once it is closed."""
    try:
        answer = urlopen(url, timeout=_HTTP_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
        raise OSError(f"{url} answered {error.code} {error.reason}") from error
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with answer:
            shutil.copyfileobj(answer, file)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())[:64]


def _temporary_name(name: str) -> str:
    """A hidden name for what will be ``name``, which says who writes it; random, so that threads stay apart."""
    suffix = f".tmp-{_host()}-{os.getpid()}-{os.urandom(4).hex()}"
    room = _LONGEST_NAME - len(os.fsencode(suffix)) - 1
    return "." + os.fsencode(name)[:room].decode(errors="ignore") + suffix


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def shown(path: AnyPath) -> str:
    """``path`` as people read it: from the working directory, where it lies below that."""
    given = os.fspath(path)
    if is_remote(given):
        return given
    below = os.path.relpath(given)
    return given if below.startswith(os.pardir) else below


def _sync_folder(folder: str) -> None:
    """Make a rename in ``folder`` last through a power cut."""
    if os.name == "nt":  # which cannot open a folder, and journals renames
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        return
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and another user's
        return True
    return True
