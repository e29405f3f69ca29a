"""AsyncCheckpointIO: training goes on while a copy of its state is written."""

from __future__ import annotations

import collections
import os
import pickletools
import subprocess
import sys
import threading
import time
import zipfile

import pytest
import torch
from torch import nn

from leyden import Trainer
from leyden.callbacks import ModelCheckpoint
from leyden.demos.boring_classes import BoringModel
from leyden.fabric.async_checkpoint_io import AsyncCheckpointIO
from leyden.fabric.checkpoint_io import CheckpointIO, verify_checkpoint
from leyden.plugins.io import AsyncCheckpointIO as FromPlugins
from leyden.utils.errors import CheckpointError, LeydenWarning

plain = CheckpointIO()


class Held(CheckpointIO):
    """Writes when it is let."""

    def __init__(self):
        self.go, self.writing = threading.Event(), threading.Event()
        self.running = self.most = 0

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.running += 1
        self.most = max(self.most, self.running)
        self.writing.set()
        assert self.go.wait(20)
        super().save_checkpoint(checkpoint, path, storage_options)
        self.running -= 1


@pytest.fixture
def background():
    """An AsyncCheckpointIO that is ended, so that no thread is left."""
    made = AsyncCheckpointIO()
    yield made
    made.teardown()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("leyden")]


def state(value=1.0):
    return {"epoch": int(value), "weight": torch.full((1000,), value)}


# The copy.


def test_the_file_is_the_one_that_saving_at_once_would_have_made(tmp_path, background):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, dtype=torch.float64))
    optimizer = torch.optim.Adam(model.parameters())
    model[:2](torch.randn(5, 3)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "rng": torch.get_rng_state(),
        "hyper_parameters": collections.OrderedDict(lr=0.1, sizes=(1, 2), name="x"),
    }
    background.save_checkpoint(content, tmp_path / "a.ckpt")
    background.wait()
    plain.save_checkpoint(content, tmp_path / "b.ckpt")
    one, other = (plain.load_checkpoint(tmp_path / name) for name in ("a.ckpt", "b.ckpt"))
    names = one["hyper_parameters"].pop("name"), other["hyper_parameters"].pop("name")
    assert names == ("x", "x")
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert type(one["state_dict"]) is type(other["state_dict"]) is collections.OrderedDict
    assert one["state_dict"]._metadata == other["state_dict"]._metadata


def test_what_changes_after_the_call_is_not_in_the_file(tmp_path):
    held = Held()
    background = AsyncCheckpointIO(held)
    content = {"weight": torch.zeros(1000), "list": [1], "parameter": nn.Parameter(torch.zeros(2))}
    background.save_checkpoint(content, tmp_path / "a.ckpt")
    content["weight"] += 1
    content["list"].append(2)
    content["parameter"].data += 1
    held.go.set()
    background.teardown()
    loaded = plain.load_checkpoint(tmp_path / "a.ckpt")
    assert not loaded["weight"].any() and not loaded["parameter"].any() and loaded["list"] == [1]


def test_tensors_that_share_memory_are_copied_once_and_still_share_it(tmp_path, background):
    whole = torch.arange(100_000.0)
    rows = whole.view(100, 1000)
    content = {"whole": whole, "row": rows[7], "turned": rows.T, "again": whole, "tied": nn.Parameter(rows)}
    background.save_checkpoint(content, tmp_path / "a.ckpt")
    background.wait()
    assert (tmp_path / "a.ckpt").stat().st_size < 1.1 * 400_000
    loaded = plain.load_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(loaded["turned"], rows.T) and torch.equal(loaded["row"], rows[7])
    assert len({tensor.untyped_storage().data_ptr() for tensor in loaded.values()}) == 1
    assert loaded["whole"] is loaded["again"]


@pytest.mark.parametrize(
    "value",
    [
        torch.empty(0),
        torch.ones((), dtype=torch.bool),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.eye(3).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, requires_grad=True) * 2,
        nn.Parameter(torch.ones(2), requires_grad=False),
    ],
    ids=lambda value: str(value.dtype),
)
def test_tensors_of_all_kinds_are_copied(tmp_path, background, value):
    background.save_checkpoint({"value": value}, tmp_path / "a.ckpt")
    background.wait()
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=True)["value"]
    assert type(loaded) is type(value)
    assert (loaded.dtype, loaded.requires_grad, loaded.device) == (value.dtype, value.requires_grad, value.device)
    assert loaded.layout == value.layout
    assert value.is_meta or torch.equal(loaded.to_dense(), value.to_dense())


