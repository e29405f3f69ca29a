"""AdvancedProfiler: the functions inside each action."""

from __future__ import annotations

import pstats

import pytest

from leyden.profilers.advanced import AdvancedProfiler
from leyden.trainer import Trainer
from models import TinyModel, tiny_loader


def outside():
    pass


def inside():
    pass


def calls(profiler, action):
    """How often each function was called in ``action``."""
    stats = pstats.Stats(profiler.profiles[action])
    return {name: numbers[1] for (_, _, name), numbers in stats.stats.items()}


def test_a_function_counts_for_the_innermost_action_around_it():
    profiler = AdvancedProfiler()
    with profiler.profile("outer"):
        outside()
        with profiler.profile("inner"):
            inside()
            inside()
        outside()
    assert calls(profiler, "inner")["inside"] == 2
    assert "outside" not in calls(profiler, "inner")
    assert calls(profiler, "outer")["outside"] == 2
    assert "inside" not in calls(profiler, "outer")


def test_stopping_what_has_not_started_is_refused():
    with pytest.raises(ValueError, match=r"stop\('x'\): it has not started"):
        AdvancedProfiler().stop("x")


def test_the_number_of_functions_can_be_limited():
    profiler = AdvancedProfiler(line_count_restriction=1)
    with profiler.profile("x"):
        outside()
        inside()
    assert "due to restriction <1>" in profiler.summary()


@pytest.mark.parametrize("restriction", [1.5, -1])
def test_a_restriction_out_of_range_is_refused(restriction):
    with pytest.raises(ValueError, match=f"line_count_restriction={restriction}"):
        AdvancedProfiler(line_count_restriction=restriction)


def test_a_fit_reports_and_dumps_every_action(tmp_path):
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    profiler = AdvancedProfiler(tmp_path, "all", dump_stats=True)
    Trainer(max_epochs=1, accelerator="cpu", profiler=profiler, **bare).fit(TinyModel(), tiny_loader(3))
    report = (tmp_path / "fit-all.txt").read_text()
    assert "\ntraining_step\n" in report
    assert "(cross_entropy)" in report
    dumped = pstats.Stats(str(tmp_path / "fit-all-training_step.prof"))
    assert {name: n[1] for (_, _, name), n in dumped.stats.items()}["cross_entropy"] == 3
    assert (tmp_path / "fit-all-_training_next_batch.prof").exists()
