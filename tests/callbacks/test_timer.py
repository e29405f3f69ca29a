"""Timer: what it measures, and when it ends training."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from leyden.callbacks.timer import Timer
from leyden.utils.errors import MisconfigurationError
from scripted import Scripted, fit


class Slow(Scripted):
    """Every batch takes at least 20 ms."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


def test_training_ends_after_the_batch_in_which_the_time_is_over():
    trainer = fit(Slow(), Timer(timedelta(milliseconds=50)), validate=False, max_epochs=9)
    assert 1 <= trainer.global_step <= 3
    assert trainer.state.stop_reason.startswith("Timer: ")


def test_with_interval_epoch_the_epoch_is_finished():
    trainer = fit(Slow(), Timer(timedelta(milliseconds=20), interval="epoch"), validate=False, max_epochs=9)
    assert (trainer.global_step, trainer.current_epoch) == (4, 1)


def test_no_time_at_all_trains_nothing():
    assert fit(Scripted(), Timer("00:00:00:00"), max_epochs=9).global_step == 0


def test_min_steps_comes_first_and_the_end_is_said_once(capsys):
    trainer = fit(Scripted(), Timer({"seconds": 0}), max_epochs=9, min_steps=6)
    assert trainer.global_step == 6
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("Timer")] == [
        "Timer: 0:00:00 of training are over."
    ]


def test_every_stage_is_measured():
    timer = Timer({"hours": 1})
    assert timer.time_elapsed() == 0
    assert timer.start_time() is None
    trainer = fit(Slow(), timer, max_epochs=1)
    assert 0.08 <= timer.time_elapsed() == timer.end_time() - timer.start_time()
    assert timer.time_remaining() == 3600 - timer.time_elapsed()
    assert timer.start_time() < timer.start_time("validate") < timer.end_time("validate") < timer.end_time()
    assert 0 < timer.time_elapsed("validate") < timer.time_elapsed()
    assert timer.time_elapsed("sanity_check") > 0
    assert timer.time_elapsed("test") == 0
    assert trainer.current_epoch == 1


def test_without_a_duration_nothing_remains_and_nothing_stops():
    timer = Timer()
    assert fit(Scripted(), timer, max_epochs=1).global_step == 4
    assert timer.time_remaining() is None


def test_time_before_a_resume_counts():
    trainer = fit(Slow(), before := Timer(), validate=False, max_epochs=1)
    trainer.save_checkpoint("one.ckpt")
    after = Timer({"seconds": before.time_elapsed() + 0.05})
    trainer = fit(Slow(), after, ckpt_path="one.ckpt", validate=False, max_epochs=9)
    assert 4 < trainer.global_step <= 7
    assert after.time_elapsed() > before.time_elapsed() + 0.05


def test_a_resumed_run_without_time_left_trains_nothing():
    trainer = fit(Slow(), before := Timer(), validate=False, max_epochs=1)
    trainer.save_checkpoint("one.ckpt")
    after = Timer({"seconds": before.time_elapsed() / 2})
    assert fit(Slow(), after, ckpt_path="one.ckpt", validate=False, max_epochs=9).global_step == 4


def test_the_state_names_the_stages_as_lightning_does():
    assert Timer().state_dict() == {
        "time_elapsed": {"train": 0.0, "sanity_check": 0.0, "validate": 0.0, "test": 0.0, "predict": 0.0}
    }


def test_a_stage_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(MisconfigurationError, match=r"no stage 'training'.*Did you mean 'train'\?"):
        Timer().time_elapsed("training")


def test_an_unknown_interval_is_refused():
    with pytest.raises(MisconfigurationError, match=r"interval='steps'.*Did you mean 'step'\?"):
        Timer(interval="steps")


def test_a_duration_that_is_none_is_refused_with_the_format():
    with pytest.raises(MisconfigurationError, match=r"duration='1h'.*DD:HH:MM:SS"):
        Timer("1h")
