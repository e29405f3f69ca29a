"""Paths, local and remote; and files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from leyden.utils.errors import MisconfigurationError
from leyden.utils.paths import (
    atomic_write,
    exists,
    free_bytes,
    is_dir,
    is_remote,
    join,
    list_dir,
    make_dirs,
    open_file,
    remove,
    remove_stale,
    replace_link,
)


@pytest.fixture(params=["local", "file://", "memory://"])
def folder(request, tmp_path):
    """An empty folder of each kind, as users write it."""
    if request.param == "memory://":
        url = f"memory://{tmp_path.name}"
        make_dirs(url)
        yield url
        remove(url)
    else:
        yield f"file://{tmp_path}" if request.param == "file://" else str(tmp_path)


@pytest.fixture
def server(tmp_path):
    """The address at which ``tmp_path`` is served over http."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def write(path, content=b"new"):
    with atomic_write(path) as file:
        file.write(content)


def read(path):
    with open_file(path) as file:
        return file.read()


# Paths.


@pytest.mark.parametrize("path", ["s3://bucket/key", "memory://a", "http://host/x", "simplecache::s3://bucket/key"])
def test_urls_are_remote(path):
    assert is_remote(path)


@pytest.mark.parametrize("path", ["/tmp/x", "x", "", Path("a/b"), "file:///tmp/x", "C://data", "run::3", "lr=1:2/x"])
def test_files_of_this_machine_are_not_remote(path):
    assert not is_remote(path)


def test_join_uses_slashes_after_a_url_and_starts_anew_at_an_absolute_part():
    assert join("s3://bucket/runs/", "a", "b.ckpt") == "s3://bucket/runs/a/b.ckpt"
    assert join("logs", "s3://bucket", "a") == "s3://bucket/a"
    assert join("logs", Path("a"), "b") == os.path.join("logs", "a", "b")
    assert join("logs", "/a") == "/a"


def test_what_is_written_can_be_listed_read_and_removed(folder):
    inner = join(folder, "runs", "a")
    make_dirs(inner)
    make_dirs(inner)  # being there already is fine
    write(join(inner, "b.ckpt"))
    write(join(inner, "a.ckpt"))
    assert list_dir(inner) == ["a.ckpt", "b.ckpt"]
    assert read(join(inner, "a.ckpt")) == b"new"
    assert exists(join(inner, "a.ckpt")) and not is_dir(join(inner, "a.ckpt"))
    assert is_dir(inner) and not exists(join(inner, "c.ckpt"))
    remove(join(inner, "a.ckpt"))
    assert list_dir(inner) == ["b.ckpt"]
    remove(join(folder, "runs"))
    assert not exists(join(folder, "runs"))


def test_text_is_utf_8_and_newlines_can_be_kept(folder):
    with open_file(join(folder, "x.csv"), "w", newline="") as file:
        file.write("größe\r\n")
    assert read(join(folder, "x.csv")) == "größe\r\n".encode()
    with open_file(join(folder, "x.csv"), "r", newline="") as file:
        assert file.read() == "größe\r\n"


def test_what_is_not_there_cannot_be_opened_or_removed(folder):
    with pytest.raises(FileNotFoundError):
        open_file(join(folder, "none"))
    with pytest.raises(FileNotFoundError):
        remove(join(folder, "none"))


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "link")
    assert list_dir(tmp_path) == ["kept"]


