"""CSVLogger: metrics.csv, appended to and never lost."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

import leyden
from leyden.loggers.csv import CSVLogger, MetricsFile
from leyden.utils.errors import LeydenWarning, forget_warnings


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def text_of(logger):
    return Path(logger.experiment.metrics_file_path).read_text()


def five_metrics(step):
    """Five values of the same length in the file for every step."""
    return {f"metric_{index}": 0.25 + (step % 2) / 2 for index in range(5)}


def test_a_row_for_every_call_and_a_column_for_every_metric():
    logger = CSVLogger("logs")
    logger.log_metrics({"loss": 0.5, "acc": torch.tensor(0.25)}, step=0)
    logger.log_metrics({"loss": 1e-30, "acc": float("nan")}, step=9)
    logger.save()
    assert logger.log_dir == os.path.join("logs", "lightning_logs", "version_0")
    assert text_of(logger) == "step,loss,acc\n0,0.5,0.25\n9,1e-30,nan\n"


def test_values_of_one_step_logged_apart_stay_apart():
    logger = CSVLogger("logs")
    logger.log_metrics({"train_loss": 0.5}, step=7)
    logger.log_metrics({"val_loss": 0.75}, step=7)
    logger.save()
    assert text_of(logger) == "step,train_loss,val_loss\n7,0.5,\n7,,0.75\n"


def test_values_read_back_are_the_floats_that_were_logged():
    logger = CSVLogger("logs")
    value = torch.rand(()).item() / 3
    logger.log_metrics({"x": value}, step=0)
    logger.save()
    assert float(rows_of(logger.experiment.metrics_file_path)[0]["x"]) == value


def test_whole_numbers_such_as_the_epoch_stay_whole():
    logger = CSVLogger("logs")
    logger.log_metrics({"epoch": 3, "flag": True}, step=0)
    logger.save()
    assert text_of(logger) == "step,epoch,flag\n0,3,1.0\n"


def test_the_step_is_the_number_of_rows_where_none_is_given_and_no_metric_can_replace_it():
    logger = CSVLogger("logs")
    logger.log_metrics({"x": 1.0, "step": 50.0})
    logger.log_metrics({"x": 1.0})
    logger.log_metrics({"step": 50.0}, step=9)
    logger.save()
    assert [row["step"] for row in rows_of(logger.experiment.metrics_file_path)] == ["0", "1", "9"]


def test_a_name_with_a_comma_is_one_column():
    logger = CSVLogger("logs")
    logger.log_metrics({'loss, "mean"': 1.0}, step=0)
    logger.save()
    assert rows_of(logger.experiment.metrics_file_path) == [{"step": "0", 'loss, "mean"': "1.0"}]


def test_the_prefix_stands_before_every_name():
    logger = CSVLogger("logs", prefix="run")
    logger.log_metrics({"x": 1.0}, step=0)
    logger.save()
    assert text_of(logger) == "step,run-x\n0,1.0\n"


@pytest.mark.parametrize("value", ["0.5", None, [1.0], torch.ones(2), {"a": 1.0}])
def test_a_value_that_is_not_one_number_is_refused_by_name(value):
    with pytest.raises(TypeError, match="one number for each metric, but 'loss' is"):
        CSVLogger("logs").log_metrics({"loss": value}, step=0)


# What it costs.


@pytest.mark.skipif(not Path("/proc/thread-self/io").exists(), reason="the system does not count bytes written")
def test_the_last_rows_of_ten_thousand_write_and_read_no_more_than_the_first():
    def io():
        return {
            line.split(":")[0]: int(line.split(":")[1])
            for line in Path("/proc/thread-self/io").read_text().splitlines()
        }

    def cost(logger, steps):
        before, start = io(), time.perf_counter()
        for step in steps:
            logger.log_metrics(five_metrics(step), step)
        seconds, after = time.perf_counter() - start, io()
        return after["wchar"] - before["wchar"], after["rchar"] - before["rchar"], seconds

    logger = CSVLogger("logs", flush_logs_every_n_steps=10)
    logger.log_metrics(five_metrics(0), 0)
    logger.save()  # the header
    idle = io()
    reading_io = io()["rchar"] - idle["rchar"]
    first_written, _, first_seconds = cost(logger, range(1000, 1100))
    cost(logger, range(1100, 9900))
    last_written, last_read, last_seconds = cost(logger, range(9900, 10000))
    assert first_written == last_written == 100 * len("1000" + ",0.25" * 5 + "\n")
    assert last_read <= 2 * reading_io
    assert last_seconds < 10 * first_seconds + 0.1


def test_ordinary_rows_never_replace_the_file():
    logger = CSVLogger("logs", flush_logs_every_n_steps=10)
    seen = []
    for step in range(10_000):
        logger.log_metrics(five_metrics(step), step)
        if step % 1000 == 999:
            found = os.stat(logger.experiment.metrics_file_path)
            seen.append((found.st_ino, found.st_size))
    assert len({inode for inode, _ in seen}) == 1
    assert [size for _, size in seen] == sorted({size for _, size in seen})
    assert [int(row["step"]) for row in rows_of(logger.experiment.metrics_file_path)] == [*range(10_000)]


def test_a_new_metric_replaces_the_file_once_and_then_rows_are_appended_again():
    logger = CSVLogger("logs", flush_logs_every_n_steps=1)
    path = Path(logger.experiment.metrics_file_path)
    inodes = []
    for step, metrics in enumerate([{"a": 1.0}, {"a": 2.0}, {"b": 3.0}, {"a": 4.0}, {"b": 5.0, "a": 6.0}]):
        logger.log_metrics(metrics, step)
        inodes.append(path.stat().st_ino)
    assert inodes[0] == inodes[1] != inodes[2] == inodes[3] == inodes[4]
    assert path.read_text() == "step,a,b\n0,1.0,\n1,2.0,\n2,,3.0\n3,4.0,\n4,6.0,5.0\n"
    assert [found.name for found in path.parent.iterdir()] == ["metrics.csv"]


def test_new_metrics_of_one_flush_replace_the_file_once():
    logger = CSVLogger("logs", flush_logs_every_n_steps=1000)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    for index in range(500):
        logger.log_metrics({f"metric_{index}": 1.0}, index)
    assert len(text_of(logger).splitlines()) == 2
    logger.save()
    rows = rows_of(logger.experiment.metrics_file_path)
    assert len(rows) == 501
    assert rows[-1]["metric_499"] == "1.0" and rows[-1]["a"] == rows[0]["metric_499"] == ""


def test_rows_reach_the_file_after_every_nth_step():
    logger = CSVLogger("logs", flush_logs_every_n_steps=100)
    for step in range(49, 250, 50):  # as Trainer(log_every_n_steps=50) logs
        logger.log_metrics({"x": 0.0}, step)
    assert [row["step"] for row in rows_of(logger.experiment.metrics_file_path)] == ["49", "99", "149", "199"]
    assert len(logger.experiment.metrics) == 1


def test_rows_reach_the_file_where_the_step_stands_still_too():
    logger = CSVLogger("logs", flush_logs_every_n_steps=10)
    for _ in range(25):
        logger.log_metrics({"x": 0.0}, step=3)
    assert len(rows_of(logger.experiment.metrics_file_path)) == 20


@pytest.mark.parametrize("number", [0, -1, 1.5, None])
def test_a_flush_every_no_steps_is_refused(number):
    with pytest.raises(ValueError, match=r"flush_logs_every_n_steps=.* is not a whole number from 1"):
        CSVLogger("logs", flush_logs_every_n_steps=number)


# What survives.

CHILD = """
import sys, time
from leyden.loggers.csv import CSVLogger
logger = CSVLogger("logs", flush_logs_every_n_steps=10)
for step in range(int(sys.argv[1])):
    logger.log_metrics({"x": step * 0.5, f"new_{step // 300}": 1.0}, step)
    if step % 10 == 9:
        print(step, flush=True)
