"""Time of saving and checking a checkpoint, as a ratio to plain ``torch.save`` in the same run.

    python benchmarks/checkpoints.py [--rounds 8] [--parameters 100_000_000] [--folder FOLDER]

The state is that of a model in float32 with Adam, 12 bytes a parameter. In each round every contestant writes it to a
new file in the same folder, one after another in turn, so that all of them meet the same moods of the machine. The
first round warms up and does not count. A ratio is the median over the rounds of (its time / plain torch.save's in that
round).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from leyden.fabric.async_checkpoint_io import AsyncCheckpointIO
from leyden.fabric.checkpoint_io import CheckpointIO, verify_checkpoint
from leyden.fabric.sealing import SealedFile

PLAIN, SYNC, ASYNC = "torch.save", "CheckpointIO", "AsyncCheckpointIO"


def state_of(parameters: int) -> dict[str, Any]:
    """What a Trainer saves of a model of about so many parameters in 20 layers, and of its Adam."""
    layers = [torch.randn(parameters // 20) for _ in range(20)]
    moments = {
        index: {"step": torch.tensor(1.0), "exp_avg": torch.randn_like(layer), "exp_avg_sq": torch.rand_like(layer)}
        for index, layer in enumerate(layers)
    }
    return {
        "epoch": 0,
        "state_dict": {f"layer{index}.weight": layer for index, layer in enumerate(layers)},
        "optimizer_states": [{"state": moments, "param_groups": [{"lr": 1e-3, "params": list(range(20))}]}],
    }


class Clock:
    """Seconds that something took, on the wall and of all cores."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def time(self, name: str, do: Callable[[], object]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        do()
        self.note(name, time.perf_counter() - wall, time.process_time() - cpu)

    def note(self, name: str, wall: float, cpu: float) -> None:
        self.wall.setdefault(name, []).append(wall)
        self.cpu.setdefault(name, []).append(cpu)

    def ratio(self, name: str) -> float:
        return statistics.median(
            mine / plain for mine, plain in zip(self.wall[name][1:], self.wall[PLAIN][1:], strict=True)
        )


def save_and_sync(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def peak() -> float:
    """The most memory that this process had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def one_round(
    number: int, clock: Clock, state: dict[str, Any], path: Path, background: AsyncCheckpointIO
) -> dict[str, float]:
    """Every contestant once, beginning with another each time; returns how much each added to the peak of memory."""
    added = {}

    def measured(name: str, do: Callable[[], object]) -> None:
        before = peak()
        clock.time(name, do)
        added[name] = peak() - before

    def at_once() -> None:
        waits, real_sync = 0.0, os.fsync

        def timed_sync(descriptor: Any) -> None:
            nonlocal waits
            begun = time.perf_counter()
            real_sync(descriptor)
            waits += time.perf_counter() - begun

        os.fsync = timed_sync  # type: ignore[assignment]
        try:
            measured(SYNC, lambda: CheckpointIO().save_checkpoint(state, path))
        finally:
            os.fsync = real_sync
        clock.note(f"{SYNC} without its fsync", clock.wall[SYNC][-1] - waits, clock.cpu[SYNC][-1])
        measured("verify_checkpoint", lambda: verify_checkpoint(path))

    def in_background() -> None:
        measured(f"{ASYNC}, until it returns", lambda: background.save_checkpoint(state, path))
        clock.time(f"{ASYNC}, until the file is safe", background.wait)
        clock.wall[f"{ASYNC}, until the file is safe"][-1] += clock.wall[f"{ASYNC}, until it returns"][-1]

    contestants = [
        lambda: measured(PLAIN, lambda: torch.save(state, path)),
        at_once,
        lambda: measured(f"{PLAIN} and fsync", lambda: save_and_sync(state, path)),
        in_background,
    ]
    first = number % len(contestants)
    for contestant in contestants[first:] + contestants[:first]:
        contestant()
        path.unlink()
    with path.open("w+b") as file:
        torch.save(state, cast(IO[bytes], file))
        clock.time("sealing alone", SealedFile(file).seal)
    path.unlink()
    return added


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of saving and checking a checkpoint, against torch.save.")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, help="Where to write; by default the folder for temporary files.")
    options = parser.parse_args()

    state, clock, background = state_of(options.parameters), Clock(), AsyncCheckpointIO()
    size = options.parameters * 12 / 1e9
    added: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in range(options.rounds + 1):
            for name, more in one_round(number, clock, state, Path(folder) / "a.ckpt", background).items():
                added[name] = max(added.get(name, 0.0), more)
        background.teardown()

    print(f"{size:.2f} GB of state, {options.rounds} rounds after a first, torch {torch.__version__}\n")
    print(f"{'':42} {'seconds':>8} {'first':>6} {'ratio':>6} {'CPU s/GB':>9} {'more memory':>12}")
    for name, walls in clock.wall.items():
        cpu = statistics.median(clock.cpu[name][1:]) / size
        memory = f"{added[name]:9.2f} GB" if name in added else ""
        seconds = f"{statistics.median(walls[1:]):8.2f} {walls[0]:6.2f} {clock.ratio(name):6.2f}"
        print(f"{name:42} {seconds} {cpu:9.2f} {memory}")
    sealing = min(clock.cpu["sealing alone"])
    checking = min(clock.cpu["verify_checkpoint"])
    print(f"\nAt best, the seal costs {sealing / size:.2f} s of CPU per GB, and checking it {checking / size:.2f}.")


if __name__ == "__main__":
    main()
