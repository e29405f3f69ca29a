"""Trials in processes that begin as copies of this one: by fork, or in a new interpreter where a fork cannot be."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from leyden.callbacks.model_checkpoint import Checkpoint
from leyden.callbacks.model_summary import ModelSummary
from leyden.callbacks.progress import ProgressBar
from leyden.trial import Given, Task, Unheard, run_trial
from leyden.utils.seed import rng_state, set_rng_state

if TYPE_CHECKING:
    from leyden.core.types import Trainer

# Where in the task's folder a trial's output goes.
SAID = "said.txt"


class VerificationError(RuntimeError):
    """There is nothing to verify: training itself fails, or cannot be tried in a process of its own."""


def copies(trainer: Trainer, given: Given, folder: str) -> tuple[Callable[[Task], int], str]:
    """How to run trials of what is here, and a name for that.

    Returns:
        A function that runs a task's trial and returns the exit status of its process; and what that process is.
    """
    used = bool(torch.cuda.is_initialized())
    if sys.platform == "linux" and trainer.strategy.device.type == "cpu" and not used:
        importlib.import_module("torch._dynamo")  # which torch does at the first step: once here, and not in each copy
        context, state = multiprocessing.get_context("fork"), rng_state()
        return lambda task: _wait(context.Process(target=_in_a_fork, args=(trainer, given, state, task))), (
            "a forked copy of this process"
        )
    path = os.path.join(folder, "given.pt")
    _write(trainer, given, path)
    spawn = multiprocessing.get_context("spawn")
    return lambda task: _wait(spawn.Process(target=_in_a_new_one, args=(path, task))), "a new interpreter"


def _in_a_fork(trainer: Trainer, given: Given, random_state: dict[str, Any], task: Task) -> None:
    _be_alone(task)
    set_rng_state(random_state)  # Python's generator is seeded anew in a fork
    torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
    spared = _forget_workers(given)
    run_trial(trainer, given, task)
    os._exit(0 if spared is not None else 1)  # and so they are not told to end either


def _forget_workers(given: Given) -> list[Any]:
    """Let loaders start workers of their own, for those that they have are the parent's."""
    spared = []
    for loader in given[1:3]:
        for one in loader if isinstance(loader, list | tuple) else [loader]:
            if isinstance(one, DataLoader) and one._iterator is not None:
                spared.append(one._iterator)
                one._iterator = None
    return spared


def _write(trainer: Trainer, given: Given, path: str) -> None:
    """Write what a new interpreter needs."""
    options = vars(trainer.options) | {
        "callbacks": list(trainer.callbacks),
        "logger": [Unheard() for _ in trainer.loggers] or False,
        "fast_dev_run": False,
        "profiler": None,
    }
    for option, kind in (("checkpointing", Checkpoint), ("progress_bar", ProgressBar), ("model_summary", ModelSummary)):
        options[f"enable_{option}"] = any(isinstance(callback, kind) for callback in trainer.callbacks)
    try:
        torch.save((type(trainer), options, given, rng_state()), path)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise VerificationError(
            f"With accelerator={trainer.strategy.device.type!r} a trial needs a new interpreter, and what is to be "
            f"tried cannot be copied there: {error}. Define its classes and functions at the top of a module; or use: "
            "leyden verify FILE.py:NAME"
        ) from error


def _in_a_new_one(path: str, task: Task) -> None:
    _be_alone(task)
    make, options, given, random_state = torch.load(path, weights_only=False)
    trainer = make(**options)
    set_rng_state(random_state)
    run_trial(trainer, given, task)
    os._exit(0)


def _be_alone(task: Task) -> None:
    """Keep temporary files together, print into a file, and lead a group of processes, so that all can be ended."""
    if hasattr(os, "setsid"):
        os.setsid()
    tempfile.tempdir = task.temporary
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
    said = open(os.path.join(task.folder, SAID), "w", encoding="utf-8")  # noqa: SIM115
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    sys.stdout = sys.stderr = said


def _wait(process: Any) -> int:
    """Start a process, wait for its end, and end whatever it has started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, that threads do not survive a fork
        process.start()
    try:
        wait_for(process.pid)
    finally:
        process.join()
    return int(process.exitcode)


def wait_for(leader: int) -> None:
    """Wait for the end of a child that leads a group of processes, and kill what is left of the group.

    The child is not reaped, so that its number cannot be another process's by then. When the wait is broken off, by
    Ctrl-C for example, the child is killed too.
    """
    if not hasattr(os, "killpg"):
        return
    try:
        os.waitid(os.P_PID, leader, os.WEXITED | os.WNOWAIT)
    finally:
        for kill in (os.killpg, os.kill):
            try:
                kill(leader, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # nobody is left
                continue
