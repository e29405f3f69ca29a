"""SimpleProfiler: the table of actions."""

from __future__ import annotations

import pytest

from leyden.profilers import simple
from leyden.profilers.simple import SimpleProfiler
from leyden.trainer import Trainer
from models import TinyModel, tiny_loader


class Clock:
    """Stands still until it is told to move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(simple, "perf_counter", clock)
    return clock


def take(profiler, clock, action, seconds):
    with profiler.profile(action):
        clock.now += seconds


def rows(report):
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in report.splitlines() if "│" in line]


def test_calls_means_totals_and_shares_are_exact(clock):
    profiler = SimpleProfiler()
    take(profiler, clock, "short", 1.0)
    take(profiler, clock, "long", 4.0)
    take(profiler, clock, "long", 2.0)
    clock.now += 3.0
    assert rows(profiler.summary()) == [
        ["action", "mean (s)", "calls", "total (s)", "share (%)"],
        ["long", "3.000000", "2", "6.0000", "60.00"],
        ["short", "1.000000", "1", "1.0000", "10.00"],
    ]


def test_the_short_table_has_means_and_totals(clock):
    profiler = SimpleProfiler(extended=False)
    take(profiler, clock, "long", 4.0)
    assert rows(profiler.summary()) == [["action", "mean (s)", "total (s)"], ["long", "4.000000", "4.0000"]]


def test_an_action_inside_another_counts_for_both(clock):
    profiler = SimpleProfiler()
    with profiler.profile("outer"):
        take(profiler, clock, "inner", 2.0)
    assert profiler.seconds == {"inner": 2.0, "outer": 2.0}


def test_an_action_that_raises_is_measured(clock):
    profiler = SimpleProfiler()
    with pytest.raises(KeyError), profiler.profile("bad"):
        clock.now += 1.0
        raise KeyError
    assert profiler.seconds == {"bad": 1.0}


def test_stopping_what_has_not_started_is_refused():
    with pytest.raises(ValueError, match=r"stop\('x'\): it has not started"):
        SimpleProfiler().stop("x")


def test_starting_twice_is_refused():
    profiler = SimpleProfiler()
    profiler.start("x")
    with pytest.raises(ValueError, match=r"start\('x'\): it has started before"):
        profiler.start("x")


def test_every_run_has_its_own_report(capsys):
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", profiler="simple", **bare)
    with trainer.profiler.profile("before"):
        pass
    trainer.fit(TinyModel(), tiny_loader(4))
    fit = capsys.readouterr().out
    assert fit.startswith("SimpleProfiler, fit: ")
    assert {"before", "training_step"} <= {row[0] for row in rows(fit)}
    assert trainer.profiler.calls["training_step"] == 4
    trainer.predict(TinyModel(), [next(iter(tiny_loader(1)))[0]])
    names = {row[0] for row in rows(capsys.readouterr().out)}
    assert "predict_step" in names
    assert not {"before", "training_step"} & names


def test_a_report_with_a_filename_goes_to_the_first_loggers_folder(tmp_path, capsys):
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        profiler=SimpleProfiler(filename="times"),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(TinyModel(), tiny_loader(2))
    (file,) = tmp_path.rglob("*.txt")
    assert str(file.parent) == trainer.log_dir
    assert file.name == "fit-times.txt"
    assert "training_step" in file.read_text()
    assert capsys.readouterr().out == ""


def test_a_report_with_a_folder_goes_there(tmp_path, clock):
    profiler = SimpleProfiler(dirpath=tmp_path / "new")
    profiler.setup("fit")
    take(profiler, clock, "x", 1.0)
    profiler.describe()
    assert "1.0000" in (tmp_path / "new" / "fit.txt").read_text()