print("done", flush=True)
time.sleep(60)
"""


def killed_after(line, rows):
    """Run CHILD for ``rows`` rows until it prints ``line``, then kill it."""
    env = {**os.environ, "PYTHONPATH": str(Path(leyden.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(rows)], stdout=subprocess.PIPE, text=True, env=env
    ) as child:
        for printed in child.stdout:
            if printed.strip() == line:
                break
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
    assert child.returncode == -signal.SIGKILL
    return Path("logs/lightning_logs/version_0/metrics.csv")


def test_a_kill_loses_nothing_but_the_rows_since_the_last_flush():
    rows = rows_of(killed_after("done", rows=137))
    assert [(row["step"], row["x"]) for row in rows] == [(str(step), str(step * 0.5)) for step in range(130)]


def test_a_kill_at_any_moment_leaves_a_file_that_parses_and_can_be_added_to():
    path = killed_after("1499", rows=10**9)
    text = path.read_text()
    assert text.count("\n") >= 1 + 1500
    for step, line in enumerate(text.splitlines(keepends=True)[1:]):
        if line.endswith("\n"):
            assert line.split(",")[:2] == [str(step), str(step * 0.5)]
    logger = CSVLogger("logs", version=0)
    with pytest.warns(LeydenWarning):  # LD110, and LD111 should the kill have hit a write
        logger.log_metrics({"x": -1.0, "another": 2.0}, 10**9)
        logger.save()
    rows = rows_of(path)
    assert len(rows) == text.count("\n") - 1 + 1
    assert rows[-1]["another"] == "2.0" and rows[1499]["x"] == "749.5"


def test_an_earlier_runs_rows_and_columns_stay_when_its_version_is_given():
    first = CSVLogger("logs", version=3)
    first.log_metrics({"a": 1.0, "b": 2.0}, 0)
    first.save()
    second = CSVLogger("logs", version=3)
    with pytest.warns(LeydenWarning, match=r"version_3.metrics\.csv is there already: rows are added.*\[LD110\]"):
        second.log_metrics({"c": 3.0, "b": 4.0}, 1)
    second.save()
    second.log_metrics({"a": 5.0}, 2)
    second.save()
    assert text_of(second) == "step,a,b,c\n0,1.0,2.0,\n1,,4.0,3.0\n2,5.0,,\n"


def test_a_file_that_lightning_wrote_keeps_its_order_of_columns():
    folder = Path("logs/version_0")
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("acc,epoch,step\r\n0.5,0,9\r\n")
    logger = CSVLogger("logs", name=None, version=0)
    with pytest.warns(LeydenWarning, match="LD110"):
        logger.log_metrics({"acc": 0.75, "loss": 0.25}, 19)
    logger.save()
    assert text_of(logger) == "acc,epoch,step,loss\n0.5,0,9,\n0.75,,19,0.25\n"


@pytest.mark.parametrize("kept", ["", "step,x\n0,1.0\n"])
def test_a_line_that_breaks_off_is_left_out_with_a_warning(kept):
    folder = Path("logs/version_0")
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(kept + "1,2.")
    logger = CSVLogger("logs", name="", version=0)
    with pytest.warns(LeydenWarning) as given:
        logger.log_metrics({"x": 3.0}, 2)
        logger.save()
    assert "breaks off, as after a kill or on a full disk: '1,2.' is left out. [LD111]" in str(given[1].message)
    assert text_of(logger) == (kept or "step,x\n") + "2,3.0\n"


def test_an_empty_file_gets_a_header():
    Path("logs/version_0").mkdir(parents=True)
    Path("logs/version_0/metrics.csv").touch()
    logger = CSVLogger("logs", name=None, version=0)
    with pytest.warns(LeydenWarning, match="LD110"):
        logger.log_metrics({"x": 1.0}, 0)
    logger.save()
    assert text_of(logger) == "step,x\n0,1.0\n"


def test_one_logger_may_see_several_runs_without_a_warning():
    logger = CSVLogger("logs")
    logger.log_metrics({"train_loss": 1.0}, 9)
    logger.finalize("success")
    forget_warnings()
    logger.log_metrics({"test_loss": 2.0}, 9)
    logger.finalize("success")
    assert text_of(logger) == "step,train_loss,test_loss\n9,1.0,\n9,,2.0\n"


def test_rows_stay_in_one_file_when_the_process_changes_its_folder(tmp_path, monkeypatch):
    logger = CSVLogger("logs")
    logger.log_metrics({"x": 1.0}, 0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    logger.save()
    assert (tmp_path / logger.log_dir / "metrics.csv").read_text() == "step,x\n0,1.0\n"


def test_a_failed_run_is_written_too():
    logger = CSVLogger("logs")
    logger.log_metrics({"x": 1.0}, 0)
    logger.finalize("failed")
    assert text_of(logger) == "step,x\n0,1.0\n"


# Folders, which TensorBoardLogger shares.


def test_asking_makes_no_folder_and_a_run_that_logs_nothing_leaves_none():
    logger = CSVLogger("logs", name="a")
    assert (logger.name, logger.version, logger.save_dir) == ("a", 0, "logs")
    assert (logger.root_dir, logger.log_dir) == (os.path.join("logs", "a"), os.path.join("logs", "a", "version_0"))
    assert isinstance(logger.experiment, MetricsFile)
    logger.log_hyperparams({})
    logger.save()
    logger.finalize("success")
    assert not Path("logs").exists()


def test_the_version_is_the_number_above_those_that_are_there():
    for taken in ("version_2", "version_10", "version_x", "version_11_old", "other"):
        Path("logs/a", taken).mkdir(parents=True)
    assert CSVLogger("logs", name="a").version == 11
    assert CSVLogger("logs", name="b").version == 0


def test_the_version_is_chosen_once():
    logger = CSVLogger("logs")
    assert logger.version == 0
    Path(logger.log_dir).mkdir(parents=True)
    assert logger.version == 0
    assert CSVLogger("logs").version == 1


def test_the_version_is_chosen_when_first_asked():
    logger = CSVLogger("logs")
    Path("logs/lightning_logs/version_0").mkdir(parents=True)
    assert logger.version == 1


@pytest.mark.parametrize(
    ("name", "version", "folder"),
    [("a", 7, "logs/a/version_7"), ("a", "best", "logs/a/best"), ("", 0, "logs/version_0"), (None, "", "logs")],
)
def test_names_and_versions_as_given(name, version, folder):
    logger = CSVLogger("logs", name=name, version=version)
    logger.log_metrics({"x": 1.0}, 0)
    logger.save()
    assert Path(folder, "metrics.csv").is_file()
    assert logger.name == (name or "") and logger.version == version


def test_home_and_environment_variables_are_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", "fast")
    assert CSVLogger("~/$SCRATCH", name=None).save_dir == str(tmp_path / "home" / "fast")
    assert CSVLogger(f"file://{tmp_path}", name=None).save_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_dir": None}, "save_dir=None is not a path"),
        ({"save_dir": "logs", "name": 3}, "name=3 is not text"),
        ({"save_dir": "logs", "version": 1.5}, "version=1.5 is neither a number nor text"),
        ({"save_dir": "logs", "version": True}, "version=True is neither a number nor text"),
        ({"save_dir": "logs", "version": -1}, "version=-1 is negative"),
    ],
)
def test_a_folder_that_cannot_be_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        CSVLogger(**arguments)


def test_a_remote_folder_is_written_and_counted_as_a_local_one():
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    url = "memory://csv-logger-test"
    try:
        first = CSVLogger(url, flush_logs_every_n_steps=1)
        assert first.log_dir == f"{url}/lightning_logs/version_0"
        first.log_hyperparams({"lr": 0.5})
        first.log_metrics({"a": 1.0}, 0)
        first.log_metrics({"a": 2.0}, 1)
        first.log_metrics({"b": 3.0}, 2)
        written = memory.cat("/csv-logger-test/lightning_logs/version_0/metrics.csv").decode()
        assert written == "step,a,b\n0,1.0,\n1,2.0,\n2,,3.0\n"
        assert memory.cat("/csv-logger-test/lightning_logs/version_0/hparams.yaml") == b"lr: 0.5\n"
        assert CSVLogger(url).version == 1
    finally:
        memory.rm("/csv-logger-test", recursive=True)


# Hyper-parameters, and other processes.


def test_hyperparameters_are_written_at_once_and_added_up():
    logger = CSVLogger("logs")
    logger.log_hyperparams({"lr": 0.1, "net": {"width": 3}, "sizes": (1, 2), "none": None})
    logger.log_hyperparams(Namespace(lr=1e-05, seed=1))
    found = yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text())
    assert found == {"lr": 1e-05, "net": {"width": 3}, "sizes": [1, 2], "none": None, "seed": 1}


def test_objects_among_the_hyperparameters_are_written_as_text():
    logger = CSVLogger("logs")
    act = torch.nn.ReLU()
    logger.log_hyperparams(
        {"act": act, "net": {"width": 3, "layers": [act, 4]}, "kind": torch.nn.GELU, "loss": torch.nn.functional.relu}
    )
    assert yaml.safe_load(Path(logger.log_dir, "hparams.yaml").read_text()) == {
        "act": "ReLU()",
        "net": {"width": 3, "layers": ["ReLU()", 4]},
        "kind": "torch.nn.modules.activation.GELU",
        "loss": "torch.nn.functional.relu",
    }


def test_hyperparameters_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"takes a dict or a Namespace, not \[1\] \(list\)"):
        CSVLogger("logs").log_hyperparams([1])


def test_other_processes_write_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    logger = CSVLogger("logs", flush_logs_every_n_steps=1)
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_hyperparams({"lr": 0.1})
    logger.experiment.log_metrics({"x": 1.0}, 0)
    logger.experiment.save()
    logger.finalize("success")
    assert not Path("logs").exists()
