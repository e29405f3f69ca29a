"""ModelCheckpoint: decides when a checkpoint is due, under which name, and which older ones may go."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leyden.callbacks.monitoring import (
    check_monitor,
    in_training,
    looks_at_train_epoch_end,
    matches_nothing,
    validates,
)
from leyden.core.callback import Callback
from leyden.core.saving import settle
from leyden.core.state import Status
from leyden.utils.durations import parse_duration
from leyden.utils.errors import MisconfigurationError, warn
from leyden.utils.lazy import LazyModule
from leyden.utils.optional import require
from leyden.utils.paths import (
    atomic_write,
    exists,
    is_dir,
    is_remote,
    join,
    list_dir,
    make_dirs,
    remove_stale,
    replace_link,
)
from leyden.utils.rank import say

if TYPE_CHECKING:
    from leyden.core.module import LightningModule
    from leyden.core.types import Trainer

_names = LazyModule("leyden.callbacks.checkpoint_names")
_signals = LazyModule("leyden.core.signals")
_storage = LazyModule("leyden.core.storage")

_MOST_FAILURES = 3  # in a row, of which the last ends the run


class Checkpoint(Callback):
    """Base of callbacks that save checkpoints; the Trainer runs them after all others."""

    monitors = True
    save_weights_only = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse state that a checkpoint could not be read back with.

        Raises:
            CheckpointError: It names the places.
        """
        savers = trainer.checkpoint_callbacks
        if savers and savers[0] is self and not trainer.fast_dev_run:  # once for all
            _storage.check_content(trainer._running, all(saver.save_weights_only for saver in savers))


@dataclass
class _Records:
    """What a ModelCheckpoint knows about its files, under the names of its attributes."""

    best_model_score: Tensor | None
    best_model_path: str
    current_score: Tensor | None
    best_k_models: dict[str, Tensor]
    kth_best_model_path: str
    kth_value: Tensor
    last_model_path: str
    _saved_step: int


_RECORDS = tuple(field.name for field in fields(_Records))


