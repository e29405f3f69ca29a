"""self.log: check, accumulate on the device, reduce, name, hand out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from leyden.core.metrics import is_metric, restore_running_states, running_states
from leyden.core.state import Stage
from leyden.utils.errors import MisconfigurationError, warn
from leyden.utils.lazy import LazyModule
from leyden.utils.tree import batch_size_of, tree_leaves

# Where values may be logged: (on_step by default, on_epoch by default, may be logged by step at all).
_BY_STEP = (True, False, True)
_BY_EPOCH = (False, True, True)
_ONLY_BY_EPOCH = (False, True, False)
PLACES: dict[str, tuple[bool, bool, bool]] = {
    "training_step": _BY_STEP,
    "on_before_zero_grad": _BY_STEP,
    "on_before_backward": _BY_STEP,
    "on_after_backward": _BY_STEP,
    "on_before_optimizer_step": _BY_STEP,
    "on_train_batch_start": _BY_STEP,
    "on_train_batch_end": _BY_STEP,
    "on_train_start": _ONLY_BY_EPOCH,
    "on_train_epoch_start": _ONLY_BY_EPOCH,
    "on_train_epoch_end": _ONLY_BY_EPOCH,
    "training_step_end": _BY_STEP,
    "training_epoch_end": _ONLY_BY_EPOCH,
    **{
        place.format(stage): rule
        for stage in ("validation", "test")
        for place, rule in (
            ("{}_step", _BY_EPOCH),
            ("on_{}_batch_start", _BY_EPOCH),
            ("on_{}_batch_end", _BY_EPOCH),
            ("on_{}_start", _ONLY_BY_EPOCH),
            ("on_{}_epoch_start", _ONLY_BY_EPOCH),
            ("on_{}_epoch_end", _ONLY_BY_EPOCH),
            ("{}_step_end", _BY_EPOCH),
            ("{}_epoch_end", _ONLY_BY_EPOCH),
        )
    },
}

# Methods that are called on the way from one of these places to another, or when all of them are over.
_ON_THE_WAY = frozenset(
    (
        *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "lr_scheduler_step"),
        *(f"on_{stage}_model_{mode}" for stage in ("validation", "test") for mode in ("eval", "train", "zero_grad")),
        *("train_dataloader", "val_dataloader", "state_dict", "on_save_checkpoint", "on_exception", "teardown"),
    )
)

_REDUCTIONS: dict[Any, str] = {
    **{name: name for name in ("mean", "sum", "min", "max")},
    **{"avg": "mean", torch.mean: "mean", torch.sum: "sum", torch.min: "min", torch.max: "max"},
    **{min: "min", max: "max", sum: "sum"},
}

_media = LazyModule("leyden.loggers.media")

# Options of an entry that comes from a checkpoint: those it is logged with are not known before it is.
_RESTORED = ()


class Entry:
    """One name logged at one place: its options, its latest value, and its sum over the epoch so far.

    Attributes:
        options: What ``self.log`` was called with, to notice a second call that differs.
        step_name: Under which step values go out; None when they do not.
        epoch_name: Under which the epoch's value goes out; None when it does not.
        latest: The value logged last, a tensor of shape ``()`` or a number; None before the first.
        fresh: ``latest`` was logged since step values went out last.
        total: Sum (of value times samples for a mean), least or greatest value of the epoch so far, at least float32;
            of a metric its value, where that is settled.
        weight: Samples in ``total``, for a mean; 1 for a metric that was logged in the epoch.
        metric: The torchmetrics-like object that was logged instead of numbers.
        shown: The ``latest`` that is among the finished values already.
    """

    __slots__ = (
        "epoch_name",
        "fresh",
        "latest",
        "metric",
        "name",
        "options",
        "prog_bar",
        "reduction",
        "shown",
        "step_name",
        "to_logger",
        "total",
        "weight",
    )

    def __init__(self, name: str, suffix: str, on_step: bool, on_epoch: bool, options: tuple[Any, ...]) -> None:
        forked = on_step and on_epoch
        self.name = name + suffix
        self.step_name: Any = (f"{name}_step" if forked else name) + suffix if on_step else None
        self.epoch_name: Any = (f"{name}_epoch" if forked else name) + suffix if on_epoch else None
        self.options = options
        self.prog_bar: bool = options[0]
        self.to_logger: bool = options[1] is not False
        self.reduction = _reduction(name, options[4])
        self.latest: Any = None
        self.shown: Any = None
        self.fresh = False
        self.total: Any = None
        self.weight: float = 0
        self.metric: Any = None

    def accumulate(self, value: Any, samples: float) -> None:
        """Count ``value`` into the epoch; never waits for the device."""
        total = self.total
        if self.reduction == "mean":
            self.weight += samples
            if type(total) is Tensor:
                total.add_(value, alpha=samples)
                return
            value = _wide(value) * samples
        if total is None:
            # A copy, because the total is later added to in place.
            self.total = _wide(value).clone() if type(value) is Tensor else value
        elif self.reduction in ("mean", "sum"):
            self.total = total + value
        elif type(total) is Tensor or type(value) is Tensor:
            pick = torch.minimum if self.reduction == "min" else torch.maximum
            if type(total) is not type(value):
                total, value = torch.as_tensor(total), torch.as_tensor(value)
            self.total = pick(total, value)
        else:
            self.total = min(total, value) if self.reduction == "min" else max(total, value)

    def epoch_value(self) -> Any:
        """The epoch's value; None when nothing was logged in it."""
        if self.metric is not None and self.total is None:
            return _metric_value(self.name, self.metric, self.metric.compute()) if self.weight else None
        if self.total is None or self.metric is not None or self.reduction != "mean":
            return self.total
        return self.total / self.weight if self.weight else self.total * float("nan")

    def clear(self) -> None:
        """Begin a new epoch."""
        if self.metric is not None and self.weight:
            self.metric.reset()
        self.total, self.weight, self.latest, self.shown, self.fresh = None, 0, None, None, False


