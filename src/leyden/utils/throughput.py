"""How fast a run is: batches, samples, items and floating-point operations a second."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class _Mark(NamedTuple):
    """One update: totals since the start, but for ``flops``."""

    time: float
    batches: int
    samples: int
    lengths: int | None
    flops: int | None


class Throughput:
    """Rates over the last updates.

    ``compute`` gives rates once ``window_size`` updates are there: the first batches, which are slow, drop out of them
    later::

        throughput = Throughput(window_size=20)
        started = time.perf_counter()
        for batches, batch in enumerate(loader, start=1):
            ...
            loss.item()  # wait for the device, or what is measured is how fast work is handed to it
            throughput.update(time=time.perf_counter() - started, batches=batches, samples=batches * 64)
            rates = throughput.compute()

    Args:
        available_flops: What one device can do at best, a second; ``get_available_flops`` knows it.
        world_size: Devices, each as fast as this one. Rates of all together are given too where there are several.
        window_size: Updates that rates are taken over; at least 2.
        separator: What stands between ``"device"`` and the name of a rate.

    Raises:
        ValueError: A number is too small.
    """

    def __init__(
        self,
        available_flops: float | None = None,
        world_size: int = 1,
        window_size: int = 100,
        separator: str = "/",
    ) -> None:
        if available_flops is not None and not available_flops > 0:
            raise ValueError(f"available_flops={available_flops!r} is not above 0. Give None where it is not known.")
        if world_size < 1:
            raise ValueError(f"world_size={world_size!r} is less than 1, the number of devices without the others.")
        if window_size < 2:
            raise ValueError(f"window_size={window_size!r} is less than 2: a rate lies between two updates.")
        self.available_flops = available_flops
        self.world_size = world_size
        self.separator = separator
        self._marks: deque[_Mark] = deque(maxlen=window_size)

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """Note how far this device is; each number but ``flops`` is a total since the start, and must grow.

        Args:
            time: Seconds.
            batches: Batches.
            samples: Samples; at least one a batch.
            lengths: Items in the samples, such as tokens; at least one a sample.
            flops: Floating-point operations since the last update.

        Raises:
            ValueError: A total has not grown, or is less than it can be. Nothing is noted then.
        """
        if samples < batches:
            raise ValueError(f"samples={samples} is less than batches={batches}, but every batch has a sample.")
        if lengths is not None and lengths < samples:
            raise ValueError(f"lengths={lengths} is less than samples={samples}, but every sample has an item.")
        mark = _Mark(time, batches, samples, lengths, flops)
        if self._marks:
            last = self._marks[-1]
            for name in ("time", "batches", "samples", "lengths"):
                before, now = getattr(last, name), getattr(mark, name)
                if before is not None and now is not None and now <= before:
                    raise ValueError(f"{name}={now} is not above {before}, the last update's. Give totals, not steps.")
        self._marks.append(mark)

    def compute(self) -> dict[str, int | float]:
        """The last update's totals and, once the window is full, the rates over it; empty before the first update.

        Rates of this device are named ``"device/batches_per_sec"``, ``samples``, ``items`` (with lengths in every
        update) and ``flops`` likewise (with flops in every update), and ``"device/mfu"``: flops a second as a part of
        ``available_flops``. Those of all devices are named ``"batches_per_sec"`` and so on.
        """
        if not self._marks:
            return {}
        first, last = self._marks[0], self._marks[-1]
        totals: dict[str, int | float] = {"time": last.time, "batches": last.batches, "samples": last.samples}
        if last.lengths is not None:
            totals["lengths"] = last.lengths
        if len(self._marks) < (self._marks.maxlen or 0):
            return totals
        done: dict[str, float] = {"batches": last.batches - first.batches, "samples": last.samples - first.samples}
        if first.lengths is not None and last.lengths is not None:
            done["items"] = last.lengths - first.lengths
        flops = [mark.flops for mark in self._marks if mark.flops is not None]
        if len(flops) == len(self._marks):
            done["flops"] = sum(flops[1:])  # the first update's lie before its time
        return totals | self._rates(done, last.time - first.time)

    def _rates(self, done: dict[str, float], seconds: float) -> dict[str, int | float]:
        device = {f"{name}_per_sec": number / seconds for name, number in done.items()}
        every = {name: rate * self.world_size for name, rate in device.items()} if self.world_size > 1 else {}
        if self.available_flops is not None and "flops" in done:
            device["mfu"] = device["flops_per_sec"] / self.available_flops
        return {f"device{self.separator}{name}": rate for name, rate in device.items()} | every

    def reset(self) -> None:
        """Forget all updates."""
        self._marks.clear()
