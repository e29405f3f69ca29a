"""The clocks of a fit: what its time goes into, at next to no cost to its steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from time import perf_counter, thread_time
from typing import Any

import torch
from torch.utils.data import DataLoader

from leyden.core.combined import CombinedLoader
from leyden.core.reading import READY, draws_nothing, is_plain

VALIDATION, LOGGING, CHECKPOINTS = "validation", "logging", "checkpoints"

# Batches that are timed one by one; then there is a look at the clocks, and where batches are ready, so many untimed.
_PORTION, _UNTIMED = 10, 310
# Seconds that a batch takes at most which is only handed out.
_READY = 5e-5
# When waiting for data is warned of: after so many seconds and batches, above this share of the time.
_WARN_AFTER, _WARN_BATCHES, _WARN_ABOVE = 10.0, 50, 0.5
# When a fit ends with advice about its data: if it took so many seconds, above this share.
_TELL_AFTER, _TELL_ABOVE = 30.0, 0.3
_END = object()


class Times:
    """What the time of one run goes into; no part of its state, so a resumed run begins anew.

    Every second counts once: for what was timed last, where one thing happens inside another. Nothing waits for the
    device.

    Attributes:
        ended: When the run was over, by ``perf_counter``; None before.
        starts: Seconds waited for epochs to begin: order, workers, first batch.
        waited: Seconds waited for the other batches that were timed.
        fetched: How many those are.
        epochs: How often the training data was begun.
        seconds: Those of validation, logging and checkpoints.
        counts: How many there were: passes, calls, files.
        looks: Batches that were looked at more closely.
        looked: Seconds waited for these.
        computed: Seconds of those in which the process computed; else it waited for disk, network or workers.
        idle: How often the GPU had nothing left to do when the batch came.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._began = perf_counter()
        self.ended: float | None = None
        self.starts = self.waited = 0.0
        self.fetched = self.epochs = 0
        self.seconds = dict.fromkeys((VALIDATION, LOGGING, CHECKPOINTS), 0.0)
        self.counts = dict.fromkeys(self.seconds, 0)
        self.looks = self.idle = 0
        self.looked = self.computed = 0.0
        self._usual: list[float] = []  # a usual batch's seconds, by portion before one that is not timed
        self._steps, self._batches = 0.0, 0
        self._entered: tuple[float, int] | None = None
        self._training_began = self._first_start = 0.0
        self._over = self._warned = False

    def clock(self) -> float:
        """Seconds that are not counted as anything yet; ``add`` takes the reading from before."""
        return perf_counter() - self.starts - self.waited - sum(self.seconds.values())

    def add(self, what: str, began: float, count: int = 1) -> None:
        """Count what went by since ``clock`` was at ``began``."""
        if self.ended is None:  # a checkpoint may be saved behind the run
            self.seconds[what] += self.clock() - began
            self.counts[what] += count

    def enter_steps(self) -> None:
        """The steps of an epoch, or what is left of it, begin."""
        self._entered = self.clock(), self._run.state.position.batch_total

    def leave_steps(self) -> None:
        """They are done."""
        self._steps, self._batches, self._entered = self.steps(), self.batches(), None

    def stop(self) -> None:
        """The run is over, well or not."""
        if self.ended is None:
            if self._entered is not None:  # it was broken off
                self.leave_steps()
            self.ended = perf_counter()

    def total(self) -> float:
        """Seconds since the run began; up to its end, if it is over."""
        return (perf_counter() if self.ended is None else self.ended) - self._began

    def batches(self) -> int:
        """Batches trained on in this run."""
        return self._batches + (self._run.state.position.batch_total - self._entered[1] if self._entered else 0)

    def steps(self) -> float:
        """Seconds spent in steps and what belongs to them, with those waited for batches that were not timed."""
        return self._steps + (self.clock() - self._entered[0] if self._entered else 0.0)

    def untimed(self) -> float:
        """Seconds probably waited for the batches that were not timed."""
        if not self._usual:
            return 0.0
        count = max(0, self.batches() - self.fetched - self.epochs)
        return min(count * sum(self._usual) / len(self._usual), self.steps())

    def timed(self, batches: Iterator[Any], loader: Any, began: float) -> Iterator[Any]:
        """``batches`` of an epoch that was begun at ``began``, by ``perf_counter``, as they are waited for.

        All are timed, but of those that are ready in memory only some.
        """
        self._training_began = self._training_began or began
        self.starts += perf_counter() - began
        self.epochs += 1
        return chain.from_iterable(self._portions(batches, type(batches) in READY or is_ready(loader)))

    def _portions(self, batches: Iterator[Any], ready: bool) -> Iterator[Iterator[Any]]:
        self._over = False
        yield self._first(batches)
        recent: list[float] = []
        while not self._over:
            yield self._portion(batches, recent)
            if ready and len(recent) == _PORTION and (usual := sorted(recent)[_PORTION // 2]) < _READY:
                self._usual.append(usual)
                yield islice(batches, _UNTIMED)
            recent.clear()
            if not self._warned:
                self._look_at_share()

    def _first(self, batches: Iterator[Any]) -> Iterator[Any]:
        began = perf_counter()
        batch = next(batches, _END)
        self.starts += perf_counter() - began
        self._first_start = self._first_start or self.starts
        if batch is _END:
            self._over = True
        else:
            yield batch

    def _portion(self, batches: Iterator[Any], recent: list[float]) -> Iterator[Any]:
        """The next batches; the first of them is looked at closely."""
        event, computed = self._event(), thread_time()
        for _ in range(_PORTION):
            began = perf_counter()
            batch = next(batches, _END)
            seconds = perf_counter() - began
            self.waited += seconds
            if batch is _END:
                self._over = True
                return
            if not recent:
                self.looks += 1
                self.looked += seconds
                self.computed += thread_time() - computed
                self.idle += event is not None and event.query()
            recent.append(seconds)
            self.fetched += 1
            yield batch

    def _event(self) -> Any:
        """Behind all that the GPU was given to do so far; None without one."""
        if self._run.strategy.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _look_at_share(self) -> None:
        """Warn early where most of the time goes into waiting for data; not counting the start of the first epoch."""
        elapsed = perf_counter() - self._training_began - self._first_start
        if elapsed < _WARN_AFTER or self.fetched < _WARN_BATCHES:
            return
        share = (self.starts + self.waited - self._first_start) / elapsed
        if share > _WARN_ABOVE:
            self._warned = self._run.warn_of_waiting(share)

    @property
    def starved(self) -> bool:
        """A long fit waited much for its data."""
        return self.total() >= _TELL_AFTER and self.starts + self.waited > _TELL_ABOVE * self.total()


def loaders_in(loader: Any) -> list[Any]:
    """The loaders of which ``loader`` is made."""
    return list(loader.flattened) if isinstance(loader, CombinedLoader) else [loader]


def is_ready(loader: Any) -> bool:
    """True where all samples lie in memory and are only put together."""
    return all(
        isinstance(one, list | tuple | range)
        or (isinstance(one, DataLoader) and is_plain(one) and not one.num_workers and draws_nothing(one))
        for one in loaders_in(loader)
    )
