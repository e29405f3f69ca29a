"""examples/fabric_loop.py: a raw loop that recognises digits, offline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "fabric_loop.py"

pytest.importorskip("sklearn")


def test_the_example_recognises_more_than_95_of_100_digits():
    command = [sys.executable, EXAMPLE, "--accelerator", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert sum(line.startswith("epoch ") for line in lines) == 15
    assert float(lines[-1].removeprefix("test accuracy ")) > 0.95
    assert Path("checkpoints/digits.ckpt").is_file()
