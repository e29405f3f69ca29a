"""The examples run as they stand, offline, and do what they say."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def output_of(example, folder):
    run = subprocess.run(
        [sys.executable, EXAMPLES / example], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def test_the_digits_are_read_and_the_loaded_checkpoint_reads_them_as_well(tmp_path):
    line = output_of("digits.py", tmp_path)
    tested, loaded = re.fullmatch(r"test accuracy ([\d.]+), of the loaded checkpoint ([\d.]+)", line).groups()
    assert tested == loaded
    assert float(tested) > 0.95


def test_the_wgan_comes_closer_to_the_ring(tmp_path):
    line = output_of("wgan.py", tmp_path)
    before, after = map(float, re.fullmatch(r"mean distance .* ([\d.]+) before, ([\d.]+) after", line).groups())
    assert after < before / 2
