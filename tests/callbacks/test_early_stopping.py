"""EarlyStopping: when it asks for the end of training, and why."""

from __future__ import annotations

import math

import pytest
import torch

from leyden.callbacks.early_stopping import EarlyStopping, EarlyStoppingReason
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from scripted import Computed, Scripted, fit

NAN, INF = math.nan, math.inf


def stopped(*values: float, trainer: dict | None = None, **options) -> tuple[EarlyStopping, int]:
    """The callback after a fit in which the metric took ``values``, and the epochs that were trained."""
    stopping = EarlyStopping("v", **options)
    return stopping, fit(Scripted(*values), stopping, **trainer or {}).current_epoch


@pytest.mark.parametrize(
    ("values", "options", "epochs", "waited", "best"),
    [
        ((1, 0.9, 0.95, 0.96, 0.97, 0.5), {"patience": 2}, 4, 2, 0.9),
        ((1, 0.9, 0.95, 0.96), {"patience": 1}, 3, 1, 0.9),
        ((1, 0.9, 0.95, 0.96), {"patience": 0}, 3, 1, 0.9),
        ((1, 0.95, 0.9, 0.8), {"patience": 1, "min_delta": 0.1}, 2, 1, 1.0),
        ((1, 0.75, 0.5, 0.25), {"patience": 1, "min_delta": 0.25}, 2, 1, 1.0),
        ((0.1, 0.2, 0.15, 0.1, 0.1), {"patience": 2, "mode": "max"}, 4, 2, 0.2),
        ((0.25, 0.5, 0.625, 0.75, 0.25, 1), {"patience": 2, "mode": "max", "min_delta": 0.25}, 5, 2, 0.625),
    ],
)
def test_patience_counts_the_checks_without_an_improvement_of_min_delta(values, options, epochs, waited, best):
    stopping, trained = stopped(*values, **options)
    assert (trained, stopping.wait_count) == (epochs, waited)
    assert stopping.best_score.item() == pytest.approx(best)


def test_a_metric_that_keeps_improving_stops_nothing():
    stopping, trained = stopped(5.0, 4.0, 3.0, 2.0, patience=1)
    assert trained == 4
    assert stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    assert stopping.stopping_reason_message is None
    assert stopping.stopped_epoch == 0


def test_the_reason_can_be_read_afterwards():
    stopping = EarlyStopping("v", patience=2)
    trainer = fit(Scripted(1.0, 0.9, 0.95, 0.96, 0.5), stopping)
    assert stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert stopping.stopping_reason_message == "EarlyStopping: v has not improved on 0.900 in 2 checks."
    assert stopping.stopped_epoch == 3
    assert trainer.state.stop_reason == stopping.stopping_reason_message


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_metric_that_is_not_finite_stops(value):
    stopping, trained = stopped(1.0, value, 0.1)
    assert trained == 2
    assert stopping.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC
    assert f"v is {value}" in stopping.stopping_reason_message
    assert stopping.best_score == 1


def test_without_check_finite_nan_is_no_improvement():
    stopping, trained = stopped(1.0, NAN, 0.1, 0.2, 0.3, 0.4, check_finite=False, patience=2)
    assert trained == 5
    assert stopping.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED


def test_the_stopping_threshold_must_be_passed_not_reached():
    stopping, trained = stopped(1.0, 0.5, 0.25, 0.2, 0.1, stopping_threshold=0.25)
    assert trained == 4
    assert stopping.stopping_reason is EarlyStoppingReason.STOPPING_THRESHOLD


def test_the_divergence_threshold_stops_on_the_other_side():
    stopping, trained = stopped(1.0, 0.5, 2.0, 3.0, 0.1, divergence_threshold=2.0)
    assert trained == 4
    assert stopping.stopping_reason is EarlyStoppingReason.DIVERGENCE_THRESHOLD
    stopping, trained = stopped(0.5, 0.1, 0.9, mode="max", divergence_threshold=0.2)
    assert (trained, stopping.stopping_reason) == (2, EarlyStoppingReason.DIVERGENCE_THRESHOLD)


def test_min_epochs_comes_first():
    stopping, trained = stopped(1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, patience=1, trainer={"min_epochs": 5})
    assert trained == 5
    assert stopping.wait_count == 4


def test_several_validations_an_epoch_are_several_checks():
    trainer = {"val_check_interval": 0.5, "max_epochs": 4}
    stopping, trained = stopped(1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, patience=2, trainer=trainer)
    assert trained == 1
    assert stopping.wait_count == 2


def test_check_on_train_epoch_end_looks_once_an_epoch():
    trainer = {"val_check_interval": 0.5, "max_epochs": 4}
    stopping, trained = stopped(*[1.0, 2.0] * 4, patience=1, check_on_train_epoch_end=True, trainer=trainer)
    assert trained == 2
    assert stopping.best_score == 2


