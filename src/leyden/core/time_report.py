"""The report of a fit's times: a table, and advice that names what to change."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from leyden.core.state import Stage
from leyden.core.times import CHECKPOINTS, LOGGING, VALIDATION, is_ready, loaders_in
from leyden.utils.errors import warn
from leyden.utils.rank import say
from leyden.utils.table import draw_table

# Shares of the time above which there is advice.
_MUCH_WAITING, _MUCH_ELSE, _MUCH_COMPUTING = 0.2, 0.3, 0.5
# Seconds from which on it is worth a word that an epoch takes so long to begin.
_LONG_START = 0.01
# The share to which that advice is meant to bring it.
_FINE = 0.2
# Seconds that it takes at the least to get a batch from a worker process: measured, 0.27 ms, torch 2.13, Linux.
_FROM_WORKER = 3e-4


class TimeRow(NamedTuple):
    """One line of the table.

    Attributes:
        name: What the time went into.
        seconds: How much.
        share: Of the whole run, 0 to 1.
        times: Batches, passes of validation, calls of loggers, files; 0 where nothing is counted.
    """

    name: str
    seconds: float
    share: float
    times: int


@dataclass(frozen=True)
class TimeReport:
    """Where the time of a fit went; printed, a table.

    Attributes:
        rows: What it went into; together they are the whole fit.
        advice: What to change, in sentences; empty where nothing stands out.
        notes: How to read the numbers.
    """

    rows: list[TimeRow]
    advice: list[str]
    notes: list[str]

    @property
    def seconds(self) -> float:
        """The whole fit's."""
        return sum(row.seconds for row in self.rows)

    def __str__(self) -> str:
        cells = [
            [
                row.name,
                f"{row.seconds:.2f}",
                f"{row.share:.0%}",
                str(row.times or ""),
                _span(row.seconds / row.times) if row.times else "",
            ]
            for row in self.rows
        ]
        cells.append(["the fit", f"{self.seconds:.2f}", "100%", "", ""])
        table = draw_table(["time went into", "seconds", "share", "times", "each"], cells)
        return "\n".join([table, *self.advice, *self.notes])


@dataclass(frozen=True)
class Waiting:
    """How a fit waits for its data.

    Attributes:
        share: The part of the time that was waited, 0 to 1.
        in_starts: The part of that in which epochs began.
        start: Seconds until an epoch's first batch.
        epochs: How often one began.
        fetch: Seconds waited for each further batch.
        step: Seconds of a step.
        computing: The part of fetching in which this process computed, 0 to 1; else it waited.
        cores: Cores that this process may use.
        gpu: Training is on a GPU.
    """

    share: float
    in_starts: float
    start: float
    epochs: int
    fetch: float
    step: float
    computing: float
    cores: int
    gpu: bool = False


def make_report(run: Any) -> TimeReport:
    """The report of ``run``, a fit that is going on or over."""
    times = run.times
    untimed, batches = times.untimed(), times.batches()
    seconds = {
        "waiting for data": times.starts + times.waited + untimed,
        "steps": times.steps() - untimed,
        **times.seconds,
    }
    total = times.total()
    counts = {"waiting for data": batches, "steps": batches, **times.counts}
    rows = [TimeRow(name, span, span / total, counts[name]) for name, span in seconds.items()]
    rest = max(0.0, total - sum(seconds.values()))
    rows.append(TimeRow("the rest", rest, rest / total, 0))
    share = {row.name: row.share for row in rows}

    advice = on_data(run, share["waiting for data"])
    if share[VALIDATION] > _MUCH_ELSE:
        advice.append(_on_validation(run, share[VALIDATION]))
    if share[LOGGING] > _MUCH_ELSE:
        advice.append(_on_logging(run, share[LOGGING]))
    if share[CHECKPOINTS] > _MUCH_ELSE:
        advice.append(_on_checkpoints(run, share[CHECKPOINTS]))
    if (device := run.strategy.device).type == "cuda":
        computing = share["steps"] + (0.0 if _starves(times) else share["waiting for data"])
        advice += on_computing(computing, torch.cuda.get_device_capability(device), run.precision.name, run.module)
    return TimeReport(rows, advice, _notes(run, untimed))


