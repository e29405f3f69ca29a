"""Which file ``ckpt_path`` stands for: a path, or ``"best"``, ``"last"``, ``"auto"`` or ``"hpc"``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from leyden.core.signals import FILE_NAME
from leyden.fabric.checkpoint_io import EXTENSION, verify_checkpoint
from leyden.utils.errors import CheckpointError, MisconfigurationError, NotBuiltError, warn
from leyden.utils.optional import require
from leyden.utils.paths import exists, is_dir, is_remote, join, list_dir, shown
from leyden.utils.rank import say

if TYPE_CHECKING:
    from leyden.core.types import Trainer

_VERSION_FOLDER = re.compile(r"version_(\d+)")
_HPC = re.compile(r"hpc_ckpt_(\d+)\.ckpt")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")


def find_checkpoint(
    trainer: Trainer, path: str | os.PathLike[str] | None, method: str, weights_only: bool | None = None
) -> str | None:
    """The file that ``ckpt_path=path`` stands for; None to begin without one.

    ``"auto"`` and ``"last"`` take the newest by the time of writing, which is what the user did last: after going back
    to an earlier checkpoint the newer files are those with the smaller step. Of several files of one time the last by
    name counts as newest. Damaged files are passed over with a warning that names each. A job that SLURM runs again
    goes on as with ``"auto"`` where its script says nothing.

    Args:
        trainer: Whose callbacks, loggers and folders to look at.
        path: What the user gave.
        method: The Trainer's method that it was given to.
        weights_only: As given to that method.

    Raises:
        TypeError: ``path`` is no path.
        MisconfigurationError: It stands for nothing.
        CheckpointError: All that it could stand for are damaged.
    """
    if path is None:
        if method != "fit" or not _was_requeued():
            return None
        path = "auto"
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"trainer.{method}(ckpt_path={path!r}) is not a path. Give a file's path, 'best' or 'last'; None is no "
            "checkpoint."
        )
    path = os.fspath(path)
    if path == "best":
        return _best(trainer, method)
    if path == "last":
        return _last(trainer, method)
    if path == "auto":
        if method != "fit":
            raise MisconfigurationError(
                f"trainer.{method}(ckpt_path='auto'): 'auto' goes on with training, so it is for fit. Give 'best', "
                "'last' or a file's path."
            )
        return _auto(trainer, weights_only)
    if path == "hpc":
        return _hpc(trainer, method)
    if path == "registry" or path.startswith("registry:"):
        raise NotBuiltError(f"ckpt_path={path!r}", "Give the file's path.")
    return path


def _was_requeued() -> bool:
    """True in a job that SLURM runs for another time."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def best_checkpoint(trainer: Trainer) -> str:
    """The best checkpoint of the first callback that has one; ``""`` for none."""
    return str(next((c.best_model_path for c in _savers(trainer) if c.best_model_path), ""))


def best_good_checkpoint(trainer: Trainer, method: str) -> str:
    """The best checkpoint that is not damaged; the others are named in a warning.

    Raises:
        CheckpointError: All are damaged.
    """
    callback = next(c for c in _savers(trainer) if c.best_model_path)
    scores = {path: float(score) for path, score in callback.best_k_models.items()}
    ranked = sorted(scores, key=lambda path: scores[path], reverse=getattr(callback, "mode", "min") == "max")
    found = _Search([callback.best_model_path, *(path for path in ranked if path != callback.best_model_path)])
    if best := found.first(_verify):
        found.report(f"trainer.{method}(ckpt_path='best')", best)
        return best
    newest = _Search(_by_age(_candidates(trainer))).first(_verify)
    raise CheckpointError(
        f"trainer.{method}(ckpt_path='best') finds no good file: {found.reasons()} "
        + (f"The newest good checkpoint is {newest}." if newest else "Nor is there another good checkpoint.")
    )


@dataclass(order=True)
class _File:
    """A checkpoint that is there.

    Attributes:
        written: When, in seconds since 1970; 0 where the file system does not say.
        name: Its name, without the folder.
        path: Its path.
        identity: The same for two names of one file.
    """

    written: float
    name: str
    path: str
    identity: object = field(compare=False)


