"""leyden replay: the step at which a run was stopped, in a process of its own."""

import os
import re
import subprocess
import sys

import pytest
import torch

from leyden.cli.main import main

SCRIPT = """
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leyden

print("the script is read as", __name__)


class Net(leyden.LightningModule):
    def __init__(self, width=8, rate=0.5):
        super().__init__()
        self.save_hyperparameters()
        self.first = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(rate))
        self.last = nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = self.first(x)
        kept = (hidden != 0).sum()
        if self.global_step == 5 and batch_idx == 1 and self.current_epoch == 1:
            hidden = hidden / 0
        loss = nn.functional.mse_loss(self.last(hidden), y)
        self.log("loss", loss)
        print("kept", int(kept), f"{float(self.first[0].weight.sum()):.8f}")
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Manual(Net):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


if __name__ == "__main__":
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
    trainer = leyden.Trainer(
        max_epochs=3, enable_progress_bar=False, enable_model_summary=False, logger=False, log_every_n_steps=1,
        precision=sys.argv[2], accelerator="cpu", warnings={"LD292": "ignore"},
    )
    trainer.fit(globals()[sys.argv[1]](width=6), DataLoader(data, 8, shuffle=True))
"""


def python(*arguments, cwd):
    """Run in a fresh process; returns its exit status and what it has printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, env=environment
    )
    return done.returncode, done.stdout, done.stderr


def replay(*arguments, cwd):
    return python("-m", "leyden.cli.main", "replay", *arguments, cwd=cwd)


def stopped_run(folder, name="Net", precision="32-true"):
    """The folder of a run of the script that was stopped in its sixth step, and what it has printed."""
    (folder / "train.py").write_text(SCRIPT)
    status, out, err = python("train.py", name, precision, cwd=folder)
    assert status == 1 and "NonFiniteLossError" in err, err
    assert (folder / "nonfinite-step=5.bundle").exists(), err
    return folder, out, err


def refused(capsys, *arguments):
    """What ``leyden replay`` says as it refuses."""
    with pytest.raises(SystemExit) as ended:
        main(["replay", *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def modules_as_before(monkeypatch):
    """Forget what a test has imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("train", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return stopped_run(tmp_path_factory.mktemp("run"))


def test_the_step_is_run_again_with_the_same_weights_and_dropout_mask(run):
    folder, printed, error = run
    command = re.search(r"leyden (replay .+)", error).group(1)
    assert command == "replay nonfinite-step=5.bundle --model train.py:Net"
    status, out, err = python("-m", "leyden.cli.main", *command.split(), cwd=folder)
    assert status == 0, err
    assert out.startswith("the script is read as train\n")  # not as __main__, which would train
    assert printed.strip().splitlines()[-1] in out.splitlines()  # as many kept, and the same sum of weights
    assert "epoch 1, batch 1, global step 5; 32-true on cpu" in out
    assert re.search(r"│ first\.2\s+│ +Dropout │ +1 │ .* │ +0 of 48 │", out)
    assert re.search(r"│ last\s+│ +Linear │ +1 │ +│ +│ +8 of 8 │", out)
    assert (
        "Loss: nan\nThe first output that is not finite is that of last (Linear), 8 of 8 numbers, from an input" in out
    )


def test_nothing_that_a_bundle_names_is_imported_without_being_asked_for(run, capsys):
    folder, _, _ = run
    said = refused(capsys, str(folder / "nonfinite-step=5.bundle"))
    assert "says it is train.py:Net. If that is your code, which will run: leyden replay" in said
    assert "train" not in sys.modules


def test_a_loss_that_is_finite_now_has_a_status_of_its_own(run):
    folder, _, _ = run
    (folder / "mended.py").write_text(SCRIPT.replace("hidden = hidden / 0", "pass"))
    status, out, _ = replay("nonfinite-step=5.bundle", "--model", "mended:Net", cwd=folder)
    assert status == 3
    assert re.search(r"Loss: \d+\.\d+\nIt is finite here", out)


@pytest.mark.parametrize(("name", "precision"), [("Manual", "64-true"), ("Net", "bf16-mixed")])
def test_manual_optimization_and_other_precisions_are_run_again_as_they_were(tmp_path, name, precision):
    folder, printed, _ = stopped_run(tmp_path, name, precision)
    status, out, err = replay("nonfinite-step=5.bundle", "--model", f"train.py:{name}", cwd=folder)
    assert status == 0, err
    assert printed.strip().splitlines()[-1] in out.splitlines()
    assert f"{precision} on cpu" in out and "Loss: nan" in out


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("train.py", "not of the form"),
        ("train.py:Nett", "there is no Nett in train.py. Did you mean 'Net'?"),
        ("train.py:nn.Linear", "is not a LightningModule class"),
        ("gone.py:Net", "there is no file gone.py"),
        ("gone:Net", "No module named 'gone'"),
    ],
)
def test_a_model_that_cannot_be_found_is_said_to_be(run, model, said, capsys, monkeypatch):
    monkeypatch.chdir(run[0])
    assert said in refused(capsys, "nonfinite-step=5.bundle", "--model", model)


def test_a_file_that_is_no_bundle_is_refused(capsys):
    torch.save({"state_dict": {}}, "other.ckpt")
    assert "is no bundle of a training step" in refused(capsys, "other.ckpt", "--model", "x:Y")
    assert "There is no checkpoint gone.bundle" in refused(capsys, "gone.bundle", "--model", "x:Y")


def test_what_a_bundle_brings_does_not_run(tmp_path, capsys):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"leyden_bundle": 1, "state_dict": {}, "batch": Payload()}, "bad.bundle")
    assert "can run code" in refused(capsys, "bad.bundle", "--model", "x:Y")
    assert not (tmp_path / "ran").exists()
