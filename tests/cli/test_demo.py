"""leyden demo: what a newcomer sees first."""

import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

LEYDEN = [sys.executable, "-m", "leyden.cli.main"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The output of one whole run in a pipe, and the folder where it ran."""
    folder = tmp_path_factory.mktemp("demo")
    start = time.monotonic()
    run = subprocess.run([*LEYDEN, "demo"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    run.seconds = time.monotonic() - start
    return run, folder


def test_it_reads_98_of_100_digits(demo):
    run, _ = demo
    accuracy = float(re.search(r"Test accuracy\s+([\d.]+)", run.stdout).group(1))
    assert accuracy >= 0.98


def test_the_table_shows_the_same_accuracy(demo):
    run, _ = demo
    shown = float(re.search(r"│ test_acc\s+│\s+([\d.]+) │", run.stdout).group(1))
    said = float(re.search(r"Test accuracy\s+([\d.]+)", run.stdout).group(1))
    assert shown == pytest.approx(said, abs=1e-4)


def test_a_pipe_gets_plain_lines_one_for_each_epoch(demo):
    run, _ = demo
    assert "\r" not in run.stdout + run.stderr and "\x1b" not in run.stdout + run.stderr
    finished = re.findall(r"^epoch +(\d+)/30 +40/40 batches.*val_acc [01]\.\d+", run.stdout, re.MULTILINE)
    assert finished == [str(epoch + 1) for epoch in range(len(finished))] and finished


def test_logs_and_the_best_checkpoint_lie_where_it_says(demo):
    run, folder = demo
    version = folder / re.search(r"Logs\s+(\S+)", run.stdout).group(1)
    best = folder / re.search(r"Best checkpoint\s+(\S+)", run.stdout).group(1)
    assert version == folder / "logs" / "digits" / "version_0"
    assert (version / "hparams.yaml").read_text() == "channels: 32\nlr: 0.002\ndropout: 0.3\n"
    assert list(version.glob("events.out.tfevents.*"))
    assert best.parent == version / "checkpoints"
    assert torch.load(best, weights_only=True)["hyper_parameters"] == {"channels": 32, "lr": 0.002, "dropout": 0.3}


def test_it_names_the_command_that_shows_the_curves(demo):
    run, _ = demo
    assert "tensorboard --logdir logs\n" in run.stdout


@pytest.mark.browser
def test_tensorboard_shows_the_curves_in_a_real_browser(demo, chromium):
    _, folder = demo
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder / "logs"]
    with (
        subprocess.Popen([*command, "--host", "127.0.0.1", "--port", "0"], stderr=subprocess.PIPE, text=True) as server,
        ended(server),
    ):
        url = next(found.group() for line in server.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        wait_for(url)
        picture = Path(os.environ.get("LEYDEN_PICTURES") or folder) / "tensorboard.png"
        script = Path(__file__).with_name("page.cjs")
        tags = ["train_loss", "val_acc", "val_loss"]
        page = subprocess.run(
            ["node", script, chromium, f"{url}?darkMode=false#timeseries", picture, *tags],
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert page.returncode == 0, page.stderr
        assert page.stdout.split("\n")[:3] == [f"found {tag}" for tag in tags]
        assert picture.stat().st_size > 10_000


@contextmanager
def ended(process):
    try:
        yield
    finally:
        process.kill()


def wait_for(url):
    for _ in range(180):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(url)


def test_a_wrong_command_names_the_right_ones():
    run = subprocess.run([*LEYDEN, "dmeo"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "demo" in run.stderr