class _Search:
    """Takes the first good one of several files, and remembers what was the matter with those before it."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = list(paths)
        self.passed_over: list[str] = []

    def first(self, fault: Callable[[str], str]) -> str:
        """The first path with which ``fault`` finds nothing the matter; ``""`` for none."""
        for path in self.paths:
            if not (reason := fault(path)):
                return path
            self.passed_over.append(reason if path in reason else f"{path}: {reason}")
        return ""

    def reasons(self) -> str:
        return " ".join(f"{reason.rstrip('.')}." for reason in self.passed_over)

    def report(self, who: str, found: str) -> None:
        """Warn of what was passed over before ``found``."""
        if self.passed_over:
            instead = f"takes {found}" if found else "begins afresh"
            warn("LD225", f"{who} {instead}, passing over what cannot be used. {self.reasons()}", subject=who)


def _verify(path: str) -> str:
    """What is the matter with the file at ``path``; empty for nothing."""
    try:
        verify_checkpoint(path)
    except (CheckpointError, OSError) as error:
        return str(error) or type(error).__name__
    return ""


def _fault_to_resume(weights_only: bool | None) -> Callable[[str], str]:
    def fault(path: str) -> str:
        if reason := _verify(path):
            return reason
        if is_remote(path):
            return ""  # reading it twice takes too long; what it lacks is said when it is resumed
        try:
            # Mapped: of the tensors nothing is read.
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only is not False)
        except Exception:  # it holds objects, or the like; the real reading says so
            return ""
        if not isinstance(content, dict) or "state_dict" not in content:
            return "it is not a checkpoint of a Trainer"
        return "" if "optimizer_states" in content else "it holds weights alone"

    return fault


def _auto(trainer: Trainer, weights_only: bool | None) -> str | None:
    if trainer.fast_dev_run:  # a trial, which would find that all its steps are done
        return None
    who = "trainer.fit(ckpt_path='auto')"
    search = _Search(_by_age(_candidates(trainer)))
    found = search.first(_fault_to_resume(weights_only))
    search.report(who, found)
    if found:
        say(f"{who} goes on from {shown(found)}.")
    elif not search.passed_over:
        say(f"{who} finds no checkpoint, so the run starts afresh.")
    return found or None


def _last(trainer: Trainer, method: str) -> str | None:
    who = f"trainer.{method}(ckpt_path='last')"
    files = _candidates(trainer)
    last = [file for file in files if _is_last(file, trainer)]
    search = _Search(_by_age(last, files))
    found = search.first(_verify)
    if search.passed_over:
        if not found and method != "fit":
            raise CheckpointError(f"{who} finds no good file. {search.reasons()}")
        search.report(who, found)
    elif found and not last:
        say(f"{who} finds no last checkpoint, and takes the newest, {shown(found)}.")
    elif not found:
        warn("LD062", f"{who} finds no checkpoint, so the run starts afresh.")
    return found or None


def _best(trainer: Trainer, method: str) -> str:
    if trainer.fast_dev_run:
        raise MisconfigurationError("ckpt_path='best' cannot be used with fast_dev_run: it saves nothing.")
    if not best_checkpoint(trainer):
        raise MisconfigurationError(
            f"trainer.{method}(ckpt_path='best') finds no best checkpoint. Train first, with a ModelCheckpoint."
        )
    return best_good_checkpoint(trainer, method)


def _hpc(trainer: Trainer, method: str) -> str:
    """What Lightning writes before SLURM ends a job."""
    folder = str(trainer.default_root_dir)
    numbers = {int(found[1]): name for name in _names(folder) if (found := _HPC.fullmatch(name))}
    who = f"trainer.{method}(ckpt_path='hpc')"
    if not numbers:
        raise MisconfigurationError(f"{who} finds no hpc_ckpt_N.ckpt in {folder}. Give a file's path, or 'auto'.")
    search = _Search(join(folder, numbers[number]) for number in sorted(numbers, reverse=True))
    if not (good := search.first(_verify)):
        raise CheckpointError(f"{who} finds no good file. {search.reasons()}")
    search.report(who, good)
    return good


def _savers(trainer: Trainer) -> list[Any]:
    """The callbacks that keep checkpoints as ModelCheckpoint does."""
    return [c for c in trainer.checkpoint_callbacks if hasattr(c, "best_model_path") and hasattr(c, "dirpath")]


def _candidates(trainer: Trainer) -> list[_File]:
    """All checkpoints in the folders of the callbacks, and where those decide by themselves, of earlier runs."""
    files: list[_File] = []
    savers = _savers(trainer)
    for callback in savers:
        depth = (callback.filename or "").count("/")  # which makes folders
        folders = [callback.dirpath] if callback.dirpath else _default_folders(trainer)
        files += [file for folder in folders for file in _listed(folder, depth, callback.FILE_EXTENSION)]
        files += [file for path in (callback.best_model_path, callback.last_model_path) for file in _file(path)]
    if not savers:
        files += [file for folder in _default_folders(trainer) for file in _listed(folder, 0, EXTENSION)]
    return list({file.path: file for file in files}.values())


def _default_folders(trainer: Trainer) -> list[str]:
    """Where a ModelCheckpoint without ``dirpath`` would save, now or in an earlier run of the same script."""
    folders = [join(str(trainer.default_root_dir), "checkpoints")]
    logger = trainer.logger
    if logger is None or logger.log_dir is None:
        return folders
    root, own = str(logger.root_dir), str(logger.log_dir)
    folders.append(join(own, "checkpoints"))
    first, *rest = own.removeprefix(root).strip("/\\").replace("\\", "/").split("/")
    versions = {int(found[1]): name for name in _names(root) if (found := _VERSION_FOLDER.fullmatch(name))}
    mine = _VERSION_FOLDER.fullmatch(first)
    # Else the logger was told which version it is, and the others are other experiments.
    if mine and own.startswith(root) and int(mine[1]) > max(versions, default=-1):
        folders += [join(root, name, *rest, "checkpoints") for name in versions.values()]
    return folders


def _names(folder: str) -> list[str]:
    try:
        return list_dir(folder) if is_dir(folder) else []
    except (OSError, MisconfigurationError):
        return []


def _listed(folder: str, depth: int, extension: str) -> Iterator[_File]:
    """The checkpoints in ``folder``, and ``depth`` folders deep in it."""
    for name in _names(folder):
        path = join(folder, name)
        if name.endswith((extension, EXTENSION)):
            yield from _file(path)
        elif depth and is_dir(path):
            yield from _listed(path, depth - 1, extension)


def _file(path: str) -> Iterator[_File]:
    """The file at ``path``, if there is one."""
    name = os.path.basename(path)
    if not path:
        return
    if is_remote(path):
        if exists(path):
            yield _File(_written_remotely(path), name, path, path)
        return
    path = os.path.abspath(path)
    try:
        found = os.stat(path)
    except OSError:
        return
    yield _File(found.st_mtime, name, path, (found.st_dev, found.st_ino))


def _written_remotely(path: str) -> float:
    system, target = require("fsspec", f"The path {path!r}").url_to_fs(path)
    try:
        return float(system.modified(target).timestamp())
    except (NotImplementedError, OSError, AttributeError):
        return 0.0


def _by_age(*groups: Iterable[_File]) -> list[str]:
    """Paths group by group, in each the newest first; of several names of one file the first."""
    files: dict[object, str] = {}
    for group in groups:
        for file in sorted(group, reverse=True):
            files.setdefault(file.identity, file.path)
    return list(files.values())


def _is_last(file: _File, trainer: Trainer) -> bool:
    """True for what ``save_last`` or a signal has written."""
    savers = _savers(trainer)
    names = {getattr(callback, "CHECKPOINT_NAME_LAST", "last") for callback in savers} or {"last"}
    if any(file.path == callback.last_model_path for callback in savers):
        return True
    stem = file.name.rpartition(".")[0]
    patterns = [
        ".*".join(map(re.escape, _PLACEHOLDER.split(name))) for name in (FILE_NAME.removesuffix(EXTENSION), *names)
    ]
    return any(re.fullmatch(rf"{pattern}(-v\d+)?", stem) for pattern in patterns)
