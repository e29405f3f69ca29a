"""The benchmarks: every row runs, and compares contestants that do the same; timed at no size that says anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from leyden.core.callback import Callback

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KEYS = (
    *("plain", "slow", "log", "five", "ten", "hundred", "csv", "tensorboard", "terminal", "pipe", "default"),
    *("stopping", "clipping", "accumulation", "validation", "predict", "fit", "callbacks", "hook", "metric"),
    *("mlp", "cnn", "import", "process", "compiled", "compiled-mlp"),
)
SLOW = ("import", "process", "compiled", "compiled-mlp")


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other as they do when one of them is run."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in {path.stem for path in BENCHMARKS.glob("*.py")}:
        sys.modules.pop(name, None)


def row(key: str) -> Any:
    return next(row for row in import_module("rows").ROWS if row.key == key)


def small() -> Any:
    return import_module("rows").Sizes(steps=4, batches=3, samples=192, counts=(0, 2))


def leyden() -> Any:
    return import_module("contestants").LEYDEN


def test_the_rows_are_these():
    assert tuple(row.key for row in import_module("rows").ROWS) == KEYS


@pytest.mark.filterwarnings("ignore")  # a small run earns advice
@pytest.mark.parametrize("key", [key for key in KEYS if key not in SLOW])
def test_every_row_compares_equals_and_comes_to_a_figure(key):
    one = row(key)
    if reason := one.missing():
        pytest.skip(reason)
    found = one.measure(leyden(), small(), rounds=1)
    assert len(found.cpu.values) == len(found.wall.values) == 1
    assert one.unit or found.cpu.median > 0


@pytest.mark.slow
@pytest.mark.parametrize("key", SLOW)
def test_every_slow_row_comes_to_a_figure(key):
    one = row(key)
    if reason := one.missing():
        pytest.skip(reason)
    assert one.measure(leyden(), small(), rounds=1).cpu.median > 0


def test_contestants_that_end_differently_are_refused():
    class Meddles(Callback):
        def on_train_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.net[0].bias[0] += 1e-7

    contestants, loops = import_module("contestants"), import_module("loops")
    loader = loops.Ready(2)
    sides = {
        "by hand": contestants.by_hand(loops.train, loader),
        "other": contestants.by_fit(lambda: contestants.plain(leyden()), leyden(), loader, callbacks=[Meddles()]),
    }
    with pytest.raises(AssertionError, match="'by hand' and 'other' end with different results"):
        import_module("timing").take_turns(sides, lambda seconds: seconds["other"], rounds=1)


def test_equal_means_to_the_last_bit():
    equal, one = import_module("timing").equal, torch.tensor([0.1])
    assert equal({"a": [one, 1]}, {"a": (one.clone(), 1)})
    assert not equal({"a": one}, {"a": torch.nextafter(one, torch.ones(1))})
    assert not equal({"a": one}, {"b": one})
    assert not equal([one], [one, one])


def test_growth_is_the_slope_of_all_counts():
    rows = import_module("rows")
    seconds = {"0": 1.0, "10": 1.1, "20": 1.2, "40": 1.4}  # 0.01 s for each more, over 4 steps
    assert row("hook").figure(seconds, small()) == pytest.approx(0.01 / 4 * 1e6)
    assert row("callbacks").figure({"100": 2.0, "0": 1.0}, small()) == pytest.approx(0.2 / 4 * 1e6)
    assert row("fit").figure({rows.HAND: 0.001, rows.IT: 0.0035}, small()) == pytest.approx(2.5)


def test_results_keep_what_is_not_measured_again(tmp_path, monkeypatch):
    report, timing = import_module("report"), import_module("timing")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    report.RESULTS.write_text("Above.\n<!-- run.py -->\n<!-- /run.py -->\nBelow.\n")
    rows = [row("plain"), row("log"), row("fit")]

    def figures(*values):
        return timing.Figures(timing.Spread(list(values)), timing.Spread(list(values)))

    def write(*lines):
        report.RESULTS.write_text(report.update(list(lines), "Here.", rows))
        table = report.RESULTS.read_text().splitlines()
        assert (table[0], table[-1]) == ("Above.", "Below.")
        return [line.rsplit(" | ", 1)[0] for line in table if line.startswith("| ") and "limit" not in line]

    write(report.line(rows[2], figures(0.5), None), report.line(rows[0], figures(0.8, 0.7, 0.76), figures(2.0)))
    assert write(report.line(rows[1], figures(0.9), None), report.line(rows[0], figures(0.7), None)) == [
        "| nothing logged | 0.75 | **0.70** | 0.70 to 0.70 | 0.70 | 0.70 | yes | 2.00 | 1",
        "| one `self.log` | 0.80 | **0.90** | 0.90 to 0.90 | 0.90 | 0.90 | **no** |  | 1",
        "| `fit` of one step, over the loop | 1.00 ms | **0.50 ms** | 0.50 ms to 0.50 ms | 0.50 ms | 0.50 ms | yes |  "
        "| 1",
    ]


def test_the_models_for_gpus_have_the_sizes_they_say():
    networks = import_module("networks")
    with torch.device("meta"):
        resnet, gpt = networks.resnet18(), networks.GPT()
    assert sum(parameter.numel() for parameter in resnet.parameters()) == 11_689_512
    assert sum(parameter.numel() for parameter in gpt.parameters()) == 124_439_808


def test_gpt_does_not_see_the_tokens_that_follow():
    gpt = import_module("networks").GPT(layers=2, heads=2, width=16, length=8, tokens=11).eval()
    tokens = torch.arange(8)[None]
    other = tokens.clone()
    other[0, 5:] = 0
    assert torch.equal(gpt(tokens)[:, :5], gpt(other)[:, :5])
    assert not torch.equal(gpt(tokens)[:, 5:], gpt(other)[:, 5:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", ["tiny", "resnet", "gpt"])
def test_the_works_for_gpus_train_the_same_as_by_hand(key):
    gpu, networks = import_module("gpu"), import_module("networks")
    small_ones = {
        "tiny": {},
        "resnet": {
            "network": lambda: networks.resnet18(classes=3, width=4),
            "batch": lambda: gpu.images(2, 32, 3),
            "compile": False,
        },
        "gpt": {
            "network": lambda: networks.GPT(layers=1, heads=2, width=8, length=4, tokens=7),
            "batch": lambda: gpu.tokens(2, 4, 7),
            "compile": False,
        },
    }
    work = replace(gpu.WORKS[key], **small_ones[key])
    found = gpu.row_of(key, work, torch.device("cpu"), 2).measure(leyden(), small(), 1, gpu.DeviceClock)
    assert found.wall.median > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_benchmark_says_what_it_needs():
    out = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True)
    assert out.returncode == 1
    assert out.stderr.startswith("benchmarks/gpu.py needs a CUDA device, and torch sees none.")