class ModelCheckpoint(Checkpoint):
    """Saves checkpoints: the best by a metric, the latest, or all.

    A checkpoint is considered after each validation, or at the end of each training epoch where validation runs once
    in each epoch or not at all; ``every_n_epochs``, ``every_n_train_steps`` and ``train_time_interval``, of which one
    may be given, change that. With the latter two and a metric from validation, the next validation is waited for, so
    that a score belongs to the weights it is saved with. Nothing is saved in a sanity check, with ``fast_dev_run``, or
    twice at the same ``global_step``.

    The callback only asks; the training loop writes the file once no hook is half done. A superseded file goes when
    its successor is safe on disk. Files that this run has not written are neither overwritten nor deleted, nor is the
    file that the run was resumed from deleted.

    Before the first step the folder is tried, its disk must have room for 2.2 checkpoints, and state that could not be
    read back under ``weights_only=True`` is refused. A file that cannot be written then, on a full disk for example,
    is warned of and tried again at the next occasion; the third failure in a row ends the run, and so does one that is
    not made good at the end of training. The attributes below name only files that were written.

    Args:
        dirpath: Folder of the checkpoints. None: ``checkpoints`` in the folder of the first logger, or else in
            ``default_root_dir``.
        filename: Name without extension, in which ``{epoch}``, ``{step}`` and ``{any_metric:.2f}`` are filled in;
            ``/`` makes folders. None: ``"{epoch}-{step}"``.
        monitor: Name of the metric that ranks checkpoints. None ranks by age.
        verbose: Say what is saved and what is not.
        save_last: Also give the checkpoint saved last the name ``last.ckpt``: it is a hard link, which takes no room
            and stays when the other name goes, or a symbolic link where there are none, or in a remote folder a second
            file; ``"link"`` refuses the latter.
        save_top_k: How many to keep: the best ``k``, -1 for all, 0 for none. Without ``monitor`` -1, 0 or 1.
        save_on_exception: Save when training ends in an exception.
        save_weights_only: Leave out what only resuming needs.
        mode: ``"min"`` where less of the metric is better, ``"max"`` where more is.
        auto_insert_metric_name: Fill ``{val_loss:.2f}`` in as ``val_loss=0.25`` rather than ``0.25``.
        every_n_train_steps: Consider a checkpoint after so many optimizer steps; 0 is the same as None.
        train_time_interval: Consider a checkpoint after so much time: a timedelta, ``"DD:HH:MM:SS"`` or a dict.
        every_n_epochs: Consider a checkpoint in every n-th epoch only; 0 never.
        save_on_train_epoch_end: Consider one at the end of training epochs (True) or after validations (False).
        enable_version_counter: Give a name that is taken the ending ``-v1``, ``-v2``, ... False overwrites.
        async_save: Go on with training while a file is written, from a copy of all tensors in memory. The next save,
            the end of fit and exceptions wait for it. Files of ``save_on_exception`` are written at once.

    Attributes:
        best_model_path: The best checkpoint, the latest without ``monitor``; ``""`` before the first.
        best_model_score: Its score, a tensor of shape ``()`` on the CPU; None without ``monitor``.
        last_model_path: The file of ``save_last``; ``""`` before the first.
        best_k_models: Score of every checkpoint that is kept, by path; empty without ``monitor``.
        kth_best_model_path: The worst of them, once there are ``save_top_k``.
        kth_value: Its score.
        current_score: The score of the checkpoint saved last. NaN and infinities count as worst.

    Raises:
        MisconfigurationError: Arguments that contradict each other or are out of range; a metric that is still not
            logged when validation has run.
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | str | None = None,
        save_top_k: int = 1,
        save_on_exception: bool = False,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | str | dict[str, int] | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        async_save: bool = False,
    ) -> None:
        check_monitor("ModelCheckpoint", "the metric" if monitor is None else monitor, mode)
        _names.check_top_k(save_top_k, monitor)
        _names.check_filename(filename)
        if save_last not in (None, False, True, "link"):
            raise MisconfigurationError(
                f"ModelCheckpoint(save_last={save_last!r}) is unknown. Choose True, False or 'link'."
            )
        interval = parse_duration(train_time_interval, "train_time_interval")
        _names.check_triggers(every_n_train_steps, every_n_epochs, interval, save_on_train_epoch_end)

        self.dirpath = None if dirpath is None else _names.absolute(os.fspath(dirpath))
        self.filename = filename
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_on_exception = save_on_exception
        self.save_weights_only = save_weights_only
        self.mode = mode
        self.auto_insert_metric_name = auto_insert_metric_name
        self.save_on_train_epoch_end = save_on_train_epoch_end
        self.enable_version_counter = enable_version_counter
        self.async_save = async_save
        self._interval = interval
        self._every_n_train_steps = every_n_train_steps or 0
        no_other_trigger = not self._every_n_train_steps and interval is None
        self._every_n_epochs = int(no_other_trigger) if every_n_epochs is None else every_n_epochs

        self.best_model_path = ""
        self.best_model_score: Tensor | None = None
        self.last_model_path = ""
        self.best_k_models: dict[str, Tensor] = {}
        self.kth_best_model_path = ""
        self.kth_value = self._worst()
        self.current_score: Tensor | None = None

        self._own: set[str] = set()  # files that this run has written
        self._resumed_from = ""
        # Asked for and not yet written: the records for when it is.
        self._unwritten: dict[str, _Records] = {}
        self._failures = 0  # in a row
        self._failure: Exception | None = None  # of the last save, which is to be made good
        self._ending = False
        self._saved_step = 0
        self._seen_step = 0
        self._last_time = 0.0
        self._validated = False
        self._known_before_validation = False
        self._from_validation = False  # the monitored metric is logged in validation
        self._waits_for_validation = False

    @property
    def state_key(self) -> str:
        """One for each metric, mode and trigger."""
        return self._generate_state_key(
            monitor=self.monitor,
            mode=self.mode,
            every_n_train_steps=self._every_n_train_steps,
            every_n_epochs=self._every_n_epochs,
            train_time_interval=self._interval,
        )

    @property
    def every_n_epochs(self) -> int:
        """A checkpoint is considered in every n-th epoch; 0 when something else triggers it."""
        return self._every_n_epochs

    @property
    def every_n_train_steps(self) -> int:
        """A checkpoint is considered after every n-th optimizer step; 0 when something else triggers it."""
        return self._every_n_train_steps

    @property
    def train_time_interval(self) -> timedelta | None:
        """A checkpoint is considered after so much time; None when something else triggers it."""
        return self._interval

    # When a checkpoint is considered.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Decide on the folder."""
        if stage != "fit":
            return
        self.dirpath = trainer.strategy.broadcast(self.dirpath or _names.default_folder(trainer))
        if self.save_last == "link" and is_remote(self.dirpath):
            raise MisconfigurationError(
                f"ModelCheckpoint(save_last='link') cannot make links in {self.dirpath!r}. Give save_last=True."
            )
        if not trainer.is_global_zero or trainer.fast_dev_run or not self._saves:
            return
        for folder in {self.dirpath, os.path.dirname(trainer.ckpt_path or self.dirpath)}:
            with suppress(OSError):  # of a read-only folder
                remove_stale(folder)
        if is_dir(self.dirpath) and self.save_top_k != 0 and not trainer.ckpt_path:
            self._warn_of_other_runs(self.dirpath)
        _storage.check_folder(self.dirpath)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps and time from here; refuse what could not be saved.

        Raises:
            CheckpointError: The disk is too small, or a checkpoint could not be read back.
        """
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero and not trainer.fast_dev_run and self._saves and self.dirpath is not None:
            copies = 1.1 if self._own else 2.2  # files of the run that goes on are there already
            _storage.check_space(trainer._running, self.dirpath, self.save_weights_only, copies)
        self._unwritten.clear()
        self._failures, self._failure, self._ending = 0, None, False
        self._seen_step = trainer.global_step
        self._saved_step = min(self._saved_step, self._seen_step)  # less, in the next Trainer of this callback
        self._last_time = time.monotonic()
        self._resumed_from = str(trainer.ckpt_path or "")
        self._validated = self._waits_for_validation = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Consider a checkpoint when steps or time trigger it."""
        if not self._every_n_train_steps and self._interval is None:
            return
        step, before = trainer.global_step, self._seen_step
        if step == before or not in_training(trainer):
            return
        self._seen_step, due = step, False
        if self._every_n_train_steps:
            # Not step % n: with several optimizers under manual optimization the step may jump over a multiple.
            due = step // self._every_n_train_steps > before // self._every_n_train_steps
        elif self._interval is not None:
            due = trainer.strategy.any(time.monotonic() - self._last_time >= self._interval.total_seconds())
        if not due:
            return
        self._last_time = time.monotonic()
        self._waits_for_validation = self._score_comes_with_validation(trainer)
        if not self._waits_for_validation:
            self._consider(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether the metric was there before."""
        if self.monitor is not None and not self._from_validation:
            self._known_before_validation = self.monitor in trainer.callback_metrics

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Consider a checkpoint when validation triggers it, or when one has waited for it."""
        if not in_training(trainer):
            return
        self._validated = True
        known = self.monitor is not None and self.monitor in trainer.callback_metrics
        self._from_validation = self._from_validation or (known and not self._known_before_validation)
        if self._waits_for_validation:
            if known:
                self._waits_for_validation = False
                self._consider(trainer)
        elif not looks_at_train_epoch_end(trainer, self.save_on_train_epoch_end) and self._epoch_counts(trainer):
            self._consider(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Consider a checkpoint when the end of the epoch triggers it."""
        if not in_training(trainer):
            return
        if self._waits_for_validation and not self._from_validation:
            # Validation did not bring the metric: it may be the training epoch's own, or misspelt.
            if self._validated or self.monitor in trainer.callback_metrics:
                self._waits_for_validation = False
                self._consider(trainer)
        elif looks_at_train_epoch_end(trainer, self.save_on_train_epoch_end) and self._epoch_counts(trainer):
            self._consider(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the end of training as ``last.ckpt`` when nothing else is kept; make good a save that has failed."""
        if not in_training(trainer):
            return
        self._settle(trainer)
        self._ending = True
        if (failure := self._failure) is not None:
            self._consider(trainer)
            if not self._unwritten:
                raise failure
        elif self.save_last and self.save_top_k == 0:
            self._consider(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Forget what was never written; save at once if wanted."""
        if trainer.state.signal and self.dirpath is not None:
            self._own.add(join(self.dirpath, _signals.FILE_NAME))
        self._unwritten.clear()
        if not self.save_on_exception or self.dirpath is None or not in_training(trainer):
            return
        if trainer.global_step == self._saved_step:
            return
        path = self._path_free_here(trainer, self._metrics(trainer))  # the others may not have failed
        try:
            trainer.save_checkpoint(path, self.save_weights_only)
        except Exception as error:  # what ended training matters more
            warn("LD132", f"ModelCheckpoint(save_on_exception=True) could not write {path}: {error}", subject=path)
        else:
            self._own.add(path)
            say(f"ModelCheckpoint: training was broken off by {type(exception).__name__}; saved {path}")

    @property
    def _saves(self) -> bool:
        return bool(self.save_top_k or self.save_last or self.save_on_exception)

    def _epoch_counts(self, trainer: Trainer) -> bool:
        return self._every_n_epochs > 0 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _score_comes_with_validation(self, trainer: Trainer) -> bool:
        """True when a checkpoint considered now would get the score of older weights, or none."""
        if self.monitor is None or self.save_top_k == 0 or not validates(trainer):
            return False
        return self._from_validation or self.monitor not in trainer.callback_metrics

    def _warn_of_other_runs(self, folder: str) -> None:
        names = (name for name in list_dir(folder) if name.endswith(self.FILE_EXTENSION))
        if others := [name for name in names if join(folder, name) not in self._own]:
            and_so_on = ", ..." if len(others) > 3 else ""
            fate = "They stay; where a name is taken, this run's ends in -v1."
            if not self.enable_version_counter:
                fate = "Where a name is taken, the file is overwritten (enable_version_counter=False)."
            warn(
                "LD131",
                f"{folder} already holds checkpoints of another run: {', '.join(others[:3])}{and_so_on}. {fate} "
                "With a logger, a run gets a folder of its own where ModelCheckpoint(dirpath=) is left out.",
                subject=folder,
            )

    # Which checkpoint is asked for, and which ones it supersedes.

    def _consider(self, trainer: Trainer) -> None:
        """Ask for a checkpoint of this moment if it is among those to keep."""
        self._settle(trainer)
        records = self._latest()
        if trainer.global_step == records._saved_step:
            return
        metrics = self._metrics(trainer)
        path, superseded = "", [records.last_model_path] if self.save_last else []
        if self.save_top_k and self.monitor is not None:
            if (ranked := self._rank(trainer, metrics, records)) is None:
                return
            path, worse = ranked
            superseded += worse
        elif self.save_top_k:
            previous = records.best_model_path if self.save_top_k == 1 else ""
            path = records.best_model_path = self._free_path(trainer, metrics, previous)
            superseded.append(previous)
        elif not self.save_last:
            return
        records._saved_step = trainer.global_step

        last = ""
        if self.save_last:
            last = self._free_path(trainer, metrics, records.last_model_path, self.CHECKPOINT_NAME_LAST)
        superseded = [old for old in superseded if old and old not in (path, last)]
        if not path:
            self._ask(trainer, last, replace(records, last_model_path=last), superseded)
        elif not last:
            self._ask(trainer, path, records, superseded)
        elif is_remote(last):  # where there are no links
            self._ask(trainer, path, records, [])
            self._ask(trainer, last, replace(records, last_model_path=last), superseded)
        else:
            self._ask(trainer, path, replace(records, last_model_path=last), superseded, link=last)
        if self.verbose and path:
            score = "" if self.monitor is None else f"{self.monitor} = {float(metrics[self.monitor]):.5f}, "
            say(f"ModelCheckpoint: epoch {trainer.current_epoch}, step {trainer.global_step}: {score}saving {path}")

    def _rank(self, trainer: Trainer, metrics: Mapping[str, Any], records: _Records) -> tuple[str, list[str]] | None:
        """Take this moment's score into the ranking: path, and what it supersedes; None when it is not good enough."""
        assert self.monitor is not None
        # Processes may have logged different values; all must come to the same decision.
        value = trainer.strategy.broadcast(metrics.get(self.monitor))
        if value is None:
            self._complain(metrics)
            return None
        score = torch.as_tensor(value).detach().to("cpu").reshape(()).clone()
        if not torch.isfinite(score):
            score = self._worst()
        full = 0 < self.save_top_k <= len(records.best_k_models)
        if full and not self._better(score, records.kth_value):
            if self.verbose:
                say(
                    f"ModelCheckpoint: epoch {trainer.current_epoch}, step {trainer.global_step}: {self.monitor} = "
                    f"{float(value):.5f} is not among the best {self.save_top_k}"
                )
            return None

        records.current_score = score
        superseded = []
        while 0 < self.save_top_k <= len(records.best_k_models):
            superseded.append(self._worst_kept(records))
            del records.best_k_models[superseded[-1]]
        reuse = superseded[0] if superseded else ""
        path = self._free_path(trainer, metrics, reuse)
        records.best_k_models[path] = score
        if self.save_top_k in (-1, len(records.best_k_models)):
            records.kth_best_model_path = self._worst_kept(records)
            records.kth_value = records.best_k_models[records.kth_best_model_path]
        pick = min if self.mode == "min" else max
        records.best_model_path = pick(records.best_k_models, key=lambda kept: float(records.best_k_models[kept]))
        records.best_model_score = records.best_k_models[records.best_model_path]
        return path, superseded

    def _ask(self, trainer: Trainer, path: str, records: _Records, superseded: list[str], link: str = "") -> None:
        self._unwritten[path] = records
        trainer.request_checkpoint(
            path,
            weights_only=self.save_weights_only,
            written=partial(self._written, trainer, superseded, link),
            failed=partial(self._failed, trainer),
            in_background=self.async_save,
        )

    def _written(self, trainer: Trainer, superseded: list[str], link: str, path: str) -> None:
        """``path`` is safe on disk: link to it, publish the records, then delete what it supersedes."""
        self._own.add(path)
        if (records := self._unwritten.pop(path, None)) is None:
            return  # it was to be the copy of a file that could not be written
        self._failures, self._failure = 0, None
        if link and link != path:
            self._own.add(link)
            if not self._linked(trainer, path, link):
                copied, kept = records, self.last_model_path
                records = replace(records, last_model_path=kept)
                self._ask(trainer, link, copied, [old for old in superseded if old == kept])
                superseded = [old for old in superseded if old != kept]
        for name in _RECORDS:
            setattr(self, name, getattr(records, name))
        for old in superseded:
            if old in self._own and not any(
                _names.same_file(old, kept) for kept in (self._resumed_from, self.last_model_path)
            ):
                self._own.discard(old)
                self._remove(trainer, old)
        trainer._tell_loggers("after_save_checkpoint", self)

    def _linked(self, trainer: Trainer, path: str, link: str) -> bool:
        """Make ``link`` a second name of ``path``; False when it has to be a second file."""
        if trainer.is_global_zero:
            try:
                replace_link(path, link)
            except OSError:
                return False
        return True

    def _remove(self, trainer: Trainer, path: str) -> None:
        try:
            trainer.strategy.remove_checkpoint(path)
        except OSError as error:
            warn("LD227", f"ModelCheckpoint could not delete {path}, which is superseded: {error}", subject=path)

    def _failed(self, trainer: Trainer, path: str, error: Exception) -> None:
        """``path`` could not be written: go on as if it had not been asked for, unless that was the last chance."""
        asked = list(self._unwritten)
        for lost in asked[asked.index(path) :] if path in asked else []:
            del self._unwritten[lost]  # the later ones build on it
            requests = trainer.state.save_requests
            requests[:] = [request for request in requests if request.path != lost]
        self._failures, self._failure = self._failures + 1, error
        if self._ending or self._failures >= _MOST_FAILURES or trainer.state.status is not Status.RUNNING:
            raise error
        what = str(error) if path in str(error) else f"{path}: {error}"
        warn(
            "LD226",
            f"{what.rstrip('.')}. Training goes on, and it is tried again at the next checkpoint; {_MOST_FAILURES} "
            "failures in a row end the run.",
            subject=f"{path} {self._failures}",
        )

    def _settle(self, trainer: Trainer) -> None:
        """Wait for what is being written in the background, to decide by what is there."""
        if trainer.state.outstanding:
            settle(trainer._running)

    def _latest(self) -> _Records:
        """A copy of the records as they will be when all that was asked for is written."""
        pending = list(self._unwritten.values())
        records = pending[-1] if pending else _Records(**{name: getattr(self, name) for name in _RECORDS})
        return replace(records, best_k_models=dict(records.best_k_models))

    def _complain(self, metrics: Mapping[str, Any]) -> None:
        """The monitored metric is not there; an error once validation could have logged it."""
        assert self.monitor is not None
        logged = set(metrics) - {"epoch", "step"}
        message = matches_nothing(f"ModelCheckpoint(monitor={self.monitor!r})", self.monitor, logged)
        if self._validated:
            raise MisconfigurationError(message)
        warn("LD133", f"{message} No checkpoint is saved until it is logged.", subject=self.monitor)

    def _metrics(self, trainer: Trainer) -> dict[str, Any]:
        """What file names and ranking may use."""
        return {"epoch": trainer.current_epoch, "step": trainer.global_step, **trainer.callback_metrics}

    def _better(self, score: Tensor, other: Tensor) -> bool:
        return bool(score < other if self.mode == "min" else score > other)

    def _worst(self) -> Tensor:
        return torch.tensor(math.inf if self.mode == "min" else -math.inf)

    def _worst_kept(self, records: _Records) -> str:
        pick = max if self.mode == "min" else min
        return pick(records.best_k_models, key=lambda path: float(records.best_k_models[path]))

    # Names.

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """The path of a checkpoint, with ``metrics`` filled in.

        >>> ModelCheckpoint(filename="{epoch}-{val_acc:.2f}").format_checkpoint_name({"epoch": 3, "val_acc": 0.913})
        'epoch=3-val_acc=0.91.ckpt'

        Args:
            metrics: What there is to fill in; a name that is not there becomes 0, with a warning.
            filename: Instead of the callback's own.
            ver: Number to end in, as ``-v2``.
            prefix: Text to begin with.
        """
        pattern = filename or self.filename or self.CHECKPOINT_JOIN_CHAR.join(("{epoch}", "{step}"))
        name = _names.PLACEHOLDER.sub(partial(self._fill_in, metrics), pattern)
        if prefix:
            name = self.CHECKPOINT_JOIN_CHAR.join((prefix, name))
        if ver is not None:
            name = self.CHECKPOINT_JOIN_CHAR.join((name, f"v{ver}"))
        name += self.FILE_EXTENSION
        return join(self.dirpath, name) if self.dirpath else name

    def _fill_in(self, metrics: Mapping[str, Any], placeholder: re.Match[str]) -> str:
        name, form = placeholder[1], placeholder[2] or ""
        value = metrics.get(name)
        if value is None:
            message = matches_nothing(f"{{{name}}} in ModelCheckpoint(filename=...)", name, metrics)
            warn("LD134", f"{message} It becomes 0 in the name.", subject=name)
            value = 0
        value = value.item() if isinstance(value, Tensor) else value
        text = format(int(value) if name in ("epoch", "step") else value, form)
        return f"{name}{self.CHECKPOINT_EQUALS_CHAR}{text}" if self.auto_insert_metric_name else text

    def _free_path(
        self, trainer: Trainer, metrics: Mapping[str, Any], reuse: str = "", filename: str | None = None
    ) -> str:
        """A path that no file has, nor one that is about to be written, except ``reuse``, the file it will replace.

        All processes must call it, and get what the first one found.
        """
        return trainer.strategy.broadcast(self._path_free_here(trainer, metrics, reuse, filename))

    def _path_free_here(
        self, trainer: Trainer, metrics: Mapping[str, Any], reuse: str = "", filename: str | None = None
    ) -> str:
        path = self.format_checkpoint_name(metrics, filename)
        asked_for = {request.path for request in trainer.state.save_requests}
        version = self.STARTING_VERSION
        while self.enable_version_counter and path != reuse and (path in asked_for or exists(path)):
            path = self.format_checkpoint_name(metrics, filename, ver=version)
            version += 1
        return path

    # What is remembered.

    def state_dict(self) -> dict[str, Any]:
        """The ranking, in plain types and tensors, with the checkpoint that is about to be written."""
        records = self._latest()
        memory = {name: getattr(records, name) for name in _RECORDS}
        step = memory.pop("_saved_step")
        return {"monitor": self.monitor, "dirpath": self.dirpath, **memory, "last_global_step_saved": step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the ranking; in another folder than before with ``best_model_path`` alone."""
        self.best_model_path = state_dict["best_model_path"]
        self._saved_step = state_dict.get("last_global_step_saved", 0)
        if self.dirpath != (earlier := state_dict.get("dirpath")):
            warn(
                "LD135",
                f"ModelCheckpoint saved into {earlier} before and saves into {self.dirpath} now, so it "
                "begins a new ranking. The earlier files stay. To go on with the ranking, give the same dirpath.",
                subject=str(self.dirpath),
            )
            return
        self.best_model_score = state_dict["best_model_score"]
        self.best_k_models = dict(state_dict.get("best_k_models", {}))
        self.kth_best_model_path = state_dict.get("kth_best_model_path", "")
        self.kth_value = torch.as_tensor(state_dict.get("kth_value", self.kth_value))
        self.last_model_path = state_dict.get("last_model_path", "")
        mentioned = {self.best_model_path, self.last_model_path, *self.best_k_models}
        self._own |= {path for path in mentioned if _names.absolute(path).startswith(join(self.dirpath or "", ""))}

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write ``best_k_models``, scores by path, to ``filepath``; None: ``best_k_models.yaml`` in the folder."""
        yaml = require("yaml", "ModelCheckpoint.to_yaml", pip="pyyaml")
        path = os.fspath(filepath) if filepath else join(self.dirpath or "", "best_k_models.yaml")
        if not is_remote(path):
            make_dirs(os.path.dirname(path))
        with atomic_write(path) as file:
            file.write(yaml.safe_dump({kept: float(score) for kept, score in self.best_k_models.items()}).encode())
