"""leyden verify, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from leyden.cli.verify import _given, _parsed
from leyden.utils.errors import MisconfigurationError

VERIFY = [sys.executable, "-m", "leyden.cli.main", "verify"]
DEMO = "leyden.demos.boring_classes"

SCRIPT = textwrap.dedent(
    """
    import torch
    from torch.utils.data import DataLoader
    from leyden import LightningDataModule
    from leyden.demos.boring_classes import BoringModel, RandomDataset

    class Net(BoringModel):
        train_dataloader = val_dataloader = None

        def __init__(self):
            super().__init__()
            self.mean = torch.zeros(32)

        def training_step(self, batch, batch_idx):
            self.mean = 0.9 * self.mean + 0.1 * batch.mean(0)
            return super().training_step(batch - self.mean, batch_idx)

    class Sized(BoringModel):
        def __init__(self, size):
            super().__init__()

    def loaders():
        return DataLoader(RandomDataset(32, 64)), DataLoader(RandomDataset(32, 8))

    def both():
        return BoringModel(), loaders()

    model, number = BoringModel(), 3

    if __name__ == "__main__":
        raise SystemExit("this is not to run")
    """
)


def verify(folder, *arguments):
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.run([*VERIFY, *arguments], cwd=folder, capture_output=True, text=True, env=environment)


def test_a_demo_is_verified_and_nothing_is_left_behind(tmp_path):
    run = verify(tmp_path, f"{DEMO}:BoringModel", "--data", f"{DEMO}:BoringDataModule", "--trainer", "accelerator=cpu")
    assert (run.returncode, run.stderr) == (0, "")
    assert f"Verification of {DEMO}:BoringModel, each run in a new interpreter" in run.stdout
    assert run.stdout.endswith("Verified.\n")
    assert list(tmp_path.iterdir()) == []


def test_an_attribute_that_is_missed_is_named_and_the_status_is_1(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    run = verify(tmp_path, "train.py:Net", "--data", "train.py:loaders", "--steps", "2", "--trainer", "accelerator=cpu")
    assert (run.returncode, run.stderr) == (1, "")
    assert "Net.mean changed in training and is not restored from the checkpoint; register it" in run.stdout
    assert "The resumed run differs because of it." in run.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {"train.py", "__pycache__"}


def test_what_cannot_be_run_is_status_2_and_says_why(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    run = verify(tmp_path, "train.py:Nett")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "leyden verify: TARGET train.py:Nett: there is no Nett in train.py. Did you mean 'Net'?\n"
    run = verify(tmp_path, "train.py:Net", "--steps", "1")
    assert (run.returncode, run.stderr) == (2, "leyden verify: steps=1 is not a whole number from 2 up.\n")


SLOW = """
import os, time
from leyden.demos.boring_classes import BoringModel

class Slow(BoringModel):
    def training_step(self, batch, batch_idx):
        open(f"pid-{os.getpid()}", "w").close()
        time.sleep(600)
        return super().training_step(batch, batch_idx)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_when_it_is_ended_its_run_is_too(tmp_path, how):
    (tmp_path / "slow.py").write_text(SLOW)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    main = subprocess.Popen(
        [*VERIFY, "slow.py:Slow"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    while not (found := list(tmp_path.glob("pid-*"))):
        assert main.poll() is None
        time.sleep(0.1)
    main.send_signal(how)
    assert main.wait(timeout=60) == -how
    pid = int(found[0].name.removeprefix("pid-"))
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process {pid} is still there")


@pytest.mark.parametrize(
    ("target", "data", "message"),
    [
        ("train.py", None, "TARGET train.py is not of the form train.py:Net or package.module:Net"),
        ("other.py:Net", None, "TARGET other.py:Net: there is no file other.py"),
        ("no.such:Net", None, "TARGET no.such:Net: No module named 'no'"),
        ("train.py:number", None, "TARGET train.py:number gives a int"),
        ("train.py:Sized", None, "TARGET train.py:Sized cannot be called without arguments: .*'size'"),
        ("train.py:both", "train.py:loaders", "TARGET train.py:both gives data, and --data train.py:loaders too"),
    ],
)
def test_a_wrong_target_is_explained(tmp_path, monkeypatch, target, data, message):
    (tmp_path / "train.py").write_text(SCRIPT)
    forget_imports(monkeypatch)
    with pytest.raises(MisconfigurationError, match=message):
        _given(target, data)


def forget_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "train", None)
    del sys.modules["train"]


def test_models_and_data_come_as_classes_instances_and_functions(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(SCRIPT)
    forget_imports(monkeypatch)
    model, train, val, datamodule = _given("train.py:both", None)
    assert (type(model).__name__, len(train), len(val), datamodule) == ("BoringModel", 64, 8, None)
    model, *data = _given("train.py:model", None)
    assert (model is sys.modules["train"].model, data) == (True, [None, None, None])
    model, train, val, datamodule = _given("train.py:Net", f"{DEMO}:BoringDataModule")
    assert (type(model).__name__, train, val, type(datamodule).__name__) == ("Net", None, None, "BoringDataModule")


def test_arguments_of_the_trainer_are_literals_or_text():
    options = ["precision=bf16", "accumulate_grad_batches=2", "limit_val_batches=0.5", "deterministic=True"]
    assert _parsed(options) == {
        "precision": "bf16",
        "accumulate_grad_batches": 2,
        "limit_val_batches": 0.5,
        "deterministic": True,
    }
    with pytest.raises(MisconfigurationError, match="--trainer 'precision' is not of the form name=value"):
        _parsed(["precision"])
