"""Checkpoints to disk and back: whole or not at all, checked, and without running code from them."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import random
import resource
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from leyden.fabric.checkpoint_io import CheckpointIO, first_error, verify_checkpoint
from leyden.utils.errors import CheckpointError
from leyden.utils.paths import atomic_write, list_dir, open_file, remove

checkpoints = CheckpointIO()


class Cfg:
    """What users put into hyper-parameters."""

    def __init__(self):
        self.lr = 0.1


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def checkpoint(**more):
    return {"epoch": 3, "state_dict": {"weight": torch.arange(30_000.0)}, **more}


def same(one, other):
    return one["epoch"] == other["epoch"] and torch.equal(one["state_dict"]["weight"], other["state_dict"]["weight"])


# Saving.


def test_a_checkpoint_comes_back_as_it_was_and_is_an_ordinary_torch_file(tmp_path):
    path = tmp_path / "new folder" / "a.ckpt"
    checkpoints.save_checkpoint(checkpoint(), path)
    assert same(checkpoints.load_checkpoint(path), checkpoint())
    assert same(torch.load(path, weights_only=True), checkpoint())
    assert os.listdir(path.parent) == ["a.ckpt"]


def read_all(path):
    with open_file(path) as file:
        return file.read()


def write_all(path, content):
    with atomic_write(path) as file:
        file.write(content)


def test_a_remote_checkpoint_comes_back_as_it_was():
    checkpoints.save_checkpoint(checkpoint(), "memory://remote/a.ckpt", storage_options={})
    verify_checkpoint("memory://remote/a.ckpt")
    assert same(checkpoints.load_checkpoint("memory://remote/a.ckpt"), checkpoint())
    assert list_dir("memory://remote") == ["a.ckpt", "a.ckpt.sha256"]
    checkpoints.remove_checkpoint("memory://remote/a.ckpt")
    assert list_dir("memory://remote") == []
    with pytest.raises(FileNotFoundError, match=r"memory://remote/a\.ckpt"):
        checkpoints.load_checkpoint("memory://remote/a.ckpt")


def test_the_mark_of_a_remote_checkpoint_is_written_last_and_is_what_sha256sum_prints(monkeypatch):
    order = []
    real = MemoryFileSystem.put_file
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda self, local, path, **more: order.append(path) or real(self, local, path)
    )
    checkpoints.save_checkpoint(checkpoint(), "memory://marked/a.ckpt")
    assert order == ["/marked/a.ckpt", "/marked/a.ckpt.sha256"]
    digest = hashlib.sha256(read_all("memory://marked/a.ckpt")).hexdigest()
    assert read_all("memory://marked/a.ckpt.sha256") == f"{digest}  a.ckpt\n".encode()


@pytest.mark.parametrize(
    ("mark", "why"),
    [
        (None, r"has no memory://refused/a\.ckpt\.sha256 beside it, which is written last"),
        (b"", r"has no memory://refused/a\.ckpt\.sha256"),
        (b"0" * 64 + b"  a.ckpt\n", r"is not what memory://refused/a\.ckpt\.sha256 says"),
    ],
)
def test_a_remote_checkpoint_of_ours_without_its_mark_is_refused(mark, why):
    path = "memory://refused/a.ckpt"
    checkpoints.save_checkpoint(checkpoint(), path)
    if mark is None:
        remove(path + ".sha256")
    else:
        write_all(path + ".sha256", mark)
    for refused in (verify_checkpoint, checkpoints.load_checkpoint):
        with pytest.raises(CheckpointError, match=why):
            refused(path)


def test_a_new_remote_checkpoint_with_the_mark_of_the_old_is_refused():
    path = "memory://replaced/a.ckpt"
    checkpoints.save_checkpoint(checkpoint(), path)
    mark = read_all(path + ".sha256")
    checkpoints.save_checkpoint(checkpoint(epoch=4), path)
    verify_checkpoint(path)
    write_all(path + ".sha256", mark)  # as if the program had ended between the two
    with pytest.raises(CheckpointError, match="was replaced and the mark was not"):
        checkpoints.load_checkpoint(path)


def test_a_damaged_remote_checkpoint_is_refused():
    path = "memory://damaged/a.ckpt"
    checkpoints.save_checkpoint(checkpoint(), path)
    whole = read_all(path)
    write_all(path, whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(CheckpointError, match="it is damaged"):
        verify_checkpoint(path)


def test_a_remote_checkpoint_of_another_program_needs_no_mark():
    path = "memory://others/a.ckpt"
    write_all(path, saved_bytes())
    verify_checkpoint(path)
    assert same(checkpoints.load_checkpoint(path), checkpoint())
    write_all(path, saved_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        verify_checkpoint(path)
    write_all(path, saved_bytes())
    write_all(path + ".sha256", hashlib.sha256(saved_bytes()).hexdigest().upper().encode())
    verify_checkpoint(path)


def test_a_failed_upload_is_a_checkpoint_error(monkeypatch):
    class Refused(Exception):  # as those of the libraries of object stores
        pass

    def put_file(self, local, path, **more):
        raise Refused("AccessDenied")

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with pytest.raises(CheckpointError, match=r"memory://failed/a\.ckpt: Refused: AccessDenied\.$") as caught:
        checkpoints.save_checkpoint(checkpoint(), "memory://failed/a.ckpt")
    assert isinstance(caught.value.__cause__, Refused)


def test_a_file_url_is_a_local_path(tmp_path):
    checkpoints.save_checkpoint(checkpoint(), f"file://{tmp_path}/a.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"]
    verify_checkpoint(f"file://{tmp_path}/a.ckpt")
    whole = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "b.ckpt").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"The newest good one beside it is .*/a\.ckpt\."):
        checkpoints.load_checkpoint(f"file://{tmp_path}/b.ckpt")


def test_storage_options_are_refused_for_a_local_path(tmp_path):
    with pytest.raises(TypeError, match=r"storage_options=\{\} mean nothing for the local path .*a\.ckpt"):
        checkpoints.save_checkpoint(checkpoint(), tmp_path / "a.ckpt", storage_options={})


class FailsInPickling:
    def __reduce__(self):
        raise KeyError("in the middle")


@pytest.mark.parametrize("content", [FailsInPickling(), lambda: 0], ids=["raises", "lambda"])
def test_an_exception_during_pickling_leaves_the_old_file_and_no_litter(tmp_path, content):
    path = tmp_path / "a.ckpt"
    checkpoints.save_checkpoint(checkpoint(), path)
    with pytest.raises(
        CheckpointError, match=r"a\.ckpt: (KeyError: 'in the middle'|.*hyper_parameters\['x'\]: function)"
    ):
        checkpoints.save_checkpoint({"epoch": 4, "hyper_parameters": {"x": content}}, path)
    assert same(checkpoints.load_checkpoint(path), checkpoint())
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_what_cannot_be_pickled_is_named_with_its_place(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*hyper_parameters\['act'\]: function .*<lambda>"):
        checkpoints.save_checkpoint({"hyper_parameters": {"act": lambda x: x}}, tmp_path / "a.ckpt")


def test_a_full_disk_is_an_error_with_path_cause_and_free_space_and_the_old_file_stays(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoints.save_checkpoint(checkpoint(), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # the nearest to a full disk without being root
    try:
        with pytest.raises(CheckpointError, match=r"a\.ckpt: File too large\. There are [\d,.]+ MiB free") as caught:
            checkpoints.save_checkpoint(checkpoint(epoch=4), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(caught.value.__cause__, OSError)
    assert same(checkpoints.load_checkpoint(path), checkpoint())
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_a_folder_that_cannot_be_made_is_an_error_with_path_and_cause(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/runs/a\.ckpt: Not a directory.* MiB free"):
        checkpoints.save_checkpoint(checkpoint(), tmp_path / "file" / "runs" / "a.ckpt")


def test_removing_takes_files_and_folders_and_minds_none_that_is_gone(tmp_path):
    checkpoints.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    checkpoints.save_checkpoint(checkpoint(), tmp_path / "sharded" / "0.ckpt")
    for name in ("a.ckpt", "sharded", "none"):
        checkpoints.remove_checkpoint(tmp_path / name)
    assert os.listdir(tmp_path) == []


KILL = """
import os, signal, sys, time, torch
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.utils.paths import remove_stale

