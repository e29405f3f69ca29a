"""SIGTERM, SIGINT, SIGUSR1 and SIGHUP: the run stops at the next batch, is saved, and the process ends as asked.

A handler only notes the signal; it raises at once where nothing but a batch is waited for, since no work is half done
then. The loops look at ``state.signal`` behind every batch. What is saved then is ``preempt.ckpt`` in the folder of the
checkpoints; ``ckpt_path="auto"`` finds it. If the batch in work takes longer than the grace period, the process ends
without a checkpoint; those written before stay.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what signal.py wraps: see Listening
import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from leyden.core.checkpoint import capture
from leyden.core.saving import settle, write
from leyden.core.state import Fn
from leyden.utils.errors import SIGTERMException, warn
from leyden.utils.paths import join
from leyden.utils.rank import say

if TYPE_CHECKING:
    from leyden.core.run import Run

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
_NUMBERS = [int(getattr(signal, name)) for name in NAMES if hasattr(signal, name)]
FILE_NAME = "preempt.ckpt"
_PERIOD = 0.25  # seconds


class SignalException(SystemExit):
    """A signal has ended the run; ``code`` is 128 and the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)

    def __str__(self) -> str:
        return self.signal.name


class Listening:
    """Has the signals that would end the process ask ``run`` to stop.

    Signals that somebody else handles, or that are ignored, are left alone. Only the main thread can listen.

    Every run begins and ends it, and the functions of signal.py look in vain for an enum's member in every handler they
    return, which takes some 30 us a run; those of _signal do the same without that.

    Args:
        run: The run.
        grace: Seconds that the batch in work may take to end.
    """

    def __init__(self, run: Run, grace: float) -> None:
        self._run = run
        self._grace = grace
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._over = threading.Event()
        self._asks_again = False

    def begin(self) -> None:
        """Listen from now on."""
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                if _signal.getsignal(number) in (_signal.SIG_DFL, _signal.default_int_handler):
                    self._before[number] = _signal.signal(number, self._note)

    def end(self) -> None:
        """Leave signals to whom they were left before."""
        self.end_grace()
        for number, handler in self._before.items():
            _signal.signal(number, handler)
        self._before.clear()

    def end_grace(self) -> None:
        """The batch in work is over; what follows may take its time."""
        self._over.set()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process or self._run.stopped:
            return  # a forked worker, which its parent ends; or what was asked for is being done
        state, again = self._run.state, self._asks_again
        self._asks_again = False
        if state.signal == 0:
            state.signal = number
            if hasattr(signal, "SIGCHLD"):  # that workers get the signal too is no error now
                self._before[signal.SIGCHLD] = _signal.signal(signal.SIGCHLD, _signal.SIG_DFL)
            threading.Thread(target=self._watch, args=(number,), daemon=True).start()
        elif number == signal.SIGINT and not again:
            raise KeyboardInterrupt  # whoever presses Ctrl+C twice does not want to wait
        if not self._over.is_set() and self._run.fetches:
            stop(self._run)

    def _watch(self, number: int) -> None:
        """Have ``_note`` look again if a batch is waited for; end the process when the grace period is over."""
        main, until = threading.main_thread().ident, time.monotonic() + self._grace
        while not self._over.wait(_PERIOD):
            if time.monotonic() >= until:
                _give_up(number, self._grace)
            if main is not None and hasattr(signal, "pthread_kill"):  # not on Windows
                self._asks_again = True
                signal.pthread_kill(main, number)


def stop(run: Run) -> None:
    """Leave the loop, between two batches, because of ``state.signal``."""
    number = run.state.signal
    run.stopped = True
    run.listening.end_grace()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SIGTERMException() if number == signal.SIGTERM else SignalException(number)


def save_stopped(run: Run) -> None:
    """Save a training that a signal has stopped between two batches, and hand the job back to SLURM if it asked."""
    if run.fn is not Fn.FIT or run.options.fast_dev_run:
        return
    name, step = signal.Signals(run.state.signal).name, run.state.position.global_step
    folder = next((c.dirpath for c in run.trainer.checkpoint_callbacks if getattr(c, "dirpath", None)), None)
    if folder is None:
        say(f"{name} has ended training at step {step}. Without a ModelCheckpoint nothing is saved.")
        return
    path = join(folder, FILE_NAME)
    try:
        write(run, capture(run), path)
        settle(run)
    except Exception as error:  # the process ends as it was asked to, whatever becomes of the file
        warn("LD267", f"{name} has ended training at step {step}, and it could not be saved: {error}")
        return
    say(f"{name} has ended training at step {step}; saved {path}. To go on: fit(..., ckpt_path='auto').")
    if name == "SIGUSR1":
        _requeue()


def in_notebook() -> bool:
    """True in a Jupyter kernel, where the process is to live on."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def _requeue() -> None:
    """Have SLURM run this job again, which asks by SIGUSR1 before its time is over."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or not shutil.which("scontrol"):
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        say(f"SLURM runs job {job} again.")
    else:
        warn("LD266", f"scontrol requeue {job} failed: {answer.stderr.strip() or answer.returncode}. Submit it again.")


def _give_up(number: int, grace: float) -> None:
    name = signal.Signals(number).name
    print(
        f"Leyden: {name} came {grace:g} s ago, and the work of that moment is still not over, so the process ends "
        "without saving it. Checkpoints written before are whole. Where each thread is:",
        file=sys.stderr,
        flush=True,
    )
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    os._exit(128 + number)