def test_validation_in_every_second_epoch_is_one_check():
    stopping, trained = stopped(1.0, 2.0, 2.0, 2.0, patience=1, trainer={"check_val_every_n_epoch": 2, "max_epochs": 8})
    assert trained == 4
    assert stopping.wait_count == 1


def test_a_metric_that_the_first_validation_will_log_is_waited_for():
    trainer = {"check_val_every_n_epoch": 2, "max_epochs": 6}
    stopping, trained = stopped(1.0, 2.0, 2.0, patience=1, check_on_train_epoch_end=True, trainer=trainer)
    assert trained == 3  # the value of the second epoch is still there in the third
    assert stopping.best_score == 1


def test_a_training_metric_is_seen_where_there_is_no_validation():
    stopping = EarlyStopping("t", patience=2)
    trainer = fit(Scripted(train_values=(1.0,) * 16), stopping, validate=False, max_epochs=4)
    assert trainer.current_epoch == 3


def test_what_the_module_logs_at_the_end_of_the_epoch_is_seen():
    class Model(Scripted):
        def on_train_epoch_end(self):
            self.log("e", 1.0)

    stopping = EarlyStopping("e", patience=1)
    assert fit(Model(), stopping, validate=False, max_epochs=4).current_epoch == 2


def test_a_metric_that_is_not_logged_is_an_error_with_the_nearest_name():
    message = (
        r"EarlyStopping\(monitor='val_los'\) matches nothing logged. .*'val_loss'\? With strict=False training goes on"
    )
    with pytest.raises(RuntimeError, match=message):
        fit(Computed(1.0), EarlyStopping("val_los"))


def test_without_strict_training_goes_on():
    assert fit(Computed(1.0, 2.0), EarlyStopping("nope", strict=False)).current_epoch == 2
    with pytest.warns(LeydenWarning, match="LD130"):
        fit(Computed(1.0, 2.0), EarlyStopping("nope", strict=False, verbose=True))


def test_a_trial_run_is_left_alone():
    stopping, _ = stopped(NAN, trainer={"fast_dev_run": True})
    assert stopping.stopping_reason is EarlyStoppingReason.NOT_STOPPED


def test_verbose_says_every_improvement_and_once_why_it_stopped(capsys):
    stopped(0.5, 0.25, 0.3, 0.3, 0.3, 0.3, patience=1, verbose=True, trainer={"min_epochs": 5})
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("EarlyStopping")]
    assert said == [
        "EarlyStopping: v improved to 0.500.",
        "EarlyStopping: v improved to 0.250, from 0.500.",
        "EarlyStopping: v has not improved on 0.250 in 1 check.",
    ]


def test_the_count_goes_on_after_a_resume_with_the_new_patience():
    before = EarlyStopping("v", patience=2)
    trainer = fit(Scripted(1.0, 2.0, 2.0, 2.0), before)
    assert trainer.current_epoch == 3
    trainer.save_checkpoint("stopped.ckpt")
    after = EarlyStopping("v", patience=4)
    trainer = fit(Scripted(*[2.0] * 5), after, ckpt_path="stopped.ckpt", max_epochs=8)
    assert trainer.current_epoch == 5
    assert (after.wait_count, after.patience, after.best_score.item()) == (4, 4, 1.0)


def test_a_resumed_run_that_ends_by_itself_has_no_stopping_reason():
    trainer = fit(Scripted(1.0, 2.0, 2.0), EarlyStopping("v", patience=1))
    trainer.save_checkpoint("stopped.ckpt")
    after = EarlyStopping("v", patience=9)
    fit(Scripted(0.5), after, ckpt_path="stopped.ckpt", max_epochs=3)
    assert after.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    assert after.best_score == 0.5


def test_the_state_of_lightning_is_read_without_its_patience():
    stopping = EarlyStopping("v", patience=7)
    stopping.load_state_dict({"wait_count": 2, "stopped_epoch": 3, "best_score": torch.tensor(0.5), "patience": 3})
    assert (stopping.wait_count, stopping.patience) == (2, 7)
    assert stopping.state_dict()["patience"] == 7  # Lightning cannot read a state without


def test_the_state_key_names_metric_and_mode():
    assert EarlyStopping("v", mode="max").state_key == "EarlyStopping{'monitor': 'v', 'mode': 'max'}"


@pytest.mark.parametrize("patience", [-1, 2.5, True, "3"])
def test_a_patience_that_is_no_count_is_refused(patience):
    with pytest.raises(MisconfigurationError, match="patience="):
        EarlyStopping("v", patience=patience)


def test_an_unknown_mode_is_refused_with_the_nearest():
    with pytest.raises(MisconfigurationError, match=r"mode='maxx'.*Did you mean 'max'\?"):
        EarlyStopping("v", mode="maxx")


def test_a_monitor_without_a_name_is_refused():
    with pytest.raises(MisconfigurationError, match="monitor=None"):
        EarlyStopping(None)