def warn_of_waiting(run: Any, share: float) -> bool:
    """Warn early that ``share`` of the time goes into waiting for data; False where nothing need be done about it."""
    if advice := on_data(run, share):
        warn("LD300", f"{' '.join(advice)} print(trainer.time_report) shows where all the time goes.")
    return bool(advice)


def tell(run: Any) -> None:
    """Say what would shorten the waiting for data, in two lines at most."""
    for line in on_data(run, make_report(run).rows[0].share):
        say(line)


def _notes(run: Any, untimed: float) -> list[str]:
    times, notes = run.times, []
    if untimed:
        notes.append(
            f"Batches were ready in memory: {times.fetched + times.epochs} of {times.batches()} were timed, and the "
            "waiting for the others is an estimate."
        )
    if run.strategy.device.type != "cpu":
        notes.append(
            "These are times of the process, which hands its work to the device and goes on; where it reads a value, "
            "or is far ahead, it waits. So steps may show under other names, and waiting for data need not delay them."
        )
        if times.looks and run.strategy.device.type == "cuda":
            notes.append(f"The GPU had nothing left to do when a batch came: {times.idle} of {times.looks} looks.")
    return notes


# Data.


def on_data(run: Any, share: float) -> list[str]:
    """Advice where ``share`` of the time went into waiting for data."""
    times = run.times
    if share <= _MUCH_WAITING or not times.epochs or "train" not in vars(run):
        return []
    gpu = run.strategy.device.type == "cuda"
    if gpu and not _starves(times):
        return []
    waited = times.waited + times.untimed()
    waiting = Waiting(
        share=share,
        in_starts=times.starts / (times.starts + waited),
        start=times.starts / times.epochs,
        epochs=times.epochs,
        fetch=times.waited / max(1, times.fetched),
        step=(times.steps() - times.untimed()) / max(1, times.batches()),
        computing=min(1.0, times.computed / times.looked) if times.looked else 1.0,
        cores=_cores(),
        gpu=gpu,
    )
    return advice_on_waiting(waiting, run.train.loader, run.options.fast_paths)


def _starves(times: Any) -> bool:
    """The GPU had nothing left to do when a batch came, more often than not; else it missed nothing."""
    return bool(times.idle > times.looks / 2)


def advice_on_waiting(waiting: Waiting, loader: Any, fast_paths: bool = True) -> list[str]:
    """What would shorten the waiting.

    Args:
        waiting: How it is.
        loader: The training loader.
        fast_paths: Batches are gathered from tensors where that is possible.
    """
    advice = []
    if waiting.in_starts > 0.5 and waiting.epochs > 1 and waiting.start > _LONG_START:
        advice.append(_on_starts(waiting, loader))
    if waiting.share * (1 - waiting.in_starts) > _MUCH_WAITING:
        advice.append(_on_batches(waiting, loader, fast_paths))
    return advice


def _on_starts(waiting: Waiting, loader: Any) -> str:
    said = (
        f"{waiting.share * waiting.in_starts:.0%} of the time went into waiting for the first batch of each epoch, "
        f"{_span(waiting.start)} in {waiting.epochs} epochs"
    )
    with_workers = [one for one in loaders_in(loader) if isinstance(one, DataLoader) and one.num_workers]
    if not all(one.persistent_workers for one in with_workers):
        return f"{said}, while workers start. DataLoader(persistent_workers=True) keeps them."
    if with_workers:
        return f"{said}, while workers read their first ones. Fewer, longer epochs wait less often."
    return f"{said}. Look at what the loader does there: its sampler, or __iter__ of its dataset."


