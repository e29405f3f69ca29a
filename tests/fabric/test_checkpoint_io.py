"""Checkpoints to disk and back: whole or not at all, checked, and without running code from them."""

from __future__ import annotations

import collections
import datetime
import enum
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

import numpy as np
import pytest
import torch
from torch import nn

from leyden.fabric.checkpoint_io import CheckpointIO, unsafe_places
from leyden.utils.errors import CheckpointError

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


def test_a_remote_checkpoint_comes_back_as_it_was():
    checkpoints.save_checkpoint(checkpoint(), "memory://remote/a.ckpt", storage_options={})
    assert same(checkpoints.load_checkpoint("memory://remote/a.ckpt"), checkpoint())
    checkpoints.remove_checkpoint("memory://remote/a.ckpt")
    with pytest.raises(FileNotFoundError, match=r"memory://remote/a\.ckpt"):
        checkpoints.load_checkpoint("memory://remote/a.ckpt")


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
    with pytest.raises((KeyError, CheckpointError)):
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
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


# What can be read back.


class Color(str, enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class MyDict(dict):
    pass


class MyOrdered(collections.OrderedDict):
    pass


class MyTensor(torch.Tensor):
    pass


class MyStr(str):
    pass


Pair = collections.namedtuple("Pair", "a b")


def with_attribute(tensor, value):
    tensor.tag = value
    return tensor


def ordered(value):
    of = collections.OrderedDict(a=1)
    of._metadata = value
    return of


def cyclic_list():
    cyclic: list = []
    cyclic.append((cyclic,))
    return cyclic


def cyclic_tuple():
    cyclic: tuple = ([],)
    cyclic[0].append(cyclic)
    return cyclic


def cyclic_counter():
    cyclic = collections.Counter()
    cyclic["a"] = [cyclic]  # type: ignore[assignment]
    return cyclic


def shared():
    one = (Color.RED,)
    return [one, one]


VALUES = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 255, 2**31, -(2**70)],
    "longest int": 2**2039 - 1,
    "int too long": 2**2039,
    "lowest int": -(2**2039),
    "int too low": -(2**2039) - 1,
    "floats": [0.1, float("inf"), float("nan")],
    "complex": 1j,
    "str": ["", "x", "ü" * 300, "\ud800"],
    "bytes": b"x",
    "long bytes": b"x" * 300,
    "empty bytes": b"",
    "bytearrays": [bytearray(), bytearray(b"x")],
    "tuples": [(), (1,), (1, 2, 3, 4)],
    "lists": [[], [1], [[1]]],
    "dicts": [{}, {"a": 1}, {(1, "a"): 1, 1.5: 2, None: 3, b"x": 4}],
    "sets": [set(), {1, "a", (1,)}],
    "set of tensors": {torch.ones(1)},
    "frozenset": frozenset({1}),
    "empty frozenset": frozenset(),
    "OrderedDict": ordered(collections.OrderedDict(version=1)),
    "OrderedDict with an object": ordered(Color.RED),
    "OrderedDict subclass": MyOrdered(a=1),
    "Counter": collections.Counter("ab"),
    "Counter of objects": collections.Counter([Color.RED]),
    "defaultdict": collections.defaultdict(int),
    "defaultdict without factory": collections.defaultdict(None, a=1),
    "dict subclass": MyDict(a=1),
    "deque": collections.deque([1]),
    "named tuple": Pair(1, 2),
    "range": range(3),
    "slice": slice(1),
    "ellipsis": ...,
    "str-Enum": Color.RED,
    "IntEnum": Number.ONE,
    "str subclass": MyStr("x"),
    "object": Cfg(),
    "path": pathlib.Path("x"),
    "date": datetime.date(2020, 1, 1),
    "timedelta": datetime.timedelta(1),
    "partial": partial(print),
    "function": unsafe_places,
    "lambda": lambda: 0,
    "builtin": print,
    "bound method": Cfg().__init__,
    "class": Cfg,
    "builtin class": dict,
    "classes that torch knows": [collections.OrderedDict, nn.Parameter, torch.Size, set],
    "module": nn.Linear(1, 1),
    "exception": ValueError("x"),
    "numpy float32": np.float32(1),
    "numpy float64": np.float64(1),
    "numpy bool": np.bool_(True),
    "numpy str": np.str_("x"),
    "numpy array": np.ones(2),
    "key": {Color.RED: 1},
    "element": {Color.RED},
    "deep": {"a": [({"b": Color.RED},)]},
    "list that contains itself": cyclic_list(),
    "tuple that contains itself": cyclic_tuple(),
    "Counter that contains itself": cyclic_counter(),
    "shared": shared(),
    "Size": torch.Size([1, 2]),
    "dtypes": [torch.float32, torch.bfloat16, torch.uint16, torch.complex64, torch.float8_e4m3fn],
    "devices": [torch.device("cpu"), torch.device("cuda:1")],
    "layouts": [torch.strided, torch.sparse_csr],
    "memory format": torch.channels_last,
    "generator": torch.Generator(),
    "finfo": torch.finfo(torch.float32),
    "tensors": [torch.ones(2), torch.empty(0), torch.ones(1, requires_grad=True) * 2, torch.ones(2, device="meta")],
    "tensors of many dtypes": [torch.ones(2).to(d) for d in (torch.bfloat16, torch.uint16, torch.float8_e4m3fn)],
    "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
    "sparse": torch.eye(2).to_sparse(),
    "parameter": nn.Parameter(torch.ones(1), requires_grad=False),
    "buffer": nn.Buffer(torch.ones(1)),
    "tensor with an attribute": with_attribute(torch.ones(1), "x"),
    "tensor with an object": with_attribute(torch.ones(1), Color.RED),
    "parameter with an attribute": with_attribute(nn.Parameter(torch.ones(1)), "x"),
    "parameter with an object": with_attribute(nn.Parameter(torch.ones(1)), Color.RED),
    "tensor subclass": torch.ones(1).as_subclass(MyTensor),
    "parameter not yet made": nn.UninitializedParameter(),
    "storage": torch.ones(2).untyped_storage(),
    "state_dict": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict(),
    "optimizer": torch.optim.Adam(nn.Linear(1, 1).parameters()).state_dict(),
    "generator states": [random.getstate(), torch.get_rng_state()],
}


