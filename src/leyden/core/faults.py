"""What a failure is called: where in the run it happened, and why a worker of a DataLoader died."""

from __future__ import annotations

import gc
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from leyden.core.state import Fn, Stage

_PACKAGE = str(Path(__file__).parents[1])
# Decorators that are no place: torch.no_grad(), torch.inference_mode(), contextlib.contextmanager.
_TRANSPARENT = ("_contextlib.py", "contextlib.py")
_WORDS = {
    Stage.TRAIN: "training",
    Stage.SANITY_CHECK: "the sanity check",
    Stage.VALIDATE: "validation",
    Stage.TEST: "test",
    Stage.PREDICT: "prediction",
}
_NOTED = "_leyden_noted"


class DataLoaderWorkerError(RuntimeError):
    """A worker process of a DataLoader died or hangs; the message says which one, why, and what to do."""


def note_place(run: Any, error: BaseException) -> None:
    """Add one line to ``error``: whose hook failed, and in which epoch, batch and step. Once, and never raises."""
    if not isinstance(error, Exception) or getattr(error, _NOTED, False):
        return
    try:
        note = _death_elsewhere(run, error) or _place(run, error)
        if note:
            setattr(error, _NOTED, True)
            _add_note(error, note)
    except Exception:  # an exception may refuse attributes; whatever it is, the error itself matters more
        return


