"""Contestants that are processes of their own, for what happens once in a process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import Clock, Contestant

HERE = Path(__file__).parent

_IMPORT = """
import time, torch
wall, cpu = time.perf_counter(), time.process_time()
import {name} as framework
framework.Trainer, framework.LightningModule
print(time.process_time() - cpu, time.perf_counter() - wall)
"""


def importing(name: str) -> Contestant:
    """``import name``, and its Trainer and LightningModule, where torch is imported already."""

    def contest(clock: Clock) -> None:
        out = subprocess.run([sys.executable, "-c", _IMPORT.format(name=name)], check=True, **_OUTPUT, env=_env())
        clock.cpu, clock.wall = map(float, out.stdout.split())

    return contest


def one_step(who: str) -> Contestant:
    """one_step.py, from start to exit: what its process took, of the processor and on the wall."""

    def contest(clock: Clock) -> None:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "one_step.py"), who],
                **{"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": errors, "env": _env()},
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            clock.wall = time.perf_counter() - began
            if process.returncode:
                errors.seek(0)
                raise RuntimeError(f"one_step.py {who} failed: {errors.read()[-500:]}")
        clock.cpu = used.ru_utime + used.ru_stime

    return contest


_OUTPUT = {"capture_output": True, "text": True}


def _env() -> dict[str, str]:
    # The round that does not count leaves compiled files behind, as any first import does.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"OMP_NUM_THREADS": "1"}
