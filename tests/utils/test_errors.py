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


def test_ignored_it_is_not_given():
    forget_warnings({"LD998": "ignore"})
    assert given(("LD998", ""), ("LD999", "")) == ["About . [LD999]"]


def test_always_given_it_repeats_even_under_pythons_own_filter():
    forget_warnings({"LD998": "always"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("LD998", "Again.")
    assert [(warning.filename, str(warning.message)) for warning in caught] == [(__file__, "Again. [LD998]")] * 3


def test_as_an_error_it_is_raised_on_every_process(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    forget_warnings({"LD998": "error"})
    for _ in range(2):
        with warnings.catch_warnings(), pytest.raises(LeydenWarning, match=r"No\. \[LD998\]"):
            warnings.simplefilter("ignore")
            warn("LD998", "No.")


def test_actions_hold_until_the_next_run():
    forget_warnings({"LD998": "ignore"})
    forget_warnings()
    assert given(("LD998", "")) == ["About . [LD998]"]


def test_a_trainers_actions_hold_in_its_own_runs(tmp_path):
    from leyden.trainer import Trainer
    from models import ValidatedModel, tiny_loader

    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    bare |= {"enable_model_summary": False, "max_epochs": 1}
    silent = Trainer(**bare, warnings={"LD051": "ignore"})
    strict = Trainer(**bare, warnings={"LD051": "error"})
    silent.fit(ValidatedModel(), tiny_loader())
    with pytest.raises(LeydenWarning, match=r"\[LD051\]"):
        strict.fit(ValidatedModel(), tiny_loader())
    with pytest.warns(LeydenWarning, match=r"\[LD051\]"):
        Trainer(**bare).fit(ValidatedModel(), tiny_loader())


def test_a_trainers_actions_hold_for_what_is_wrong_with_its_arguments():
    from leyden.trainer import Trainer

    with pytest.raises(LeydenWarning, match=r"\[LD060\]"):
        Trainer(logger=False, accelerator="cpu", warnings={"LD060": "error"}).fit(None)
    with pytest.raises(LeydenWarning, match=r"\[LD174\]"):
        Trainer(accelerator="cpu", gradient_clip_algorithm="value", warnings={"LD174": "error"})


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