def test_fsspec_is_imported_only_for_urls(tmp_path):
    code = f"""
import sys
from leyden.utils.paths import *
import leyden.utils.paths as p
for path in ({str(tmp_path)!r}, "file://" + {str(tmp_path)!r}):
    with p.atomic_write(p.join(path, "x")) as file:
        file.write(b"x")
    assert p.list_dir(path) == ["x"] and p.exists(path) and p.is_dir(path)
    p.remove(p.join(path, "x"))
assert "fsspec" not in sys.modules and "torch" not in sys.modules
p.exists("memory://x")
assert "fsspec" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path):
    expected = shutil.disk_usage(tmp_path).free
    for path in (tmp_path, f"file://{tmp_path}/none/a.ckpt"):
        assert free_bytes(path) == pytest.approx(expected, rel=0.2)
    assert free_bytes("memory://a") is None


# http.


def test_files_on_the_web_are_read_only(server, tmp_path):
    (tmp_path / "a.txt").write_text("häh")
    assert read(f"{server}/a.txt") == "häh".encode()
    with open_file(f"{server}/a.txt", "r") as file:
        assert file.read() == "häh"
    assert exists(f"{server}/a.txt") and not exists(f"{server}/b.txt") and not is_dir(server)
    with pytest.raises(FileNotFoundError, match=r"b\.txt"):
        open_file(f"{server}/b.txt")
    for refused in (write, list_dir, make_dirs, remove, lambda path: open_file(path, "w")):
        with pytest.raises(MisconfigurationError, match="can be read, but not written, listed or removed"):
            refused(f"{server}/a.txt")


# Atomic writing.


def test_the_old_content_stays_until_the_block_ends(folder):
    path = join(folder, "last.ckpt")
    write(path, b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert read(path) == b"old"
    assert read(path) == b"new"
    assert list_dir(folder) == ["last.ckpt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_content_and_no_litter(folder, error):
    path = join(folder, "last.ckpt")
    write(path, b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert read(path) == b"old"
    assert list_dir(folder) == ["last.ckpt"]


def test_the_bytes_are_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    target, calls = tmp_path / "last.ckpt", []
    real_sync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        what = "folder" if path == str(tmp_path) else f"{os.fstat(descriptor).st_size} bytes"
        calls.append(f"fsync {what}")
        real_sync(descriptor)

    def replace(source, destination):
        assert os.path.dirname(source) == str(tmp_path)
        calls.append(f"replace {os.path.basename(destination)}")
        real_replace(source, destination)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with atomic_write(target) as file:
        file.write(b"x" * 50)  # so few that they are still in Python's buffer
        calls.append("written")
    assert calls == ["written", "fsync 50 bytes", "replace last.ckpt", "fsync folder"]


def test_the_temporary_file_is_hidden_new_and_beside_the_target(tmp_path, monkeypatch):
    flags = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flag, *mode: flags.append(flag) or real(path, flag, *mode))
    with atomic_write(tmp_path / "last.ckpt"):
        (name,) = list_dir(tmp_path)
    assert name.startswith(f".last.ckpt.tmp-{socket.gethostname()}-{os.getpid()}-")
    assert flags[0] & os.O_EXCL and flags[0] & os.O_CREAT


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    with atomic_write(tmp_path / "x") as first, atomic_write(tmp_path / "x") as second:
        first.write(b"1" * 10)
        second.write(b"2" * 5)
    assert read(tmp_path / "x") == b"1" * 10  # the one that ended last
    assert list_dir(tmp_path) == ["x"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write(tmp_path / "x")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_the_longest_name_a_file_may_have_can_be_written(tmp_path):
    write(tmp_path / ("ü" * 127))
    assert list_dir(tmp_path) == ["ü" * 127]


def test_a_file_in_the_working_folder_needs_no_folder_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("x")
    assert read(tmp_path / "x") == b"new"


def test_a_file_system_that_cannot_sync_is_written_all_the_same(tmp_path, monkeypatch):
    def cannot(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", cannot)
    write(tmp_path / "x")
    assert read(tmp_path / "x") == b"new"


def test_a_failed_sync_is_an_error_and_the_old_content_stays(tmp_path, monkeypatch):
    def fails(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    write(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path / "x")
    assert read(tmp_path / "x") == b"old"
    assert list_dir(tmp_path) == ["x"]


def test_storage_options_reach_the_file_system_and_mean_nothing_on_this_machine(tmp_path):
    with atomic_write("memory://options/x", storage_options={"anything": 1}) as file:
        file.write(b"x")
    assert read("memory://options/x") == b"x"
    with pytest.raises(TypeError, match="storage_options"), atomic_write(tmp_path / "x", {"anything": 1}):
        pass


def test_the_temporary_files_of_dead_processes_of_this_host_are_removed(tmp_path):
    died = subprocess.Popen([sys.executable, "-c", ""])
    died.wait()
    host = socket.gethostname()
    stale = f".last.ckpt.tmp-{host}-{died.pid}-0123abcd"
    others = [f".x.tmp-{host}-{os.getpid()}-0123abcd", f".x.tmp-elsewhere-{died.pid}-0123abcd", ".x.tmp", "x.ckpt"]
    for name in (stale, *others):
        (tmp_path / name).touch()
    assert remove_stale(tmp_path) == [stale]
    assert list_dir(tmp_path) == sorted(others)
    assert remove_stale(tmp_path / "none") == remove_stale("memory://none") == []


# Links.


def test_a_link_is_another_name_of_the_file_and_stays_when_that_is_removed(tmp_path):
    write(tmp_path / "a.ckpt", b"a")
    replace_link(str(tmp_path / "a.ckpt"), str(tmp_path / "last.ckpt"))
    assert (tmp_path / "last.ckpt").samefile(tmp_path / "a.ckpt")
    remove(tmp_path / "a.ckpt")
    assert read(tmp_path / "last.ckpt") == b"a"


@pytest.mark.parametrize("before", ["file", "link", "same", "dangling", "nothing"])
def test_a_link_replaces_what_has_its_name_and_leaves_no_litter(tmp_path, before):
    target, link = tmp_path / "b.ckpt", tmp_path / "last.ckpt"
    write(target, b"b")
    write(tmp_path / "a.ckpt", b"a")
    if before == "file":
        write(link, b"old")
    elif before == "link":
        link.symlink_to("a.ckpt")
    elif before == "same":
        os.link(target, link)
    elif before == "dangling":
        link.symlink_to("gone.ckpt")
    replace_link(str(target), f"file://{link}")
    assert read(link) == b"b" and read(tmp_path / "a.ckpt") == b"a"
    assert list_dir(tmp_path) == ["a.ckpt", "b.ckpt", "last.ckpt"]


def test_a_link_to_a_link_is_one_to_the_file(tmp_path):
    write(tmp_path / "a.ckpt", b"a")
    (tmp_path / "best.ckpt").symlink_to("a.ckpt")
    (tmp_path / "below").mkdir()
    replace_link(str(tmp_path / "best.ckpt"), str(tmp_path / "below" / "last.ckpt"))
    remove(tmp_path / "best.ckpt")
    assert read(tmp_path / "below" / "last.ckpt") == b"a"


def test_a_folder_is_linked_by_a_symbolic_link_that_may_be_moved_with_it(tmp_path, monkeypatch):
    (tmp_path / "runs" / "0").mkdir(parents=True)
    (tmp_path / "runs" / "1").mkdir()
    write(tmp_path / "runs" / "1" / "x", b"1")
    monkeypatch.chdir(tmp_path / "runs")
    replace_link("0", "last")
    replace_link(str(tmp_path / "runs" / "1"), "last")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert read(tmp_path / "moved" / "last" / "x") == b"1"


def test_where_there_are_no_hard_links_the_link_is_symbolic(tmp_path, monkeypatch):
    def cannot(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", cannot)
    write(tmp_path / "a.ckpt", b"a")
    replace_link(str(tmp_path / "a.ckpt"), str(tmp_path / "last.ckpt"))
    assert os.readlink(tmp_path / "last.ckpt") == "a.ckpt"
    assert list_dir(tmp_path) == ["a.ckpt", "last.ckpt"]


def test_a_link_to_nothing_a_remote_one_or_one_that_fails_leaves_all_as_it_was(tmp_path):
    link = tmp_path / "last.ckpt"
    write(link, b"old")
    with pytest.raises(FileNotFoundError):
        replace_link(str(tmp_path / "none.ckpt"), str(link))
    for pair in (("memory://a", str(link)), (str(link), "memory://a")):
        with pytest.raises(MisconfigurationError, match="'memory://a' cannot be linked"):
            replace_link(*pair)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_link(str(link), str(tmp_path / "folder"))
    assert read(link) == b"old" and list_dir(tmp_path) == ["folder", "last.ckpt"]


# What the kernel is asked to do, in order.

TRACED = """
import sys
from leyden.utils.paths import atomic_write, replace_link
folder = sys.argv[1]
with atomic_write(folder + "/a.ckpt") as file:
    file.write(b"x" * 100)
replace_link(folder + "/a.ckpt", folder + "/last.ckpt")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_kernel_sees_write_sync_rename_sync_for_a_file_and_link_rename_sync_for_a_link(tmp_path):
    folder, log = tmp_path / "runs", tmp_path / "log"
    folder.mkdir()
    calls = "trace=openat,write,fsync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
    done = subprocess.run(
        ["strace", "-y", "-e", calls, "-o", str(log), sys.executable, "-c", TRACED, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    seen = []
    for line in log.read_text().splitlines():
        call = re.match(r"(openat|write|fsync|rename|link|unlink)(at2?)?\((.*)\) = ", line)
        if call is None or str(folder) not in call[3] or (call[1] == "openat" and "O_EXCL" not in call[3]):
            continue
        on_folder = f"<{folder}>" in call[3]
        seen.append(f"{call[1]} folder" if on_folder else call[1])
    of_a_file = ["openat", "write", "fsync", "rename", "fsync folder"]
    of_a_link = ["link", "rename", "unlink", "fsync folder"]  # unlink finds nothing: the rename took it
    assert seen == of_a_file + of_a_link