def test_the_file_says_where_a_tensor_was_before_it_was_copied(tmp_path):
    tensor = torch.ones(3)
    tensor.untyped_storage().leyden_location = "cuda:7"  # as the copy of a tensor from there has it
    torch.save({"x": tensor}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        strings = [argument for _, argument, _ in pickletools.genops(archive.read("a/data.pkl"))]
    assert "cuda:7" in strings and "cpu" not in strings
    assert torch.equal(torch.load(tmp_path / "a.ckpt", map_location="cpu")["x"], tensor)


def test_memory_is_used_again_unless_somebody_kept_the_copy(tmp_path):
    class Keeps(CheckpointIO):
        kept: list = []

        def save_checkpoint(self, checkpoint, path, storage_options=None):
            self.kept.append(checkpoint["weight"])

    for io, blocks in ((CheckpointIO(), 1), (Keeps(), 3)):
        background, seen = AsyncCheckpointIO(io), set()
        keep_alive = []
        for value in (1.0, 2.0, 3.0):
            background.save_checkpoint(state(value), tmp_path / "a.ckpt")
            background.wait()
            keep_alive.append(id(background._memory._block))
            seen.add(keep_alive[-1])
        assert len(seen) == blocks
        background.teardown()
    assert [float(weight[0]) for weight in Keeps.kept] == [1.0, 2.0, 3.0]


def test_a_copy_may_be_larger_than_the_one_before(tmp_path, background):
    for size in (10, 100_000, 10, 200_000):
        background.save_checkpoint({"weight": torch.arange(float(size))}, tmp_path / "a.ckpt")
        loaded = background.load_checkpoint(tmp_path / "a.ckpt")  # waits
        assert torch.equal(loaded["weight"], torch.arange(float(size)))


def test_what_cannot_be_pickled_is_an_error_at_once_with_its_place(tmp_path, background):
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*hyper_parameters\['act'\]: function .*<lambda>"):
        background.save_checkpoint({"hyper_parameters": {"act": lambda x: x}}, tmp_path / "a.ckpt")
    background.save_checkpoint(state(), tmp_path / "b.ckpt")
    background.wait()
    assert os.listdir(tmp_path) == ["b.ckpt"]


# One at a time, and when it is safe.


def test_saving_returns_at_once_and_the_next_save_waits_for_the_one_before(tmp_path):
    held = Held()
    background = AsyncCheckpointIO(held)
    background.save_checkpoint(state(1.0), tmp_path / "1.ckpt")
    assert held.writing.wait(20) and not (tmp_path / "1.ckpt").exists()
    threading.Timer(0.2, held.go.set).start()
    begun = time.perf_counter()
    background.save_checkpoint(state(2.0), tmp_path / "2.ckpt")
    assert time.perf_counter() - begun >= 0.1
    assert (tmp_path / "1.ckpt").exists()
    background.teardown()
    assert held.most == 1
    assert sorted(os.listdir(tmp_path)) == ["1.ckpt", "2.ckpt"]


def test_a_callback_is_handed_out_once_when_its_file_is_safe_and_run_by_who_asks(tmp_path):
    held, called = Held(), []
    background = AsyncCheckpointIO(held)

    def note(path):
        verify_checkpoint(path)
        called.append((os.path.basename(path), threading.current_thread() is threading.main_thread()))

    background.save_checkpoint(state(), tmp_path / "a.ckpt")
    background.when_written(tmp_path / "a.ckpt", note)
    background.when_written(tmp_path / "a.ckpt", note)
    assert background.finished() == []
    held.go.set()
    background.wait()
    assert called == []
    for callback in background.finished():
        callback()
    assert called == [("a.ckpt", True)] * 2
    assert background.finished() == []
    background.teardown()


def test_finished_does_not_need_a_wait(tmp_path, background):
    background.save_checkpoint(state(), tmp_path / "a.ckpt")
    background.when_written(tmp_path / "a.ckpt", str)
    deadline = time.monotonic() + 20
    while not (ready := background.finished()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert len(ready) == 1 and (tmp_path / "a.ckpt").exists()


def test_a_file_that_this_process_does_not_write_counts_as_safe(background):
    background.when_written("of another process", str)
    (callback,) = background.finished()
    assert callback() == "of another process"


def test_an_io_that_writes_at_once_calls_back_at_once():
    called: list[str] = []
    plain.when_written("a", called.append)
    assert called == ["a"] and plain.finished() == []
    plain.wait()
    plain.teardown()


def test_removing_or_reading_the_file_under_way_waits_for_it(tmp_path):
    held = Held()
    background = AsyncCheckpointIO(held)
    background.save_checkpoint(state(), tmp_path / "a.ckpt")
    threading.Timer(0.05, held.go.set).start()
    background.remove_checkpoint(tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []
    held.go.clear()
    background.save_checkpoint(state(4.0), tmp_path / "a.ckpt")
    threading.Timer(0.05, held.go.set).start()
    assert background.load_checkpoint(tmp_path / "a.ckpt")["epoch"] == 4
    background.teardown()


# Errors.


def unwritable(tmp_path):
    (tmp_path / "file").touch()
    return tmp_path / "file" / "a.ckpt"


def test_an_error_is_raised_by_the_next_save_once_and_its_callbacks_are_dropped(tmp_path, background):
    background.save_checkpoint(state(), unwritable(tmp_path))
    background.when_written(unwritable(tmp_path), str)
    with pytest.raises(CheckpointError, match=r"file/a\.ckpt: (Not a directory|File exists)\. There are .* MiB free"):
        background.save_checkpoint(state(2.0), tmp_path / "b.ckpt")
    assert not (tmp_path / "b.ckpt").exists()
    background.save_checkpoint(state(3.0), tmp_path / "b.ckpt")
    assert background.load_checkpoint(tmp_path / "b.ckpt")["epoch"] == 3
    background.wait()
    assert background.finished() == []


@pytest.mark.parametrize("ends", ["wait", "teardown"])
def test_the_end_raises_it_too(tmp_path, background, ends):
    background.save_checkpoint(state(), unwritable(tmp_path))
    with pytest.raises(CheckpointError, match=r"file/a\.ckpt") as caught:
        getattr(background, ends)()
    assert isinstance(caught.value.__cause__, OSError)
    background.teardown()


def test_any_error_of_another_io_becomes_a_checkpoint_error(tmp_path):
    class Broken(CheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            raise KeyError("bucket")

    background = AsyncCheckpointIO(Broken())
    background.save_checkpoint(state(), tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"Could not save the checkpoint .*a\.ckpt: KeyError: 'bucket' \(.*\.py, line"
    ) as caught:
        background.wait()
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_that_nobody_asked_for_is_told_in_the_end(tmp_path):
    background = AsyncCheckpointIO()
    background.save_checkpoint(state(), unwritable(tmp_path))
    background._thread.join()
    with pytest.warns(LeydenWarning, match=r"file/a\.ckpt.*LD220"):
        del background


def test_something_else_is_refused():
    with pytest.raises(TypeError, match=r"checkpoint_io='torch'.* is no CheckpointIO"):
        AsyncCheckpointIO("torch")


# The end of the program.

PROGRAM = """
import os, sys, torch
from leyden.plugins import AsyncCheckpointIO

folder = sys.argv[1]
children = []
for role in ("ends", "exits", "raises", "forgets", "fails"):
    children.append(os.fork())
    if children[-1] == 0:
        break
else:
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(codes)
    os._exit(0)

name = "file/" if role == "fails" else ""
background = AsyncCheckpointIO()
background.save_checkpoint({"x": torch.ones(5_000_000)}, f"{folder}/{name}{role}.ckpt")
assert not os.path.exists(f"{folder}/{name}{role}.ckpt")
if role == "exits":
    sys.exit(3)
if role == "raises":
    raise KeyError(1)
if role == "forgets":
    del background
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_program_that_ends_leaves_a_whole_file_does_not_hang_and_tells_of_what_failed(tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "[0, 3, 1, 0, 0]\n", done.stderr
    (tmp_path / "file").unlink()
    assert sorted(os.listdir(tmp_path)) == ["ends.ckpt", "exits.ckpt", "forgets.ckpt", "raises.ckpt"]
    for name in os.listdir(tmp_path):
        assert torch.equal(plain.load_checkpoint(tmp_path / name)["x"], torch.ones(5_000_000))
    assert "file/fails.ckpt: File exists" in done.stderr and "LD220" in done.stderr


# In a run.


def test_a_trainer_takes_it_and_all_files_are_whole_when_fit_returns(tmp_path):
    assert FromPlugins is AsyncCheckpointIO
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=1, save_last=True)
    trainer = Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, callbacks=saver, plugins=AsyncCheckpointIO(), default_root_dir=tmp_path,
    )  # fmt: skip
    model = BoringModel()
    trainer.fit(model)
    assert sorted(os.listdir(tmp_path)) == ["epoch=0-step=5.ckpt", "last.ckpt"]
    for name in os.listdir(tmp_path):
        loaded = plain.load_checkpoint(tmp_path / name)
        assert loaded["global_step"] == 5
        assert torch.equal(loaded["state_dict"]["layer.weight"], model.layer.weight)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("leyden")]
