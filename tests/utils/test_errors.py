"""Warnings that are given once a run, and hints at the right spelling."""

import warnings

import pytest

from leyden.utils.errors import (
    CheckpointError,
    LeydenWarning,
    MisconfigurationError,
    MisconfigurationException,
    NotBuiltError,
    forget_warnings,
    nearest,
    warn,
)


def given(*calls):
    """The messages that come of ``warn(*arguments)`` for each of the calls."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for identity, subject in calls:
            warn(identity, f"About {subject}.", subject=subject)
    return [str(warning.message) for warning in caught]


def test_a_warning_is_given_once_and_ends_in_its_id():
    assert given(("LD998", ""), ("LD998", "")) == ["About . [LD998]"]


def test_every_subject_has_its_own():
    assert given(("LD998", "a"), ("LD998", "b"), ("LD998", "a")) == ["About a. [LD998]", "About b. [LD998]"]


def test_a_new_run_begins_anew():
    given(("LD998", "a"))
    forget_warnings()
    assert given(("LD998", "a")) == ["About a. [LD998]"]


def test_it_can_be_silenced_by_its_id():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*\[LD998\]")
        warn("LD998", "No matter.")
        with pytest.raises(LeydenWarning):
            warn("LD999", "Matters.")


def test_it_points_at_the_line_that_caused_it():
    def of_the_framework():
        warn("LD998", "Here.")

    with pytest.warns(LeydenWarning) as caught:
        of_the_framework()
    assert caught[0].filename == __file__


def test_other_processes_keep_quiet(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert given(("LD998", "")) == []


@pytest.mark.parametrize(
    ("word", "allowed", "hint"),
    [
        ("val_los", ["train_loss", "val_loss"], " Did you mean 'val_loss'?"),
        ("VAL_LOSS", ["val_loss"], " Did you mean 'val_loss'?"),
        ("adam", ["Adam", "SGD"], " Did you mean 'Adam'?"),
        ("zzz", ["train_loss", "val_loss"], ""),
        ("val_loss", [], ""),
        (16, ["16-mixed"], ""),
        ("16-mixd", iter(["16-mixed", "32-true"]), " Did you mean '16-mixed'?"),
    ],
)
def test_the_nearest_spelling_is_hinted_at(word, allowed, hint):
    assert nearest(word, allowed) == hint


def test_the_kinds_of_errors_can_be_caught_by_what_they_are():
    assert MisconfigurationException is MisconfigurationError
    assert issubclass(MisconfigurationError, ValueError)
    assert issubclass(CheckpointError, RuntimeError)
    error = NotBuiltError("Sharding", "Use one device.")
    assert isinstance(error, MisconfigurationError)
    assert str(error) == "Sharding is not built yet in Leyden. Use one device."


def test_a_warning_points_at_the_line_of_the_user_who_caused_it():
    from models import TinyModel

    with pytest.warns(LeydenWarning) as warned:
        TinyModel().log("loss", 1.0)
    assert warned[0].filename == __file__