def _add_note(error: Exception, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # which does not show notes
        vars(error).setdefault("__notes__", []).append(note)
        print(f"{type(error).__name__}: {note}", file=sys.stderr)


def _place(run: Any, error: Exception) -> str:
    """Such as ``In MyCallback.on_train_batch_end, epoch 2, batch 17, step 55.``; empty where nothing is known."""
    frames = list(_frames(error.__traceback__))
    hook = _hook(run, frames)
    stage, position = run.state.stage, run.state.position
    if stage is None:
        return f"In {hook}." if hook else ""
    reading = any(frame.f_globals.get("__name__") == "leyden.core.batches" for frame in frames)
    words = [f"In {hook or ('reading a batch' if reading else _WORDS[stage])}"]
    if run.fn is Fn.FIT:
        words.append(f"epoch {position.epoch}")
    if "epoch" not in hook and (batch := _batch(run, stage, frames, reading)):
        words.append(batch)
    if run.fn is Fn.FIT:
        words.append(f"step {position.global_step}")
    return ", ".join(words) + "."


def _frames(place: TracebackType | None) -> Iterator[FrameType]:
    while place is not None:
        yield place.tb_frame
        place = place.tb_next


def _hook(run: Any, frames: list[FrameType]) -> str:
    """The last hook that we called on the way to the error, of a callback, the module or the datamodule."""
    owners = {id(owner) for owner in (*run.callbacks, run.module, run.datamodule) if owner is not None}
    found, first, before = "", "", None
    for frame in frames:
        code = frame.f_code
        if code.co_filename.endswith(_TRANSPARENT):
            continue
        owner = frame.f_locals.get("self") if "self" in code.co_varnames[:1] else None
        if id(owner) in owners and not code.co_name.startswith("_"):
            name = f"{type(owner).__name__}.{code.co_name}"
            first = first or name
            ours = before is not None and before.f_code.co_filename.startswith(_PACKAGE)
            if ours and before is not None and before.f_locals.get("self") is not owner:
                found = name
        before = frame
    return found or first


def _batch(run: Any, stage: Stage, frames: list[FrameType], reading: bool) -> str:
    """The index of the batch in work, as the loop counts it."""
    loop = ("leyden.core.fit", "train_epoch") if stage is Stage.TRAIN else ("leyden.core.evaluate", "_evaluate_loader")
    for frame in frames:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == loop:
            seen = frame.f_locals
            index = seen.get("index", -1)
            if reading:  # the one after that
                index = run.state.position.batch if stage is Stage.TRAIN else index + 1
            elif index < 0:  # before the first
                return ""
            word = "batch" if stage is Stage.TRAIN else f"{stage.value.replace('_', ' ')} batch"
            return f"{word} {index}" + (f" of dataloader {seen['loader_index']}" if seen.get("loader_index") else "")
    return ""


# Workers.


def explain_worker_death(error: BaseException, loader: Any, where: str) -> DataLoaderWorkerError | None:
    """What to raise instead of ``error`` where a worker of ``loader`` died or hangs; None where none did.

    Args:
        error: What fetching a batch raised.
        loader: The DataLoader; None for whichever it was.
        where: Its place, such as ``train_dataloader()``, as messages begin.
    """
    try:
        return _explanation(error, loader, where)
    except RuntimeError as told:  # now the system has told torch of the death, and torch does not know that we do
        if not _DEATH.match(str(told)):
            raise
        return _explanation(error, loader, where)


def _explanation(error: BaseException, loader: Any, where: str) -> DataLoaderWorkerError | None:
    text = str(error)
    late = re.match(r"DataLoader timed out after ([\d.]+) seconds", text)
    said = _DEATH.match(text)
    # What a worker's own exception is passed on as says so; it needs no other words.
    cut_off = isinstance(error, OSError | EOFError) and "in DataLoader worker process" not in text
    if not (late or said or cut_off):
        return None
    pids = [int(pid) for pid in said[1].split(",")] if said else []
    iterator = _iterator(error, pids)
    if iterator is not None and loader is not None:
        read = iterator._dataset  # which may be wrapped, see reading.py
        if not any(getattr(loader, "dataset", None) is one for one in (read, getattr(read, "_dataset", None))):
            return None  # the workers are another loader's, of those that are read together
    if late:
        return DataLoaderWorkerError(f"{where}: {_hung(iterator, late[1])}")
    workers = list(getattr(iterator, "_workers", ()))
    dead = _dead(workers, pids)
    if not dead and not pids:
        return None
    pid, code = dead[0] if dead else (pids[0], _code_in(text))
    return DataLoaderWorkerError(f"{where}: {_name(workers, pid)} {_cause(code, len(workers))}")


# What torch raises when a worker is dead: where batches are fetched, or, as soon as it is told by the system, wherever
# the main thread is.
_DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")


def _death_elsewhere(run: Any, error: Exception) -> str:
    """An explanation where torch raised the death of a worker amid whatever the main thread was doing."""
    death: BaseException | None = error
    while death is not None and not (type(death) is RuntimeError and _DEATH.match(str(death))):
        death = death.__cause__  # saving, say, has its own words for whatever goes wrong in it
    if death is None or isinstance(error, DataLoaderWorkerError):
        return ""
    evaluated = [batches for loaders in run._evaluation.values() for batches in loaders]
    for batches in (*([run.train] if hasattr(run, "train") else []), *evaluated):
        for loader in getattr(batches.loader, "flattened", [batches.loader]):
            if explained := explain_worker_death(death, loader, batches.where):
                return str(explained)
    return ""


def _iterator(error: BaseException, pids: list[int]) -> Any:
    """torch's iterator that has the workers: in the frames of the traceback, or that of the process ``pids``."""
    found = None
    for frame in _frames(error.__traceback__):
        if frame.f_globals.get("__name__") == "torch.utils.data.dataloader":
            holder = frame.f_locals.get("self")
            found = holder if hasattr(holder, "_workers") else found
    if pids and not _has(found, pids):
        kind = _MultiProcessingDataLoaderIter
        found = next((one for one in gc.get_objects() if type(one) is kind and _has(one, pids)), None)
    return found


def _has(iterator: Any, pids: list[int]) -> bool:
    return any(worker.pid in pids for worker in getattr(iterator, "_workers", ()))


def _dead(workers: list[Any], pids: list[int]) -> list[tuple[int, int]]:
    """Process ids and exit codes of the workers that ended, those of ``pids`` first; waits a second for the news."""
    until = time.monotonic() + 1
    while True:
        dead = [(worker.pid, worker.exitcode) for worker in workers if worker.exitcode is not None]
        if dead or not workers or time.monotonic() > until:
            return sorted(dead, key=lambda one: (one[0] not in pids, one[1] == 0))
        time.sleep(0.01)


def _name(workers: list[Any], pid: int) -> str:
    numbers = [number for number, worker in enumerate(workers) if worker.pid == pid]
    return f"worker {numbers[0]} of {len(workers)} (pid {pid})" if numbers else f"a worker (pid {pid})"


def _code_in(text: str) -> int | None:
    """The exit code in torch's words, negative for a signal."""
    if found := re.search(r"with exit code (\d+)", text):
        return int(found[1])
    if found := re.search(r"is killed by signal: ([^.]+)\.", text):
        names = {signal.strsignal(one): -int(one) for one in signal.valid_signals()}
        return names.get(found[1].strip())
    return None


def _cause(code: int | None, count: int) -> str:
    """What happened to a worker with this exit code, and what to do."""
    if code is None:
        return "died. The dataset's code with num_workers=0 may show why."
    if code >= 0:
        return (
            f"ended by itself with exit code {code}: something in it called sys.exit() or os._exit(), or it could not "
            "start. See what it printed; num_workers=0 shows where."
        )
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if name == "SIGKILL":
        each = f" Each of the {count} workers holds what the dataset loads, and prefetched batches." if count else ""
        return (
            f"was killed by SIGKILL, probably because memory ran out.{each} Give the DataLoader fewer workers or a "
            "smaller prefetch_factor, keep arrays rather than lists of Python objects in the dataset, or ask for more "
            "memory. The kernel's log, dmesg, says whether it was that."
        )
    if name == "SIGBUS":
        return (
            "was killed by SIGBUS, probably because shared memory, /dev/shm, is full, through which batches come. In a "
            "container raise it, as by docker run --shm-size=8g; or give the DataLoader fewer workers or a smaller "
            "prefetch_factor."
        )
    if name in ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"):
        return (
            f"crashed with {name}, in the native code of a library that the dataset uses. PYTHONFAULTHANDLER=1 shows "
            "where. Some libraries do not outlive a fork: try DataLoader(multiprocessing_context='spawn')."
        )
    return f"was ended by {name}, which another process sent: a scheduler, or somebody with kill."


def _hung(iterator: Any, seconds: str) -> str:
    """What is known of a worker that gives no batch."""
    workers = list(getattr(iterator, "_workers", ()))
    task = getattr(iterator, "_task_info", {}).get(getattr(iterator, "_rcvd_idx", None))
    pid = workers[task[0]].pid if task and len(task) == 1 and task[0] < len(workers) else None
    who = _name(workers, pid) if pid is not None else "a worker"
    return (
        f"{who} gave no batch for {seconds} seconds: it hangs, or one batch takes longer. See where it is by "
        f"py-spy dump --pid {pid or 'PID'}, or try num_workers=0. Some libraries hang after a fork: try "
        "DataLoader(multiprocessing_context='spawn'). If a batch may take so long, give DataLoader(timeout=) more "
        "seconds."
    )
