"""A short training in a process of its own, of which only a record remains; Trainer.verify compares records."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import signal
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.datamodule import LightningDataModule
from leyden.core.loading import read_checkpoint
from leyden.core.module import LightningModule
from leyden.core.state import RunState
from leyden.fabric.unsafe import unsafe_places
from leyden.loggers.logger import DummyLogger, Logger
from leyden.options import TrainerOptions
from leyden.profilers.profiler import Profiler
from leyden.utils.errors import CheckpointError
from leyden.utils.fingerprint import describe, digest
from leyden.utils.hparams import plain_hyperparameters
from leyden.utils.seed import rng_state

if TYPE_CHECKING:
    from leyden.core.types import Trainer

# Model, training loaders, validation loaders, datamodule: what fit takes.
Given = tuple[LightningModule, Any, Any, LightningDataModule | None]

_FRAMEWORK = {"_hparams", "_hparams_initial", "_hparams_name", "_log_hyperparams", "_results", "_trainer", "trainer"}
_MODULE = set(vars(nn.Module())) | _FRAMEWORK
# Whose attributes we answer for ourselves.
_OURS = "leyden.callbacks."
# What is longer is one value in the record.
_MEMBERS = 64


@dataclass
class Task:
    """What a trial does.

    Attributes:
        folder: Where it may write.
        record: Path of the record that it leaves.
        steps: Optimizer steps, as in ``Trainer.verify``.
        save: Path of a checkpoint, at which the trial ends as if the process were killed; None trains to the end.
        resume: Path of a checkpoint to go on from.
        weights_only: False reads arbitrary objects from it.
        values: Path of a file with the attributes that training has changed by the checkpoint; the trial that saves
            writes it.
        put_back: Names of attributes that get their values from there before training goes on.
    """

    folder: str
    record: str
    steps: int
    save: str | None = None
    resume: str | None = None
    weights_only: bool | None = None
    values: str = ""
    put_back: list[str] = field(default_factory=list)

    @property
    def temporary(self) -> str:
        """The folder for what the process and its workers need while they are there; its path is short, for sockets."""
        return os.path.join(os.path.dirname(self.record), "t")


@dataclass
class Record:
    """What a trial saw, in types that ``torch.load(weights_only=True)`` reads.

    Attributes:
        error: The type, message and traceback of the exception that ended the trial; empty without one.
        batches: For each batch, by the number of batches done before it, what happened: names with digests, in order.
        attributes: By the same number, the attributes before the batch: digest, description, and how to save it.
        final: Everything that training leaves, by kind and name.
        position: Epoch, and batch in it, at the checkpoint.
        refused: Why the checkpoint cannot be loaded under ``weights_only=True``.
        unsafe: Where in it are things that cannot.
        left_out: Hyper-parameters that are not in it.
        epoch_length: Batches of an epoch.
    """

    error: list[str] = field(default_factory=list)
    batches: dict[int, dict[str, str]] = field(default_factory=dict)
    attributes: dict[int, dict[str, tuple[str, str, str]]] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    position: tuple[int, int, int] = (0, 0, 0)
    refused: str = ""
    unsafe: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    epoch_length: int = 0

    def write(self, path: str) -> None:
        """Leave the record at ``path``."""
        torch.save(vars(self), f"{path}.part")
        os.replace(f"{path}.part", path)

    @classmethod
    def read(cls, path: str) -> Record:
        """The record at ``path``."""
        return cls(**torch.load(path, weights_only=True))


def run_trial(trainer: Trainer, given: Given, task: Task) -> None:
    """Train as ``task`` says and write the record; trainer, model and all else are this process's own to spoil."""
    record, (model, train, val, datamodule) = Record(), given
    warnings.simplefilter("ignore")
    logging.disable()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        _rehearse(trainer, task)
        probe = Probe(task, record, datamodule)
        trainer.callbacks.insert(0, probe)
        trainer.fit(model, train, val, datamodule, ckpt_path=task.resume, weights_only=task.weights_only)
        record.final = dict(_left_by(trainer, model, datamodule, probe))
    except BaseException as error:
        lines = traceback.format_exception(error)
        record.error = [type(error).__name__, str(error), "".join(lines), str(isinstance(error, CheckpointError))]
    record.write(task.record)


def _end_with(parent: int) -> None:
    """End this process, and those that it has started, when its parent has been killed."""
    while os.getppid() == parent:
        time.sleep(1)
    if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