def can_be_read_back(value):
    file = io.BytesIO()
    try:
        torch.save(value, file)
    except Exception:
        return False
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", VALUES)
def test_a_value_has_no_unsafe_place_exactly_when_torch_reads_it_back(name):
    assert (unsafe_places(VALUES[name]) == []) == can_be_read_back(VALUES[name])
    assert (unsafe_places({"top": [VALUES[name]]}) == []) == can_be_read_back(VALUES[name])


def test_places_are_written_as_the_user_would_reach_them():
    assert unsafe_places({"epoch": 1, "hyper_parameters": {"cfg": Cfg(), "layers": [1, (Color.RED,)]}}) == [
        f"hyper_parameters['cfg']: {__name__}.Cfg",
        f"hyper_parameters['layers'][1][0]: {__name__}.Color",
    ]
    assert unsafe_places({"cfg": frozenset(), "act": nn.ReLU, "fn": print, 3: 1}, "hyper_parameters") == [
        "hyper_parameters['cfg']: frozenset",
        "hyper_parameters['act']: class torch.nn.modules.activation.ReLU",
        "hyper_parameters['fn']: function print",
    ]
    assert unsafe_places([{1}, {Color.RED}]) == [f"checkpoint[1], element: {__name__}.Color"]
    assert unsafe_places({"a": {Color.RED: 1}}) == [f"a, key {Color.RED!r}: {__name__}.Color"]
    assert unsafe_places({"a": 2**3000, "b": b"", "c": ordered(Color.RED)}) == [
        "a: an int of 3001 bits",
        "b: empty bytes",
        f"c._metadata: {__name__}.Color",
    ]


def test_what_the_user_allowed_torch_to_read_is_safe():
    with torch.serialization.safe_globals([Cfg]):
        assert unsafe_places({"cfg": Cfg()}) == []
    assert unsafe_places({"cfg": Cfg()}) == [f"cfg: {__name__}.Cfg"]