def _on_batches(waiting: Waiting, loader: Any, fast_paths: bool) -> str:
    loaders = [one for one in loaders_in(loader) if isinstance(one, DataLoader)]
    workers = sum(one.num_workers for one in loaders)
    said = (
        f"{waiting.share:.0%} of the time went into waiting for data: {_span(waiting.fetch)} a batch, beside "
        f"{_span(waiting.step)} for its step"
    )
    if fast_paths and (hindrances := _not_gathered(loaders)):
        return (
            f"{said}. Samples that are rows of tensors are gathered at once, in microseconds, but not with "
            f"{hindrances}: leave that out{_INSTEAD if 'collate_fn' in hindrances else ''}."
        )
    said += f", with num_workers={workers}." if loaders else "."
    computes = not workers and waiting.computing >= 0.5  # of workers' reading nobody here knows
    cores = f"{waiting.cores} core{'s' if waiting.cores > 1 else ''}"
    if computes and waiting.cores == 1:
        return f"{said} Reading keeps its core busy, and there is 1 core, which workers would share: {_CHEAPER}"
    if workers >= waiting.cores:
        return (
            f"{said} There are no more than {cores}, so further ones help only where reading waits for disk or "
            f"network; else {_CHEAPER}"
        )

    before, step = waiting.fetch + waiting.step, max(waiting.step, 1e-6)
    effort = before * workers if workers else waiting.fetch  # the seconds in which one reader reads a batch
    most = waiting.cores if workers else min(waiting.cores, int((waiting.cores - 1) / max(waiting.computing, 1e-3)))
    many = min(math.ceil(effort / step), max(1, most))
    after = max(step + _FROM_WORKER, effort / many)
    if many <= workers or after > 0.8 * before:
        return f"{said} {'More workers' if workers else 'Workers'} would not shorten that much, on {cores}: {_CHEAPER}"
    pinned = ", pin_memory=True" if waiting.gpu and not all(one.pin_memory for one in loaders) else ""
    fix = f"num_workers={many}{pinned}"
    fix = f"DataLoader({fix})" if loaders else f"A DataLoader({fix}) in place of {type(loader).__name__}"
    said += f" {fix} reads beside the step: at best {_span(after)} a batch in place of {_span(before)}."
    if len(loaders) > 1:
        said += " That is the sum over all loaders."
    if computes and waiting.cores <= 2:
        said += f" With {cores} it takes one from the step."
    if any(isinstance(one.dataset, IterableDataset) for one in loaders) and many > 1:
        said += " Its dataset must then share its samples among them: torch.utils.data.get_worker_info()."
    return said


_INSTEAD = ", and do to the whole batch, in training_step, what collate_fn does to samples"
_CHEAPER = "make samples cheaper to read, decoded or resized once and kept; in a TensorDataset, if they fit in memory."


def _not_gathered(loaders: list[Any]) -> str:
    """What keeps samples that are rows of tensors from being gathered at once, see reading.py."""
    for loader in loaders:
        found = [
            f"num_workers={loader.num_workers}" if loader.num_workers else "",
            "pin_memory=True" if loader.pin_memory and torch.accelerator.is_available() else "",
            "a collate_fn" if loader.collate_fn is not default_collate else "",
            f"a {type(loader).__name__}" if type(loader) is not DataLoader else "",
        ]
        hindrances = " and ".join(filter(None, found))
        if hindrances and type(loader.batch_sampler) is BatchSampler and _are_rows(loader.dataset):
            return hindrances
    return ""


def _are_rows(dataset: Any) -> bool:
    """True where the samples are rows of tensors on the CPU."""
    kind = type(dataset)
    if kind is torch.Tensor:
        return bool(dataset.device.type == "cpu")
    if kind is Subset:
        return _are_rows(dataset.dataset)
    if kind is TensorDataset:
        return all(map(_are_rows, dataset.tensors))
    if kind is StackDataset or kind is ConcatDataset:
        parts = dataset.datasets
        return all(map(_are_rows, parts.values() if isinstance(parts, dict) else parts))
    return False


