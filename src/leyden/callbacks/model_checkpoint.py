"""ModelCheckpoint: decides when a checkpoint is due, under which name, and which older ones may go."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
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
from leyden.utils.durations import parse_duration
from leyden.utils.errors import MisconfigurationError, warn
from leyden.utils.optional import require
from leyden.utils.paths import atomic_write, exists, is_dir, is_remote, join, list_dir, make_dirs, remove_stale
from leyden.utils.rank import say

if TYPE_CHECKING:
    from leyden.core.module import LightningModule
    from leyden.core.types import Trainer

# {name} or {name:format}
_PLACEHOLDER = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


class Checkpoint(Callback):
    """Base of callbacks that save checkpoints; the Trainer runs them after all others."""

    monitors = True


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

    Args:
        dirpath: Folder of the checkpoints. None: ``checkpoints`` in the folder of the first logger, or else in
            ``default_root_dir``.
        filename: Name without extension, in which ``{epoch}``, ``{step}`` and ``{any_metric:.2f}`` are filled in;
            ``/`` makes folders. None: ``"{epoch}-{step}"``.
        monitor: Name of the metric that ranks checkpoints. None ranks by age.
        verbose: Say what is saved and what is not.
        save_last: Also keep a copy of the checkpoint saved last as ``last.ckpt``; ``"link"`` makes it a link.
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
    ) -> None:
        check_monitor("ModelCheckpoint", "the metric" if monitor is None else monitor, mode)
        _check_top_k(save_top_k, monitor)
        _check_filename(filename)
        if save_last not in (None, False, True, "link"):
            raise MisconfigurationError(
                f"ModelCheckpoint(save_last={save_last!r}) is unknown. Choose True, False or 'link'."
            )
        interval = parse_duration(train_time_interval, "train_time_interval")
        _check_triggers(every_n_train_steps, every_n_epochs, interval, save_on_train_epoch_end)

        self.dirpath = None if dirpath is None else _absolute(os.fspath(dirpath))
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
        # Asked for and not yet written: what to be again if it never is.
        self._unwritten: dict[str, dict[str, Any]] = {}
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
        self.dirpath = trainer.strategy.broadcast(self.dirpath or _default_folder(trainer))
        if self.save_last == "link" and is_remote(self.dirpath):
            raise MisconfigurationError(
                f"ModelCheckpoint(save_last='link') cannot make links in {self.dirpath!r}. Give save_last=True."
            )
        if trainer.is_global_zero and not trainer.fast_dev_run and is_dir(self.dirpath):
            remove_stale(self.dirpath)
            if self.save_top_k != 0 and not trainer.ckpt_path:
                self._warn_of_other_runs(self.dirpath)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps and time from here."""
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
        """Keep the end of training as ``last.ckpt`` when nothing else is kept."""
        if self.save_last and self.save_top_k == 0 and in_training(trainer):
            self._consider(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Forget what was never written; save at once if wanted."""
        for before in reversed(self._unwritten.values()):
            for name, value in before.items():
                setattr(self, name, value)
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
        if trainer.global_step == self._saved_step:
            return
        metrics, before = self._metrics(trainer), self._memory()
        path, superseded = "", [self.last_model_path] if self.save_last else []
        if self.save_top_k and self.monitor is not None:
            if (ranked := self._rank(trainer, metrics)) is None:
                return
            path, worse = ranked
            superseded += worse
        elif self.save_top_k:
            previous = self.best_model_path if self.save_top_k == 1 else ""
            path = self.best_model_path = self._free_path(trainer, metrics, previous)
            superseded.append(previous)
        elif not self.save_last:
            return
        self._saved_step = trainer.global_step

        last, link = "", ""
        if self.save_last:
            last = self._free_path(trainer, metrics, self.last_model_path, self.CHECKPOINT_NAME_LAST)
            self.last_model_path = last
            if path and self.save_last == "link":
                last, link = "", last
        superseded = [old for old in superseded if old and old not in (path, last, link)]
        if path:
            self._ask(trainer, path, before, [] if last else superseded, link)
            before = {"last_model_path": before["last_model_path"]}
        if last:
            self._ask(trainer, last, before, superseded)
        if self.verbose and path:
            score = "" if self.monitor is None else f"{self.monitor} = {float(metrics[self.monitor]):.5f}, "
            say(f"ModelCheckpoint: epoch {trainer.current_epoch}, step {trainer.global_step}: {score}saving {path}")

    def _rank(self, trainer: Trainer, metrics: Mapping[str, Any]) -> tuple[str, list[str]] | None:
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
        full = 0 < self.save_top_k <= len(self.best_k_models)
        if full and not self._better(score, self.kth_value):
            if self.verbose:
                say(
                    f"ModelCheckpoint: epoch {trainer.current_epoch}, step {trainer.global_step}: {self.monitor} = "
                    f"{float(value):.5f} is not among the best {self.save_top_k}"
                )
            return None

        self.current_score = score
        superseded = []
        while 0 < self.save_top_k <= len(self.best_k_models):
            superseded.append(self._worst_kept())
            del self.best_k_models[superseded[-1]]
        reuse = superseded[0] if superseded else ""
        path = self._free_path(trainer, metrics, reuse)
        self.best_k_models[path] = score
        if self.save_top_k in (-1, len(self.best_k_models)):
            self.kth_best_model_path = self._worst_kept()
            self.kth_value = self.best_k_models[self.kth_best_model_path]
        pick = min if self.mode == "min" else max
        self.best_model_path = pick(self.best_k_models, key=lambda kept: float(self.best_k_models[kept]))
        self.best_model_score = self.best_k_models[self.best_model_path]
        return path, superseded

    def _ask(self, trainer: Trainer, path: str, before: dict[str, Any], superseded: list[str], link: str = "") -> None:
        self._unwritten[path] = before
        trainer.request_checkpoint(
            path,
            weights_only=self.save_weights_only,
            written=partial(self._written, trainer, superseded, link),
        )

    def _written(self, trainer: Trainer, superseded: list[str], link: str, path: str) -> None:
        """``path`` is safe on disk: link to it, then delete what it supersedes."""
        self._unwritten.pop(path, None)
        self._own.add(path)
        if link:
            if trainer.is_global_zero:
                _link(path, link)
            self._own.add(link)
        for old in superseded:
            if old in self._own and not _same_file(old, self._resumed_from):
                self._own.discard(old)
                trainer.strategy.remove_checkpoint(old)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

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

    def _worst_kept(self) -> str:
        pick = max if self.mode == "min" else min
        return pick(self.best_k_models, key=lambda path: float(self.best_k_models[path]))

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
        name = _PLACEHOLDER.sub(partial(self._fill_in, metrics), pattern)
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

    def _memory(self) -> dict[str, Any]:
        return {
            "best_model_score": self.best_model_score,
            "best_model_path": self.best_model_path,
            "current_score": self.current_score,
            "best_k_models": dict(self.best_k_models),
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": self.kth_value,
            "last_model_path": self.last_model_path,
            "_saved_step": self._saved_step,
        }

    def state_dict(self) -> dict[str, Any]:
        """The ranking, in plain types and tensors."""
        memory = self._memory()
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
        self._own |= {path for path in mentioned if _absolute(path).startswith(join(self.dirpath or "", ""))}

    def to_yaml(self, filepath: str | os.PathLike[str] | None = None) -> None:
        """Write ``best_k_models``, scores by path, to ``filepath``; None: ``best_k_models.yaml`` in the folder."""
        yaml = require("yaml", "ModelCheckpoint.to_yaml", pip="pyyaml")
        path = os.fspath(filepath) if filepath else join(self.dirpath or "", "best_k_models.yaml")
        if not is_remote(path):
            make_dirs(os.path.dirname(path))
        with atomic_write(path) as file:
            file.write(yaml.safe_dump({kept: float(score) for kept, score in self.best_k_models.items()}).encode())


# Checks.


def _check_top_k(save_top_k: object, monitor: str | None) -> None:
    if isinstance(save_top_k, bool) or not isinstance(save_top_k, int) or save_top_k < -1:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k!r}): give how many checkpoints to keep, -1 for all or 0 for none."
        )
    if monitor is None and save_top_k > 1:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k}) needs a metric to rank checkpoints by. Give one, such as "
            "monitor='val_loss', or keep the latest (save_top_k=1) or all (save_top_k=-1)."
        )


def _check_filename(filename: object) -> None:
    if filename is None:
        return
    if not isinstance(filename, str):
        raise MisconfigurationError(f"ModelCheckpoint(filename={filename!r}) is not a string.")
    for name, form in _PLACEHOLDER.findall(filename):
        try:
            format(1 if name in ("epoch", "step") else 1.0, form)
        except ValueError as error:
            raise MisconfigurationError(
                f"ModelCheckpoint(filename={filename!r}): {form!r} cannot format {name!r}: {error}. "
                f"Write for example {{{name}:.2f}}."
            ) from error


def _check_triggers(
    steps: int | None, epochs: int | None, interval: timedelta | None, at_train_epoch_end: bool | None
) -> None:
    counts = {"every_n_train_steps": steps, "every_n_epochs": epochs}
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
            raise MisconfigurationError(
                f"ModelCheckpoint({name}={count!r}) is not a count. Give 1 or more; 0 is never."
            )
    given = [f"{name}={count}" for name, count in counts.items() if count]
    given += [] if interval is None else [f"train_time_interval={interval}"]
    if len(given) > 1:
        raise MisconfigurationError(
            f"ModelCheckpoint({', '.join(given)}): only one of these can trigger it. For more, give the Trainer "
            "several ModelCheckpoints."
        )
    if at_train_epoch_end and (steps or interval is not None):
        warn(
            "LD136",
            f"ModelCheckpoint(save_on_train_epoch_end=True) is ignored, because {given[0]} triggers it.",
        )


# Files.


def _absolute(path: str) -> str:
    if is_remote(path):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def _same_file(one: str, other: str) -> bool:
    if not other or is_remote(one) or is_remote(other):
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def _link(target: str, link: str) -> None:
    """Make ``link`` another name of the file ``target``; it never is missing in between."""
    temporary = f"{link}.{os.getpid()}.tmp"
    try:
        os.link(target, temporary)
    except OSError:  # a folder, or a file system without hard links
        os.symlink(os.path.relpath(target, os.path.dirname(link)), temporary)
    os.replace(temporary, link)


def _default_folder(trainer: Trainer) -> str:
    """``checkpoints`` in the folder of the first logger, or else in the Trainer's."""
    logger = trainer.logger
    folder = None if logger is None else logger.log_dir
    if folder is None and logger is not None and logger.save_dir is not None:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = join(logger.save_dir, str(logger.name), version)
    return join(_absolute(str(folder or trainer.default_root_dir)), "checkpoints")