folder, path = sys.argv[1], os.path.join(sys.argv[1], "last.ckpt")
checkpoints = CheckpointIO()

def save_for_ever(start):
    for epoch in range(start, 10**6):
        checkpoints.save_checkpoint({"epoch": epoch, "weight": torch.full((12_500_000,), float(epoch))}, path)

checkpoints.save_checkpoint({"epoch": 0, "weight": torch.zeros(12_500_000)}, path)
begun, kills, halfway, newest = time.perf_counter(), 10, 0, 0
checkpoints.save_checkpoint({"epoch": 0, "weight": torch.zeros(12_500_000)}, path)
seconds = time.perf_counter() - begun
for kill in range(kills):
    child = os.fork()
    if child == 0:
        save_for_ever(newest + 1)
    time.sleep(seconds * (0.5 + 2 * kill / kills))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    loaded = checkpoints.load_checkpoint(path)
    assert loaded["epoch"] >= newest and bool((loaded["weight"] == loaded["epoch"]).all()), loaded["epoch"]
    newest = loaded["epoch"]
    halfway += len(remove_stale(folder))
    assert os.listdir(folder) == ["last.ckpt"]
print(kills, halfway, newest)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_ten_kills_while_saving_50_mb_leave_a_whole_file_each_time(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kills, halfway, _ = map(int, done.stdout.split())
    assert kills == 10
    assert halfway >= 1, "no kill came in the middle of a save, so nothing was tested"


# Loading.


def test_a_missing_checkpoint_is_an_error_that_names_its_nearest_neighbours(tmp_path):
    for name in ("epoch=3.ckpt", "epoch=30.ckpt", "last.ckpt", "zzzzzzzzzz.ckpt", "metrics.csv"):
        (tmp_path / name).touch()
    with pytest.raises(
        FileNotFoundError, match=r"epoch=4\.ckpt\. Beside it: epoch=3\.ckpt, epoch=30\.ckpt, last\.ckpt"
    ):
        checkpoints.load_checkpoint(tmp_path / "epoch=4.ckpt")
    with pytest.raises(FileNotFoundError, match=r"Nor is there a folder .*none\."):
        checkpoints.load_checkpoint(tmp_path / "none" / "epoch=4.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Beside it: no \.ckpt file\."):
        checkpoints.load_checkpoint(tmp_path / "empty" / "epoch=4.ckpt")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        checkpoints.load_checkpoint(tmp_path)


def saved_bytes(content=None):
    file = io.BytesIO()
    torch.save(content or checkpoint(), file)
    return file.getvalue()


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99, 0.99999])
def test_a_file_cut_short_is_damaged(tmp_path, share, weights_only):
    whole = saved_bytes()
    (tmp_path / "a.ckpt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged"):
        checkpoints.load_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)