def batches_of(steps: int, accumulate: int) -> tuple[int, int]:
    """Batches of an epoch of a trial, of which there are two, and batches before the checkpoint."""
    half = max(1, -(-steps // 2))
    return max(2, half) * accumulate, max(1, half // 2) * accumulate


def _rehearse(trainer: Trainer, task: Task) -> None:
    """Shorten the run, and keep it from leaving anything outside of the task's folder."""
    options = trainer.options
    epoch, _ = batches_of(task.steps, options.accumulate_grad_batches)
    trainer.options = _shortened(options, epoch, task.folder)
    trainer.state = RunState()
    trainer.loggers[:] = [Unheard() for _ in trainer.loggers]
    trainer.profiler = Profiler()
    for index, callback in enumerate(trainer.callbacks):
        if isinstance(callback, ModelCheckpoint):
            # Files of an earlier fit are not this one's to rank, and to remove.
            callback.best_model_path = callback.last_model_path = callback.kth_best_model_path = ""
            callback.best_k_models = {}
            callback.dirpath = os.path.join(task.folder, f"checkpoints_{index}")


def _shortened(options: TrainerOptions, epoch: int, folder: str) -> TrainerOptions:
    def at_most(limit: int | float | None, most: int) -> int:
        if options.fast_dev_run:  # which has set all limits
            return most
        return min(limit, most) if isinstance(limit, int) else most if limit != 0 else 0

    interval = options.val_check_interval
    if isinstance(interval, int):
        interval = min(interval, epoch)
    elif not isinstance(interval, float):
        interval = None  # by the clock
    return dataclasses.replace(
        options,
        default_root_dir=folder,
        fast_dev_run=False,
        overfit_batches=0.0 if not options.overfit_batches else epoch,
        limit_train_batches=at_most(options.limit_train_batches, epoch),
        limit_val_batches=at_most(options.limit_val_batches, 2),
        max_epochs=2,
        min_epochs=None,
        max_steps=-1,
        min_steps=None,
        max_time=None,
        val_check_interval=interval,
        check_val_every_n_epoch=None if options.check_val_every_n_epoch is None and interval is not None else 1,
        profiler=None,
        warnings=None,
    )


class Unheard(DummyLogger):
    """A logger that keeps nothing, with a name and a version as most have."""

    name = "verify"
    version = 0


class Probe(Callback):
    """Watches a trial, saves its checkpoint, and keeps and puts back attributes."""

    def __init__(self, task: Task, record: Record, datamodule: LightningDataModule | None) -> None:
        self.task = task
        self.record = record
        self.datamodule = datamodule
        self.at_start: dict[str, tuple[str, str, str]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the attributes, or put some back, before a batch is fetched, which they may have to do with."""
        self.at_start = self._noted(trainer, pl_module)
        if self.task.put_back:
            _put_back({name: owner for owner, name, _ in self._owners(trainer, pl_module)}, self.task)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the attributes and the batch."""
        done = trainer.state.position.batch_total
        self.record.attributes[done] = self._noted(trainer, pl_module)
        self.record.batches[done] = {"the batch": digest(batch)}
        self.record.epoch_length = int(min(trainer.num_training_batches, 2**31))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, gradients and weights; ask for the checkpoint when it is time."""
        done = trainer.state.position.batch_total
        noted = self.record.batches.setdefault(done - 1, {})
        noted["the loss"] = digest(outputs)
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                noted[f"the gradient of {name}"] = digest(parameter.grad)
        for name, tensor in (*pl_module.named_parameters(), *pl_module.named_buffers()):
            noted[name] = digest(tensor)
        if self.task.save and done == batches_of(self.task.steps, trainer.options.accumulate_grad_batches)[1]:
            trainer.request_checkpoint(self.task.save, written=lambda path: self._end(trainer, pl_module, path))

    def _noted(self, trainer: Trainer, module: LightningModule) -> dict[str, tuple[str, str, str]]:
        noted: dict[str, tuple[str, str, str]] = {}
        for attribute in self._attributes(trainer, module):
            try:
                value = attribute.value
                noted[attribute.name] = digest(value, (type(trainer), Logger)), describe(value), attribute.remedy
            except Exception:  # what cannot be looked at is left alone
                continue
        return noted

    def _end(self, trainer: Trainer, module: LightningModule, path: str) -> None:
        """The checkpoint is there: look at it, leave the record, and be gone as a killed process is."""
        record, position = self.record, trainer.state.position
        record.position = (position.epoch, position.batch, position.batch_total)
        for owner in (module, self.datamodule):
            if owner is not None and owner.hparams:
                names = plain_hyperparameters(owner.hparams)[1]
                record.left_out += [f"{type(owner).__name__}({name}=...)" for name in names]
        try:
            read_checkpoint(path, "cpu", None)
        except CheckpointError as error:
            record.refused = str(error)
            record.unsafe = unsafe_places(read_checkpoint(path, "cpu", weights_only=False))
        changed = {n for n, noted in self._noted(trainer, module).items() if noted != self.at_start.get(n)}
        _keep([attribute for attribute in self._attributes(trainer, module) if attribute.name in changed], self.task)
        record.write(self.task.record)
        os._exit(0)

    def _owners(self, trainer: Trainer, module: LightningModule) -> Iterator[tuple[Any, str, str]]:
        return _owners(module, [callback for callback in trainer.callbacks if callback is not self], self.datamodule)

    def _attributes(self, trainer: Trainer, module: LightningModule) -> Iterator[Attribute]:
        for owner, name, kept_by in self._owners(trainer, module):
            yield from _attributes_of(owner, name, kept_by)


# Attributes that no state_dict knows.


@dataclass
class Attribute:
    """An attribute of module, callback or datamodule that is not in a ``state_dict`` of torch's.

    Attributes:
        owner: Whose it is.
        key: Its name there.
        name: Its name for people, from the class on.
        value: Its value.
        remedy: How to have it in the checkpoint.
    """

    owner: Any
    key: str
    name: str
    value: Any
    remedy: str


def _owners(
    module: LightningModule, callbacks: list[Callback], datamodule: LightningDataModule | None
) -> Iterator[tuple[Any, str, str]]:
    """Who has attributes, by what name, and which methods keep them."""
    top = type(module).__name__
    for name, part in module.named_modules():
        if part is module:
            yield part, top, "on_save_checkpoint() and on_load_checkpoint()"
        else:
            yield part, f"{top}.{name}", "get_extra_state() and set_extra_state()"
    others = [one for one in (*callbacks, datamodule) if one and not type(one).__module__.startswith(_OURS)]
    for owner, label in _labelled(others):
        yield owner, label, "state_dict() and load_state_dict()"


def _attributes_of(owner: Any, name: str, kept_by: str) -> Iterator[Attribute]:
    is_module = isinstance(owner, nn.Module)
    for key, value in list(vars(owner).items()):
        if key not in (_MODULE if is_module else _FRAMEWORK):
            by = f"keep it with {kept_by}"
            if is_module and isinstance(value, Tensor):
                by = f"register it: self.register_buffer({key!r}, ...)"
            yield Attribute(owner, key, f"{name}.{key}", value, by)
    for key in sorted(owner._non_persistent_buffers_set) if is_module else ():
        by = "leave out persistent=False where it is registered"
        yield Attribute(owner, key, f"{name}.{key}", getattr(owner, key), by)


def _keep(attributes: list[Attribute], task: Task) -> None:
    kept = {}
    for attribute in attributes:
        try:
            kept[attribute.name] = pickle.dumps(attribute.value)
        except Exception:  # what cannot be pickled is not put back
            continue
    with open(task.values, "wb") as file:
        pickle.dump(kept, file)


def _put_back(owners: dict[str, Any], task: Task) -> None:
    """Set attributes to what they were when the checkpoint was saved; those that are not there yet too."""
    with open(task.values, "rb") as file:
        kept = pickle.load(file)
    for name in set(task.put_back) & set(kept):
        owner, _, key = name.rpartition(".")
        setattr(owners[owner], key, pickle.loads(kept[name]))


# What training leaves.


def _left_by(
    trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None, probe: Probe
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything that training leaves, by kind and name, flat."""
    weights = dict(module.named_parameters(remove_duplicate=False))
    state = module.state_dict()
    yield "weight", dict(_flat({name: value for name, value in state.items() if name in weights}))
    yield "buffer", dict(_flat({name: value for name, value in state.items() if name not in weights}))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, Any] = {}
    for optimizer, label in _labelled(trainer.optimizers):
        for parameter, values in optimizer.state.items():
            name = names.get(id(parameter), "a parameter that is not the model's")
            found |= {f"{label}: {key} of {name}": value for key, value in _flat(values)}
        for number, group in enumerate(optimizer.param_groups):
            settings = {key: value for key, value in group.items() if key != "params"}
            found |= {f"{label}: {key} of group {number}": value for key, value in _flat(settings)}
    yield "optimizer", found
    schedulers = _labelled([config.scheduler for config in trainer.lr_scheduler_configs])
    yield "scheduler", dict(_flat({f"{label}:": one.state_dict() for one, label in schedulers}))
    callbacks = _labelled([callback for callback in trainer.callbacks if callback is not probe])
    states = {f"{label}:": callback.state_dict() for callback, label in callbacks}
    yield "callback", dict(_flat(states))
    kept = datamodule.state_dict() if datamodule is not None else {}
    yield "datamodule", dict(_flat(kept))
    yield "metric", dict(_flat(trainer.callback_metrics))
    yield "position", dict(_flat(trainer.state.position.state_dict()))
    yield "random generator", {name: digest(state) for name, state in rng_state().items()}


def _labelled(things: list[Any]) -> Iterator[tuple[Any, str]]:
    """Each with the name of its class, and from the second of a class on its number."""
    counts = Counter[str]()
    for thing in things:
        name = type(thing).__name__
        counts[name] += 1
        yield thing, name if counts[name] == 1 else f"{name}-{counts[name] - 1}"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in ``value``, by their place; for all else a digest."""
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and not value.is_meta and type(value) in (Tensor, nn.Parameter)
        yield name, value.detach().cpu().clone() if plain else digest(value)
    elif type(value) in (type(None), bool, float, str) or (type(value) is int and abs(value) < 2**63):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name} {key}" if name.endswith(":") else f"{name}[{key!r}]" if name else str(key))
    elif isinstance(value, list | tuple) and len(value) <= _MEMBERS:
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}[{index}]")
    else:
        yield name, digest(value)