def _cores() -> int:
    """Cores that this process may use."""
    with suppress(AttributeError, OSError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# The rest.


def _rarer(share: float) -> int:
    """How many times rarer something must happen to take ``_FINE`` of the time in place of ``share``."""
    return max(2, math.ceil(share * (1 - _FINE) / (max(1 - share, 1e-3) * _FINE)))


def _on_validation(run: Any, share: float) -> str:
    options, passes, rarer = run.options, run.times.counts[VALIDATION], _rarer(share)
    fixes = []
    interval, every = options.val_check_interval, options.check_val_every_n_epoch
    within_epochs = run.validation_seconds != math.inf or run.validation_interval < run.train.count or every is None
    if passes > 1 and within_epochs:
        fixes.append(f"a val_check_interval so many times as large (it is {interval!r})")
    elif passes > 1:
        fixes.append(f"Trainer(check_val_every_n_epoch={every * rarer})")
    limit = options.limit_val_batches
    if isinstance(limit, int):
        fixes.append(f"limit_val_batches={max(1, limit // rarer)}")
    elif math.inf not in run.evaluation_counts(Stage.VALIDATE):
        fixes.append(f"limit_val_batches={max(0.01, round((1.0 if limit is None else limit) / rarer, 2))}")
    said = (
        f"{share:.0%} of the time was validation, {_each(run, VALIDATION)}. Take 1/{rarer} of it for {_FINE:.0%}: "
        f"{', or '.join(fixes)}."
    )
    loaders = [one for batches in run.evaluation(Stage.VALIDATE) for one in loaders_in(batches.loader)]
    if any(isinstance(one, DataLoader) and not one.num_workers and not is_ready(one) for one in loaders):
        said += " Its loader reads without workers (num_workers=0)."
    return said


def _on_logging(run: Any, share: float) -> str:
    names = ", ".join(dict.fromkeys(type(logger).__name__ for logger in run.loggers))
    fix = f"Trainer(log_every_n_steps={max(1, run.log_every) * _rarer(share)})"
    return (
        f"{share:.0%} of the time went into handing logged values to {names}, {_each(run, LOGGING)}. {fix} does it "
        "less often."
    )


def _on_checkpoints(run: Any, share: float) -> str:
    in_background = any(getattr(callback, "async_save", False) for callback in run.callbacks)
    return (
        f"{share:.0%} of the time went into writing checkpoints, {_each(run, CHECKPOINTS)}. "
        f"{'' if in_background else 'ModelCheckpoint(async_save=True) writes while training goes on. '}"
        f"For {_FINE:.0%}, write 1/{_rarer(share)} of them: a larger every_n_train_steps or every_n_epochs."
    )


def on_computing(share: float, capability: tuple[int, int], precision: str, module: nn.Module) -> list[str]:
    """Advice for steps that took ``share`` of the time on a GPU of that compute capability."""
    advice = []
    gpu = f"a GPU of compute capability {capability[0]}.{capability[1]}"
    if share < _MUCH_COMPUTING or capability < (8, 0):
        return []
    if precision == "32-true":
        advice.append(
            f"{share:.0%} of the time went into steps in 32 bits on {gpu}, which multiplies faster in 16: "
            'Trainer(precision="bf16-mixed").'
        )
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    others = sum(not part.weight.is_contiguous(memory_format=torch.channels_last) for part in convolutions)
    if others:
        advice.append(
            f"{others} of {len(convolutions)} convolutions keep their weights in rows of channels, and {gpu} is faster "
            "with channels last: module.to(memory_format=torch.channels_last) before fit, and the same for the images, "
            "in on_after_batch_transfer."
        )
    return advice


def _each(run: Any, what: str) -> str:
    count = run.times.counts[what]
    return f"{count} time{'s' if count > 1 else ''}, {_span(run.times.seconds[what] / max(1, count))} each"


def _span(seconds: float) -> str:
    """``seconds`` with a unit of their size, and three digits.

    >>> _span(0.0123456)
    '12.3 ms'
    """
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
