"""Clocks, and rounds in which contestants take turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Clock:
    """Seconds between ``start`` and ``stop``; also a context manager.

    Attributes:
        cpu: Of all threads of this process: what other processes take does not count, nor does waiting for a disk.
        wall: On the wall.
    """

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.cpu, self.wall = time.process_time() - self._cpu, time.perf_counter() - self._wall

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()


# Does its work, starts and stops the clock around what counts, and returns what must be equal for all.
Contestant = Callable[[Clock], Any]


@dataclass
class Spread:
    """One figure, measured in several rounds."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third


@dataclass
class Figures:
    """A row's figure for one framework, by the processor's clock and by the wall's."""

    cpu: Spread = field(default_factory=Spread)
    wall: Spread = field(default_factory=Spread)


def take_turns(
    sides: Mapping[str, Contestant],
    figure: Callable[[Mapping[str, float]], float],
    rounds: int,
    same: bool = True,
    clocks: type[Clock] = Clock,
) -> Figures:
    """Let ``sides`` work one after the other, round by round, and find ``figure`` of their seconds in each.

    The first round warms up and does not count. Every other round goes backwards, so that nobody is always first.

    Args:
        same: All sides must return equal results, tensors to the last bit.
    """
    found = Figures()
    try:
        for number in range(rounds + 1):
            cpu: dict[str, float] = {}
            wall: dict[str, float] = {}
            results: dict[str, Any] = {}
            gc.freeze()  # what torch keeps in memory takes a collection 0.2 s to look through: a round, for one of them
            for name in list(sides)[:: -1 if number % 2 else 1]:
                clock = clocks()
                gc.collect()
                results[name] = sides[name](clock)
                cpu[name], wall[name] = clock.cpu, clock.wall
            if same:
                check_equal(results)
            if number:
                found.cpu.values.append(figure(cpu))
                found.wall.values.append(figure(wall))
    finally:
        gc.unfreeze()
    return found


def check_equal(results: Mapping[str, Any]) -> None:
    """Refuse figures of contestants that did not do the same."""
    first, *others = results
    for other in others:
        if not equal(results[first], results[other]):
            raise AssertionError(f"{first!r} and {other!r} end with different results, so their times say nothing")


def equal(one: Any, other: Any) -> bool:
    """Equal to the last bit; in dicts, lists and tuples too, of which lists and tuples count as the same."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)
