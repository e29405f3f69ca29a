"""LoggerGuard: calls loggers so that none of them ends a run or holds it up.

Every call is made at once and in the thread of the run. Another thread, fed by a queue, would break loggers that work
today: sqlite3 refuses the connection that was made elsewhere, mlflow and torch keep what is current by thread, windows
of matplotlib and handlers of signals belong to the main thread, and a callback would read a logger that does not have
yet what was sent to it. So a call that hangs is broken off from inside: an alarm of the system raises there. That
reaches whatever waits in Python: sleeps, sockets, locks, queues. It does not reach

- native code that does not come back to Python;
- a run that is not in the main thread, and Windows, where there is no such alarm;
- a call while somebody else, such as pytest-timeout, has set the process's alarm, which is left alone.

What Leyden's own loggers write to a local folder has no limit: a file system that stalls comes back.
"""

from __future__ import annotations

import math
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from leyden.loggers.logger import Logger
from leyden.utils.errors import LeydenWarning, warn
from leyden.utils.paths import is_remote

FAILURES = 3  # in a row
PATIENCE = 10  # how many times the limit a call may take that connects or uploads

_MAY_UPLOAD = ("save", "finalize", "after_save_checkpoint")
_CAN_BREAK_OFF = hasattr(signal, "setitimer")


class LoggerGuard:
    """Calls the loggers of one run.

    The first failure of a logger is a warning, and calls go on; after three failures of a method in a row, or a call
    that took too long, the logger is off for the rest of the run. Exceptions that are no ``Exception``, such as
    KeyboardInterrupt, pass.
    """

    def __init__(self) -> None:
        self._guarded: dict[int, _Guarded] = {}  # by id: loggers need not be hashable

    def tell(self, loggers: Iterable[Any], method: str, *args: Any, **kwargs: Any) -> None:
        """Call ``method`` of every logger."""
        for logger in tuple(loggers):  # one of them may change the list
            self._of(logger).call(method, lambda bound: bound(*args, **kwargs))

    def read(self, logger: Any, name: str) -> Any:
        """The attribute ``name`` of ``logger``; None where that fails."""
        return self._of(logger).call(name, None)

    def report(self) -> None:
        """Say how many records did not reach their loggers, if any."""
        lost = [(guarded.lost, guarded.name) for guarded in self._guarded.values() if guarded.lost]
        if lost:
            total = sum(count for count, _ in lost)
            each = ", ".join(f"{count} of {name}" for count, name in lost)
            warn("LD233", f"{total} record{'s were' if total > 1 else ' was'} lost in logging: {each}.")

    def _of(self, logger: Any) -> _Guarded:
        guarded = self._guarded.get(id(logger))
        if guarded is None:
            guarded = self._guarded[id(logger)] = _Guarded(logger)
        return guarded


class _Guarded:
    """One logger, and how it has done so far.

    Attributes:
        name: Its class.
        lost: Records that it did not get.
    """

    def __init__(self, logger: Any) -> None:
        self.name = type(logger).__name__
        self.lost = 0
        self._logger = logger
        self._failures: Counter[str] = Counter()  # in a row, by method
        self._called: set[str] = set()
        self._is_off = self._hung = False
        self._limit = _limit_of(logger)

    def call(self, name: str, use: Callable[[Any], Any] | None) -> Any:
        """``use`` of the attribute ``name``, or the attribute itself; None where that fails or the logger is off."""
        if self._is_off and (self._hung or name != "finalize"):  # which closes what is open
            self.lost += _is_record(name, use)
            return None
        try:
            result = self._get(name, use) if self._limit is None else self._get_in_time(name, use, self._limit)
        except LeydenWarning:
            raise  # Trainer(warnings={id: "error"}) asks for it
        except Exception as error:
            if str(error).startswith("DataLoader worker (pid"):
                raise  # torch says so wherever the main process is at that moment
            self.lost += _is_record(name, use)
            self._count(name, error)
            return None
        except _Overdue as overdue:
            self.lost += _is_record(name, use)
            self._give_up(name, overdue)
            return None
        self._failures.pop(name, None)
        return result

    def _get(self, name: str, use: Callable[[Any], Any] | None) -> Any:
        found = getattr(self._logger, name)
        return found if use is None else use(found)

    def _get_in_time(self, name: str, use: Callable[[Any], Any] | None, limit: float) -> Any:
        if name in _MAY_UPLOAD or name not in self._called:
            limit *= PATIENCE
        self._called.add(name)
        return _in_time(partial(self._get, name, use), limit)

    def _count(self, name: str, error: Exception) -> None:
        """One more failure of ``name`` in a row."""
        self._failures[name] += 1
        warn(
            "LD230",
            f"{self.name}.{name} failed, and the run goes on without what it was to log; after {FAILURES} failures in "
            f"a row the logger is off.\n{_traceback_of(error)}",
            subject=self.name,
        )
        if self._failures[name] == FAILURES and not self._is_off:
            self._is_off = True
            warn(
                "LD231",
                f"{self.name} is off for the rest of the run: {name} failed {FAILURES} times in a row, at last with "
                f"{type(error).__name__}: {error}",
                subject=self.name,
            )

    def _give_up(self, name: str, overdue: _Overdue) -> None:
        self._is_off = self._hung = True  # it was left in the middle, so that it may be in any state
        places = [place for place in traceback.extract_tb(overdue.__traceback__) if place.filename != __file__]
        warn(
            "LD232",
            f"{self.name}.{name} took more than {overdue.seconds:g} s, so it was broken off, and the logger is off for "
            f"the rest of the run. Where it may take longer, set time_limit, which is {self._limit:g} s, in the class. "
            f"It was at:\n{''.join(traceback.format_list(places)).rstrip()}",
            subject=self.name,
        )


def _is_record(name: str, use: Callable[[Any], Any] | None) -> bool:
    return use is not None and name.startswith("log_")


def _limit_of(logger: Any) -> float | None:
    """Seconds that a call of ``logger`` may take; None for as long as it likes."""
    try:
        if type(logger).__module__.startswith("leyden.") and not is_remote(logger.save_dir or ""):
            return None
        seconds = float(getattr(logger, "time_limit", Logger.time_limit))
    except Exception:  # what is wrong with it shows, and is told, when it is called
        return Logger.time_limit
    return seconds if 0 < seconds < math.inf else None


class _Overdue(BaseException):
    """A call took too long; not an Exception, so that a logger which tries again after every one does not catch it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"more than {seconds:g} s")
        self.seconds = seconds


def _in_time(call: Callable[[], Any], seconds: float) -> Any:
    """What ``call`` returns.

    Raises:
        _Overdue: It took more than ``seconds``, where the system lets that be found out.
    """
    if (
        not _CAN_BREAK_OFF
        or threading.current_thread() is not threading.main_thread()
        or signal.getitimer(signal.ITIMER_REAL)[0]
        or (before := signal.getsignal(signal.SIGALRM)) is None  # set in C: it could not be put back
    ):
        return call()
    waiting = True

    def ring(signal_number: int, frame: object) -> None:
        if waiting:
            raise _Overdue(seconds)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again and again, should the logger catch the first
    try:
        return call()
    finally:
        waiting = False
        if signal.getsignal(signal.SIGALRM) is ring:  # else somebody has set an alarm meanwhile
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _traceback_of(error: Exception) -> str:
    """The traceback from the logger's line on."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_code.co_filename == __file__:
        place = place.tb_next
    return "".join(traceback.format_exception(type(error), error, place)).rstrip()