@pytest.mark.parametrize("content", [b"hello world", bytes(5000), b"\x80\x02garbage", b"PK\x03\x04garbage", b"XX"])
def test_another_file_is_damaged_or_no_checkpoint(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged"):
        checkpoints.load_checkpoint(tmp_path / "a.ckpt")


def test_no_flipped_bit_goes_into_the_weights(tmp_path):
    whole, path, seen = saved_bytes(), tmp_path / "a.ckpt", 0
    draw = random.Random(0)
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(checkpoints.load_checkpoint(path), checkpoint())  # a byte that means nothing, such as padding
        except CheckpointError as error:
            assert "a.ckpt is damaged" in str(error)
            seen += 1
    assert seen > 90


def test_a_file_saved_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(checkpoint(), tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(checkpoints.load_checkpoint(tmp_path / "a.ckpt"), checkpoint())


@pytest.mark.parametrize("zipped", [True, False])
def test_an_object_is_refused_by_name_and_read_only_when_asked_for_in_writing(tmp_path, zipped):
    path = tmp_path / "a.ckpt"
    torch.save(checkpoint(cfg=Cfg(), path=pathlib.Path("x")), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"a\.ckpt holds .*{Cfg.__module__}\.Cfg.*weights_only=False"):
        checkpoints.load_checkpoint(path)
    assert checkpoints.load_checkpoint(path, weights_only=False)["cfg"].lr == 0.1


def test_a_value_that_no_class_explains_is_refused_too(tmp_path):
    torch.save({"big": 2**5000}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"holds a value that has no plain form.*weights_only=False"):
        checkpoints.load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize("weights_only", [True, None])
def test_no_code_of_a_checkpoint_is_run(tmp_path, weights_only):
    torch.save(checkpoint(evil=Evil(str(tmp_path / "pwned"))), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"holds .*mkdir"):
        checkpoints.load_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
    with open(tmp_path / "a.ckpt", "rb") as file, pytest.raises(CheckpointError, match=r"holds .*mkdir"):
        checkpoints.load_checkpoint(file, weights_only=weights_only)
    assert not (tmp_path / "pwned").exists()


def test_the_same_holds_for_the_web(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    torch.save(checkpoint(), tmp_path / "good.ckpt")
    torch.save(checkpoint(evil=Evil(str(tmp_path / "pwned"))), tmp_path / "evil.ckpt")
    (tmp_path / "half.ckpt").write_bytes(saved_bytes()[:5000])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            assert same(checkpoints.load_checkpoint(f"{url}/good.ckpt"), checkpoint())
            with pytest.raises(CheckpointError, match=r"evil\.ckpt holds .*mkdir.*weights_only=False"):
                checkpoints.load_checkpoint(f"{url}/evil.ckpt")
            with pytest.raises(CheckpointError, match=r"half\.ckpt is damaged"):
                checkpoints.load_checkpoint(f"{url}/half.ckpt")
            with pytest.raises(FileNotFoundError, match=r"no checkpoint http://.*/none\.ckpt\.$"):
                checkpoints.load_checkpoint(f"{url}/none.ckpt")
        finally:
            server.shutdown()
            thread.join()
    assert not (tmp_path / "pwned").exists()


def test_an_open_file_that_cannot_go_back_is_read_too():
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb") as sink:
        sender = threading.Thread(target=lambda: (sink.write(saved_bytes()), sink.close()))
        sender.start()
        assert same(checkpoints.load_checkpoint(source), checkpoint())
        sender.join()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="no file can be kept from this user")
def test_a_file_that_may_not_be_read_is_named_with_the_reason(tmp_path):
    checkpoints.save_checkpoint(checkpoint(), tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").chmod(0)
    with pytest.raises(CheckpointError, match=r"a\.ckpt cannot be read: Permission denied"):
        verify_checkpoint(tmp_path / "a.ckpt")


def test_a_class_that_is_gone_is_named_with_the_file(tmp_path, monkeypatch):
    torch.save({"cfg": Cfg()}, tmp_path / "a.ckpt")
    monkeypatch.delattr(sys.modules[Cfg.__module__], "Cfg")
    with pytest.raises(CheckpointError, match=r"a\.ckpt holds objects whose class is not here: .*Cfg"):
        checkpoints.load_checkpoint(tmp_path / "a.ckpt", weights_only=False)


def test_a_matter_that_is_not_the_files_keeps_its_own_error(tmp_path):
    torch.save(checkpoint(), tmp_path / "a.ckpt")
    with pytest.raises(RuntimeError, match="nonsense") as caught:
        checkpoints.load_checkpoint(tmp_path / "a.ckpt", map_location="nonsense")
    assert not isinstance(caught.value, CheckpointError)


def test_tensors_go_where_map_location_says(tmp_path):
    torch.save(checkpoint(), tmp_path / "a.ckpt")
    assert checkpoints.load_checkpoint(tmp_path / "a.ckpt", map_location="meta")["state_dict"]["weight"].is_meta


@pytest.mark.parametrize("write", range(1, 14))
def test_of_a_save_that_breaks_off_the_first_error_is_told(write):
    class Breaks(io.BytesIO):
        writes = 0

        def write(self, data):
            self.writes += 1
            if self.writes == write:
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
            return super().write(data)

    with pytest.raises(RuntimeError) as caught:
        torch.save({"a": torch.ones(5000), "b": torch.ones(4)}, Breaks())
    assert str(first_error(caught.value)).startswith("DataLoader worker")