class Results:
    """What was logged in a run, and the latest values for callbacks, loggers and the progress bar.

    The loops say where they are (``hook``, ``batch``, ``enter``) and when values are due (``step_metrics``,
    ``end_epoch``); the meaning of every option of ``self.log`` is here.

    Attributes:
        hook: The step or hook that is running.
        batch: The batch in work, from which the number of samples is taken.
        samples: That number; None until it is needed.
        entries: The entries of the stage and loader in work, by place and name.
        by_step: Something was logged by step in the stage in work.
        due_media: Images and the like that go to the loggers with the next values, by name.
        ended: The epoch's batches are over, so ``callback_metrics`` shows the epoch's values too.
    """

    __slots__ = (
        "_finished_bar",
        "_finished_callback",
        "_media",
        "_suffix",
        "_tables",
        "batch",
        "by_step",
        "due_media",
        "ended",
        "entries",
        "hook",
        "logged_metrics",
        "module",
        "samples",
        "stage",
    )

    def __init__(self, module: Any = None) -> None:
        self.module = module
        self.hook = ""
        self.batch: Any = None
        self.samples: int | None = None
        self.by_step = False
        self.ended = False
        self.stage: Stage | None = None
        self.logged_metrics: dict[str, Any] = {}
        self.entries: dict[tuple[str, str], Entry] = {}
        self.due_media: dict[str, Any] = {}
        self._media: dict[tuple[Stage | None, bool, str], Any] = {}  # by stage, by step or epoch, and name
        self._suffix = ""
        self._tables: dict[tuple[Stage | None, str], dict[tuple[str, str], Entry]] = {}
        self._finished_callback: dict[str, Any] = {}
        self._finished_bar: dict[str, Any] = {}

    # Where the loops are.

    def enter(self, stage: Stage | None, suffix: str = "") -> tuple[Stage | None, str, str]:
        """Log into the table of ``stage`` and ``suffix``, the loader's, from now on; returns what ``leave`` takes."""
        before = (self.stage, self._suffix, self.hook)
        if stage is not Stage.TRAIN:
            self._show_live()
        self.stage, self._suffix, self.ended = stage, suffix, False
        self.entries = self._tables.setdefault((stage, suffix), {})
        self.by_step = any(entry.step_name for entry in self.entries.values())
        return before

    def leave(self, before: tuple[Stage | None, str, str]) -> None:
        """Go back to where ``enter`` was called from."""
        self.enter(before[0], before[1])
        self.hook = before[2]

    def begin_batch(self, batch: Any) -> None:
        """The steps and hooks that follow are about ``batch``; None when they are about no batch in particular."""
        self.batch = batch
        self.samples = None

    # self.log

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """See ``LightningModule.log``."""
        options = (prog_bar, logger, on_step, on_epoch, reduce_fx, add_dataloader_idx, metric_attribute)
        entry = self.entries.get((self.hook, name))
        if entry is None:
            if _is_media(value):
                self._log_media(name, value, options)
                return
            entry = self._declare(name, value, options, batch_size)
        elif entry.options != options:
            entry = self._declare_again(entry, name, value, options, batch_size)
        if isinstance(value, Tensor):
            if value.ndim:
                value = _one_number(name, value)
            if not enable_graph and value.requires_grad:
                value = value.detach()
        elif entry.metric is not None:
            entry.weight = 1
            if entry.step_name is not None:
                entry.latest, entry.fresh = _batch_value(name, entry.metric), True
            return
        elif type(value) is not float:
            value = _number(name, value)
        if entry.step_name is not None:
            entry.latest = value
            entry.fresh = True
        if entry.epoch_name is not None:
            samples: float = 0
            if entry.reduction == "mean":
                samples = (self.samples or self._count_samples(name)) if batch_size is None else batch_size
                if type(total := entry.total) is Tensor:  # as accumulate does, without the call
                    entry.weight += samples
                    total.add_(value, alpha=samples)
                    return
            entry.accumulate(value, samples)

    def _declare(self, name: str, value: Any, options: tuple[Any, ...], batch_size: Any) -> Entry:
        """Check a call that is the first of its name at its place."""
        _, _, on_step, on_epoch, _, add_dataloader_idx, metric_attribute = options
        on_step, on_epoch = self._when(name, on_step, on_epoch, add_dataloader_idx)
        if batch_size is not None and (not hasattr(batch_size, "__float__") or batch_size < 0):
            raise MisconfigurationError(f"self.log({name!r}, batch_size={batch_size!r}) is not a number of samples.")
        if isinstance(value, Tensor) and value.is_complex():
            raise ValueError(f"self.log({name!r}, value) takes a real number, got {value.dtype}. Log value.abs().")
        entry = Entry(name, self._suffix if add_dataloader_idx else "", on_step, on_epoch, options)
        if is_metric(value):
            entry.metric = self._own_metric(name, value, metric_attribute)
        elif on_epoch and entry.reduction == "mean" and batch_size is None:
            self._warn_of_sizes(name)
        self.entries[(self.hook, name)] = entry
        self.by_step = self.by_step or on_step
        return entry

    def _when(self, name: str, on_step: bool | None, on_epoch: bool | None, suffixed: bool) -> tuple[bool, bool]:
        """By step, and by epoch: what was asked for, or else what is usual here."""
        if not isinstance(name, str):
            raise TypeError(f"self.log takes a name first, got {name!r}. Write self.log('loss', loss).")
        caller = _caller()
        if self.hook not in PLACES or caller in _ON_THE_WAY:
            where = caller if caller in _ON_THE_WAY else self.hook or caller
            raise MisconfigurationError(
                f"self.log({name!r}) cannot be called in {where}: no values are collected there. "
                f"It can be called in: {', '.join(PLACES)}."
            )
        default_step, default_epoch, step_allowed = PLACES[self.hook]
        on_step = default_step if on_step is None else on_step
        on_epoch = default_epoch if on_epoch is None else on_epoch
        if on_step and not step_allowed:
            raise MisconfigurationError(
                f"self.log({name!r}, on_step=True) in {self.hook}: only on_epoch=True works there."
            )
        if not on_step and not on_epoch:
            raise MisconfigurationError(f"self.log({name!r}, on_step=False, on_epoch=False) would log nothing.")
        if "/dataloader_idx_" in name and suffixed:
            raise MisconfigurationError(
                f"self.log({name!r}): '/dataloader_idx_' is added by Leyden; pass add_dataloader_idx=False to write it."
            )
        return on_step, on_epoch

    def _log_media(self, name: str, value: Any, options: tuple[Any, ...]) -> None:
        """Keep an image or the like, in place of the one before, until step or epoch values go out."""
        prog_bar, logger, on_step, on_epoch, reduce_fx, add_dataloader_idx, _ = options
        on_step, on_epoch = self._when(name, on_step, on_epoch, add_dataloader_idx)
        what = f"self.log({name!r}, {type(value).__name__}, "
        if prog_bar or logger is False:
            option = "prog_bar=True" if prog_bar else "logger=False"
            raise MisconfigurationError(f"{what}{option}): only loggers can show it. Leave {option} out.")
        if reduce_fx != "mean":
            raise MisconfigurationError(f"{what}reduce_fx={reduce_fx!r}): it cannot be reduced. Leave reduce_fx out.")
        if on_step and (on_epoch or self.stage is not Stage.TRAIN):
            raise MisconfigurationError(
                f"{what}on_step=True) in {self.hook}: choose on_step=True (training only; every log_every_n_steps-th "
                "step) or on_epoch=True (the last of the epoch)."
            )
        full_name = name + (self._suffix if add_dataloader_idx else "")
        self._media[self.stage, on_step, full_name] = _media.as_media(value)

    def _make_due(self, by_step: bool) -> None:
        """Have the loggers get the images and the like of this stage that go out by step, or by epoch."""
        for key in [key for key in self._media if key[0] is self.stage and key[1] is by_step]:
            self.due_media[key[2]] = self._media.pop(key)

    def _declare_again(
        self, restored: Entry, name: str, value: Any, options: tuple[Any, ...], batch_size: Any
    ) -> Entry:
        """Go on with an entry that a checkpoint brought, under the options with which it is logged now."""
        if restored.options is not _RESTORED:
            raise MisconfigurationError(
                f"self.log({name!r}) was called twice in {self.hook} with different options. "
                "Use one call, or two names."
            )
        entry = self._declare(name, value, options, batch_size)
        if entry.metric is None:
            # Checkpoints are read onto the CPU.
            moves = isinstance(restored.total, Tensor) and isinstance(value, Tensor)
            entry.total = restored.total.to(value.device) if moves else restored.total
            entry.weight = restored.weight
            entry.latest, entry.fresh = restored.latest, restored.fresh
        return entry

    def _own_metric(self, name: str, metric: Any, attribute: str | None) -> Any:
        """``metric``, which must belong to the module, so that it moves, and is kept, with it."""
        if self.module is None or not isinstance(metric, torch.nn.Module):
            return metric
        places = [place for place, part in self.module.named_modules() if part is metric]
        if not places:
            raise MisconfigurationError(
                f"self.log({name!r}, metric): the {type(metric).__name__} is not an attribute of the module. "
                "Make it in __init__: self.metric = ..."
            )
        if attribute is not None and not any(f".{place}".endswith(f".{attribute}") for place in places):
            raise MisconfigurationError(
                f"self.log({name!r}, metric, metric_attribute={attribute!r}): the {type(metric).__name__} is the "
                f"attribute {places[0]!r}. Leave metric_attribute out; the metric is found by itself."
            )
        return metric

    def _warn_of_sizes(self, name: str) -> None:
        """Say so when it is a guess how many samples the mean over the epoch counts for this batch."""
        leaves = islice(tree_leaves(self.batch), 1000)
        sizes = list(dict.fromkeys(leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim))
        if len(sizes) > 1:
            warn(
                "LD285",
                f"self.log({name!r}, on_epoch=True): the tensors of the batch differ in their first dimension, "
                f"{', '.join(map(str, sizes[:4]))}, and the first, {sizes[0]}, is taken for the number of samples. "
                f"Say it: self.log({name!r}, value, batch_size=...).",
            )

    def _count_samples(self, name: str) -> int:
        batch = first = self.batch
        if type(batch) in (tuple, list) and batch:
            first = batch[0]
        elif type(batch) is dict and batch:
            first = next(iter(batch.values()))
        if type(first) is Tensor and first.ndim:  # the usual batch: nothing to search for
            size: int | None = first.size(0)
        else:
            size = batch_size_of(batch) if batch is not None else 1
        if size is None:
            raise MisconfigurationError(
                f"self.log({name!r}, on_epoch=True) needs the number of samples, and the batch holds no tensor to "
                f"take it from. Pass it: self.log({name!r}, value, batch_size=...)."
            )
        self.samples = size
        return size

    # What comes out.

    def step_metrics(self) -> dict[str, Any]:
        """Step values logged since the last call, for the loggers; they are on their device still."""
        due = {}
        if self._media:
            self._make_due(by_step=True)
        for entry in self.entries.values():
            if entry.fresh:
                entry.fresh = False
                if entry.to_logger:
                    due[entry.step_name] = entry.latest
        self.logged_metrics.update(due)
        return due

    def end_loader(self) -> None:
        """Settle the metrics of one loader of several; the next one may go on counting with the same objects."""
        for entry in self.entries.values():
            if entry.metric is not None:
                entry.total = entry.epoch_value()

    def end_epoch(self, clear: bool = True) -> dict[str, Any]:
        """Reduce the current table: values go to callbacks and bar, and come back for the loggers.

        Args:
            clear: Begin a new epoch. Not when the epoch was broken off and may be continued.
        """
        due: dict[str, Any] = {}
        if self.stage is Stage.TRAIN:
            self._show_live()
        if self._media:
            self._make_due(by_step=False)
        for entry in self.entries.values():
            if entry.epoch_name is not None and (value := entry.epoch_value()) is not None:
                self._finished_callback[entry.name] = self._finished_callback[entry.epoch_name] = value
                if entry.prog_bar:
                    self._finished_bar[entry.epoch_name] = value
                if entry.to_logger:
                    due[entry.epoch_name] = value
            if clear:
                entry.clear()
        self.ended = False
        self.logged_metrics.update(due)
        return due

    def forget(self, stage: Stage) -> None:
        """Drop everything that was logged in ``stage``: it was only a trial."""
        self._media = {key: media for key, media in self._media.items() if key[0] is not stage}
        for (table_stage, _), entries in self._tables.items():
            if table_stage is stage:
                for entry in entries.values():
                    entry.clear()
                entries.clear()

    def add_callback_metrics(self, values: dict[str, Any]) -> None:
        """Show ``values`` among ``callback_metrics``."""
        self._finished_callback.update(values)

    def callback_metrics(self) -> dict[str, Tensor]:
        """The latest value of every name, as tensors; built on each call."""
        found = dict(self._finished_callback)
        for entry in self._live():
            found[entry.name] = found[entry.step_name] = entry.latest
        for entry, value in self._epoch_values():
            found[entry.name] = found[entry.epoch_name] = value
        return {name: torch.as_tensor(value) for name, value in found.items()}

    def bar_metrics(self) -> dict[str, float]:
        """The latest values logged with ``prog_bar=True``; waits for the device once."""
        found = dict(self._finished_bar)
        found.update((entry.step_name, entry.latest) for entry in self._live() if entry.prog_bar)
        found.update((entry.epoch_name, value) for entry, value in self._epoch_values() if entry.prog_bar)
        return numbers(found)

    def _epoch_values(self) -> Iterator[tuple[Any, Any]]:
        """What an epoch whose batches are over comes to as yet, by entry; nothing before."""
        for (stage, _), entries in self._tables.items() if self.ended else ():
            for entry in entries.values() if stage is self.stage else ():
                if entry.epoch_name is not None and (value := entry.epoch_value()) is not None:
                    yield entry, value

    def _live(self) -> Iterator[Any]:
        """Training entries with a step value that is not among the finished values."""
        return (entry for entry in self._training().values() if entry.latest is not entry.shown)

    def _show_live(self) -> None:
        """Put the latest step values among the finished ones, where what is logged later under their names wins."""
        for entry in self._live():
            self._finished_callback[entry.name] = self._finished_callback[entry.step_name] = entry.latest
            if entry.prog_bar:
                self._finished_bar[entry.step_name] = entry.latest
            entry.shown = entry.latest

    def _training(self) -> dict[tuple[str, str], Entry]:
        return self._tables.setdefault((Stage.TRAIN, ""), {})

    # Checkpoints.

    def state_dict(self) -> dict[str, Any]:
        """The entries of the training epoch in progress, and the latest values that callbacks may monitor."""
        parts = {id(part): name for name, part in self.module.named_modules()} if self.module is not None else {}
        entries = [
            {
                "place": place,
                "name": name,
                "on_step": entry.step_name is not None,
                "on_epoch": entry.epoch_name is not None,
                "prog_bar": entry.prog_bar,
                "logger": entry.to_logger,
                "reduction": entry.reduction,
                "total": entry.total,
                "weight": entry.weight,
                "latest": _detached(entry.latest) if entry.fresh else None,
                "metric": parts.get(id(entry.metric)),
            }
            for (place, name), entry in self._training().items()
            if entry.weight or entry.total is not None or entry.fresh
        ]
        return {"entries": entries, **self.running_values()}

    def running_values(self, copy: bool = False) -> dict[str, Any]:
        """What validation changes too: the states of metric objects, and the values that callbacks may monitor."""
        return {
            "metrics": running_states(self.module, copy) if self.module is not None else {},
            "callback_metrics": {name: _detached(value) for name, value in self.callback_metrics().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what ``state_dict`` returned."""
        self._finished_callback.update(state["callback_metrics"])
        parts = dict(self.module.named_modules()) if self.module is not None else {}
        for saved in state["entries"]:
            options = (saved["prog_bar"], saved["logger"], None, None, saved["reduction"])
            entry = Entry(saved["name"], "", saved["on_step"], saved["on_epoch"], options)
            entry.options = _RESTORED
            entry.total, entry.weight, entry.latest = saved["total"], saved["weight"], saved["latest"]
            entry.fresh = entry.latest is not None
            entry.metric = parts.get(saved["metric"])
            self._training()[saved["place"], saved["name"]] = entry
        if self.module is not None:
            restore_running_states(self.module, state["metrics"])


def numbers(values: dict[Any, Any]) -> dict[str, float]:
    """``values`` as Python numbers; tensors of one device and type are fetched together."""
    found = dict(values)
    alike: dict[Any, dict[Any, Tensor]] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            alike.setdefault((value.device, value.dtype), {})[name] = value.detach().reshape(())
    for tensors in alike.values():
        found.update(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
    return found


def _is_media(value: Any) -> bool:
    """True for what leyden.loggers.media defines, and for figures of matplotlib; imports neither."""
    return getattr(type(value), "is_media", False) or hasattr(value, "savefig")


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _wide(value: Any) -> Any:
    """``value`` in at least float32. Half-precision sums stop growing: in float16, 2048 + 1 == 2048."""
    if type(value) is not Tensor:
        return value
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def _reduction(name: str, reduce_fx: Any) -> str:
    known = _REDUCTIONS.get(reduce_fx) if getattr(reduce_fx, "__hash__", None) else None
    if known is None:
        raise MisconfigurationError(
            f"self.log({name!r}, reduce_fx={reduce_fx!r}): choose 'mean', 'sum', 'min' or 'max'; "
            "for anything else log a torchmetrics metric."
        )
    return known


def _batch_value(name: str, metric: Any) -> Any:
    """What ``metric`` returned for this batch."""
    value = getattr(metric, "_forward_cache", None)
    if value is None:
        raise MisconfigurationError(
            f"self.log({name!r}, metric, on_step=True) needs the metric's value for this batch, and it was not called. "
            f"Call it (metric(preds, target)) instead of metric.update(...), or pass on_step=False, on_epoch=True."
        )
    return _metric_value(name, metric, value)


def _metric_value(name: str, metric: Any, value: Any) -> Any:
    """``value``, which ``metric`` returned, if it is one number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(())
    if not isinstance(value, Tensor | dict) and hasattr(value, "__float__"):
        return float(value)
    what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise MisconfigurationError(
        f"self.log({name!r}, metric): {type(metric).__name__} comes to {what}, and only one number can be logged. "
        "At the end of the epoch log its numbers one by one, self.log(name, number), and call metric.reset()."
    )


def _caller() -> str:
    """Name of the function that called ``self.log``."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("leyden."):
        frame = frame.f_back
    return frame.f_code.co_name


def _one_number(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(
            f"self.log({name!r}, value) takes one number, got a tensor of shape {tuple(value.shape)}. "
            "Reduce it first, for example with .mean()."
        )
    return value.reshape(())


def _number(name: str, value: Any) -> float:
    if isinstance(value, dict):
        raise ValueError(
            f"self.log({name!r}, value) takes one number, got a dict. Use self.log_dict(value), with a number under "
            "every name."
        )
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):  # NumPy's
        return float(value.item())
    if hasattr(value, "shape"):
        raise ValueError(
            f"self.log({name!r}, value) takes one number, got a {type(value).__name__} of shape {tuple(value.shape)}. "
            "Reduce it first, for example with .mean()."
        )
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise ValueError(
            f"self.log({name!r}, value) takes a number, a tensor with one element or a metric, "
            f"got {type(value).__name__}: {value!r}. For what is none leyden.loggers.media has Text, Image, Figure, "
            "Audio, Histogram and Table; give them a name that no number has."
        )
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        warn("LD010", f"self.log({name!r}, {value}) is rounded: it is kept as a 64-bit float.", subject=name)
    return float(value)
