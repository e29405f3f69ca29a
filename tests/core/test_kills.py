"""A training that is killed again and again, at random, goes on each time, and ends as the one that never was."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import leyden
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.fabric.checkpoint_io import verify_checkpoint
from leyden.utils.errors import forget_warnings
from models import FEATURES, ValidatedModel, tiny_data, tiny_loader

EPOCHS, BATCHES = 6, 8
KILLS = 100  # in each of the two cases


class Model(ValidatedModel):
    """About 1 MB of weights, so that a checkpoint takes its time; dropout, and Adam."""

    def __init__(self):
        super().__init__("adam", 0.001)
        generator = torch.Generator().manual_seed(0)
        wide = nn.Linear(FEATURES, 4000)
        wide.weight.data = torch.randn(4000, FEATURES, generator=generator) / FEATURES
        wide.bias.data.zero_()
        narrow = nn.Linear(4000, FEATURES)
        narrow.weight.data = torch.randn(FEATURES, 4000, generator=generator) / 4000
        narrow.bias.data.zero_()
        self.net = nn.Sequential(wide, nn.Dropout(0.2), nn.ReLU(), narrow, *self.net)


class SaysThatOneIsSafe(Callback):
    """Leaves a mark when the first checkpoint is on disk."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step > 1:
            Path("safe").touch()


class OnePath(Callback):
    """Writes one file again and again, as people do by hand."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.save_checkpoint("kept/last.ckpt")


def fit(saver):
    torch.manual_seed(1)
    random.seed(1)
    trainer = leyden.Trainer(
        max_epochs=EPOCHS,
        callbacks=[SaysThatOneIsSafe(), saver, *([keeps()] if isinstance(saver, OnePath) else [])],
        val_check_interval=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        warnings={"LD131": "ignore"},
    )
    model = Model()
    loader = DataLoader(tiny_data(16 * BATCHES), batch_size=16, shuffle=True)
    trainer.fit(model, loader, tiny_loader(1, seed=1), ckpt_path="auto")
    return model.state_dict()


def keeps():
    return ModelCheckpoint(dirpath="kept", save_top_k=0, save_last=False)


def kept_at_each_step():
    return ModelCheckpoint(dirpath="kept", every_n_train_steps=1, save_top_k=1, save_last=True)


def killed_after(seconds, saver):
    """Train in a fork and kill it after so long; True if it came to its end before that."""
    child = os.fork()
    if child == 0:
        try:
            torch.save(fit(saver()), "weights.tmp")
            os.replace("weights.tmp", "weights.pt")
        finally:
            os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("saver", "temporary"), [(kept_at_each_step, "/tmp"), (OnePath, "/dev/shm")])
def test_after_any_kill_the_files_are_whole_and_the_run_goes_on_to_the_same_end(
    saver, temporary, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TMPDIR", temporary)  # on another file system than the checkpoints
    monkeypatch.chdir(tmp_path)
    whole = fit(saver())
    kills, runs, draw = 0, 0, random.Random(7)
    nothing_to_resume_from = 0
    while kills < KILLS:
        folder = tmp_path / f"run{runs}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        runs += 1
        while not killed_after(draw.uniform(0.02, 0.5), saver):
            kills += 1
            files = list(Path("kept").glob("*.ckpt"))
            for file in files:
                verify_checkpoint(file)
            nothing_to_resume_from += Path("safe").exists() and not files
            strays = [name for name in os.listdir("kept") if not name.endswith(".ckpt")] if files else []
            assert len(strays) <= 1, strays
        weights = torch.load("weights.pt")
        assert all(torch.equal(weights[name], tensor) for name, tensor in whole.items())
    forget_warnings(None)
    assert nothing_to_resume_from == 0
    with capsys.disabled():
        print(f"\n{saver.__name__}: {kills} kills in {runs} runs; 0 files damaged, {runs} of {runs} ends bit-identical")
