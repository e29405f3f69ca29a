"""Signals that end a process: training is saved between two batches, and goes on as if it had never been stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import leyden
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.signals import SignalException
from leyden.utils.errors import SIGTERMException
from models import ValidatedModel, tiny_data, tiny_loader

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]


class Model(ValidatedModel):
    """Its weights depend on the order of the data and on dropout; it may be sent a signal in a step."""

    def __init__(self, number=0, where="", at=7):
        super().__init__()
        self.net.insert(1, nn.Dropout(0.2))
        self.number, self.where, self.at, self.validated = number, where, at, 0

    def training_step(self, batch, batch_idx):
        if self.where == "step" and self.trainer.state.position.batch_total == self.at:
            os.kill(os.getpid(), self.number)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.validated += 1
        if self.where == "validation" and self.validated == self.at:
            os.kill(os.getpid(), self.number)
        super().validation_step(batch, batch_idx)


class Blocking:
    """Data that sends a signal, and then keeps whoever reads it waiting."""

    def __init__(self, number, seconds):
        self.data, self.number, self.seconds, self.reads = tiny_data(80), number, seconds, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.reads += 1
        if self.number and self.reads == 110:
            os.kill(os.getpid(), self.number)
            time.sleep(self.seconds)
        return self.data[index]


class SignalsWhenSaved(Callback):
    """Sends a signal while a checkpoint is made."""

    def __init__(self, number):
        self.number = number

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        if self.number:
            os.kill(os.getpid(), self.number)


def fit(model, dataset=None, *callbacks, path=None, **options):
    torch.manual_seed(1 if path is None else 99)
    keeps = ModelCheckpoint(dirpath="kept", every_n_train_steps=7, save_top_k=-1)
    defaults = {"max_epochs": 3, "callbacks": [*callbacks, keeps], "val_check_interval": 2, **QUIET}
    trainer = leyden.Trainer(**defaults | options)
    loader = DataLoader(dataset or tiny_data(80), batch_size=16, shuffle=True)
    trainer.fit(model, loader, tiny_loader(3, seed=1), ckpt_path=path)
    return model


def exit_code(work, *args):
    """Run ``work`` in a fork of this process; returns the exit status as a shell has it, and the seconds it took."""
    began, child = time.monotonic(), os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            work(*args)
            code = 0
        except SystemExit as error:
            code = error.code
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def with_the_systems_handlers():
    """Under nohup and the like a process begins with signals that are ignored, and stays so."""
    defaults = dict.fromkeys(SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert fit(Model(signal.SIGHUP, "step"), max_epochs=2).trainer.global_step == 10
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("whole"))
    try:
        return fit(Model()).state_dict()
    finally:
        os.chdir(before)


@pytest.mark.parametrize("where", ["step", "validation", "fetch", "saving"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_training_is_saved_and_goes_on_as_if_nothing_had_been(number, where, whole):
    def interrupted():
        fit(
            Model(number, where),
            Blocking(number * (where == "fetch"), 60),
            SignalsWhenSaved(number * (where == "saving")),
        )

    code, seconds = exit_code(interrupted)
    assert code == 128 + number
    assert seconds < 20
    position = torch.load("kept/preempt.ckpt")["leyden"]["position"]
    assert (position["batch_total"], position["tail"]) == {
        "step": (8, 0),
        "validation": (4, 2),  # the validation behind batch 4 begins anew: the 7th batch of all had been its second
        "fetch": (6, 0),
        "saving": (7, 0),
    }[where]
    resumed = fit(Model(), None, SignalsWhenSaved(0), path="kept/preempt.ckpt")
    assert all(torch.equal(resumed.state_dict()[name], weight) for name, weight in whole.items())


def test_a_process_ends_with_the_status_that_shells_know():
    script = """
        import os, signal, sys
        import leyden
        from leyden.demos.boring_classes import BoringModel

        class Model(BoringModel):
            def training_step(self, batch, batch_idx):
                if batch_idx == 3:
                    os.kill(os.getpid(), int(sys.argv[1]))
                return super().training_step(batch, batch_idx)

        leyden.Trainer(max_epochs=1, logger=False, enable_progress_bar=False, accelerator="cpu").fit(Model())
    """
    Path("script.py").write_text(textwrap.dedent(script))
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)):  # shells make 130 of the latter
        ended = subprocess.run(
            [sys.executable, "script.py", str(int(number))],
            capture_output=True,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
        assert ended.returncode == code
        assert f"{number.name} has ended training at step 4; saved" in ended.stderr
        assert torch.load("checkpoints/preempt.ckpt")["global_step"] == 4


def test_what_does_not_end_is_left_behind_when_the_grace_period_is_over(capfd):
    class Stuck(Model):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            return loss

    code, seconds = exit_code(lambda: fit(Stuck(), preempt_grace=1))
    assert code == 143
    assert 1 <= seconds < 20
    assert not Path("kept/preempt.ckpt").exists()
    said = capfd.readouterr().err
    assert "SIGTERM came 1 s ago" in said
    assert "in training_step" in said  # where it hangs


def test_workers_that_get_the_signal_too_do_not_matter():
    def interrupted():
        os.setpgrp()
        data = DataLoader(Slow(), batch_size=16, num_workers=2)
        trainer = leyden.Trainer(max_epochs=1, callbacks=[ModelCheckpoint(dirpath="kept")], **QUIET)

        class Kills(Model):
            def training_step(self, batch, batch_idx):
                if batch_idx == 1:
                    os.killpg(0, signal.SIGTERM)
                    time.sleep(0.3)
                return super().training_step(batch, batch_idx)

        trainer.fit(Kills(), data, tiny_loader(1))

    assert exit_code(interrupted)[0] == 143
    assert torch.load("kept/preempt.ckpt")["global_step"] == 2


class Slow(Blocking):
    def __init__(self):
        super().__init__(0, 0)

    def __getitem__(self, index):
        time.sleep(0.005)
        return self.data[index]


def test_ctrl_c_twice_does_not_wait():
    class Impatient(Model):
        def training_step(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        fit(Impatient())
    assert not Path("kept/preempt.ckpt").exists()


def test_callbacks_hear_of_it_and_everybody_is_torn_down():
    heard = []

    class Hears(Callback):
        def on_exception(self, trainer, pl_module, exception):
            heard.append((type(exception), str(exception), trainer.received_sigterm))

        def teardown(self, trainer, pl_module, stage):
            heard.append(stage)

    with pytest.raises(SIGTERMException):
        fit(Model(signal.SIGTERM, "step"), None, Hears())
    Path("kept").rename("earlier")
    with pytest.raises(SignalException, match="SIGHUP"):
        fit(Model(signal.SIGHUP, "step"), None, Hears())
    assert heard[0][0] is SIGTERMException and heard[0][2] is True
    assert heard[1] == "fit"
    assert heard[2][1:] == ("SIGHUP", False)


def test_the_handlers_of_before_are_back_afterwards():
    mine = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        before = [signal.getsignal(number) for number in SIGNALS]
        inside = []

        class Looks(Callback):
            def on_train_start(self, trainer, pl_module):
                inside.extend(signal.getsignal(number) for number in SIGNALS)

        fit(Model(), None, Looks(), max_epochs=1)
        assert [signal.getsignal(number) for number in SIGNALS] == before
        assert inside[2] is before[2]  # somebody else's is left alone
        assert inside[0] is not before[0]
    finally:
        signal.signal(signal.SIGUSR1, mine)


def test_evaluation_stops_too_and_saves_nothing():
    def interrupted():
        trainer = leyden.Trainer(enable_checkpointing=False, **QUIET)
        trainer.validate(Model(signal.SIGTERM, "validation", at=2), tiny_loader(30))

    assert exit_code(interrupted)[0] == 143
    assert list(Path.cwd().iterdir()) == []


def test_without_a_checkpoint_callback_nothing_is_saved_and_it_says_so(capfd):
    def interrupted():
        trainer = leyden.Trainer(enable_checkpointing=False, max_epochs=1, **QUIET)
        trainer.fit(Model(signal.SIGTERM, "step", at=2), tiny_loader(5), tiny_loader(1))

    assert exit_code(interrupted)[0] == 143
    assert "Without a ModelCheckpoint nothing is saved" in capfd.readouterr().err


def test_slurm_is_asked_to_run_the_job_again(monkeypatch, capfd):
    Path("bin").mkdir()
    Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" > asked\n')
    Path("bin/scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert exit_code(lambda: fit(Model(signal.SIGUSR1, "step")))[0] == 138
    assert Path("asked").read_text() == "requeue 17\n"
    assert torch.load("kept/preempt.ckpt")["global_step"] == 8
    Path("kept").rename("earlier")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert exit_code(lambda: fit(Model(signal.SIGUSR1, "step")))[0] == 138
    assert Path("asked").read_text() == "requeue 12_3\n"


def test_a_job_that_slurm_runs_again_goes_on_by_itself(monkeypatch, whole):
    assert exit_code(lambda: fit(Model(signal.SIGUSR1, "step")))[0] == 138
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    resumed = fit(Model())
    assert resumed.trainer.ckpt_path == f"{Path.cwd()}/kept/preempt.ckpt"
    assert all(torch.equal(resumed.state_dict()[name], weight) for name, weight in whole.items())


def test_in_a_notebook_ctrl_c_ends_training_and_the_next_cell_runs(monkeypatch, whole):
    class ZMQInteractiveShell:  # what IPython's kernels run
        pass

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=ZMQInteractiveShell))
    stopped = fit(Model(signal.SIGINT, "step"))
    assert stopped.trainer.global_step == 8
    assert str(stopped.trainer.state.status) == "interrupted"
    resumed = fit(Model(), path="kept/preempt.ckpt")
    assert all(torch.equal(resumed.state_dict()[name], weight) for name, weight in whole.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_validation_that_is_broken_off_leaves_the_model_in_training_mode_and_the_trainer_ready(number):
    model = Model(number, "validation")
    with pytest.raises((KeyboardInterrupt, SIGTERMException)):
        fit(model)
    assert all(part.training for part in model.modules())
    validated = model.validated
    loader = DataLoader(tiny_data(80), batch_size=16, shuffle=True)
    model.trainer.fit(model, loader, tiny_loader(3, seed=1))  # goes on, with the validation that was broken off
    assert model.trainer.global_step == 15
    assert model.validated - validated == 3 * 5  # behind batch 4, and behind 2 and 4 of the other two epochs
