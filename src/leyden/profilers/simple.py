"""SimpleProfiler: how often each action runs, and for how long."""

from __future__ import annotations

from time import perf_counter

from leyden.profilers.profiler import Profiler
from leyden.utils.errors import MisconfigurationError
from leyden.utils.paths import AnyPath
from leyden.utils.table import draw_table


class SimpleProfiler(Profiler):
    """Adds up the time of every action, on the clock of this process.

    What a GPU does is not waited for: its time shows in the action that has to wait for a result. The report covers
    what happened since the one before, or since the profiler was made. Actions lie inside each other, so their shares
    add up to more than 100 %.

    Attributes:
        calls: How often each action stopped.
        seconds: Time from start to stop, all calls of an action together.
    """

    def __init__(self, dirpath: AnyPath | None = None, filename: str | None = None, extended: bool = True) -> None:
        """Choose where the report goes, and its columns.

        Args:
            dirpath: Folder of the report; see Profiler.
            filename: Goes into its name; see Profiler.
            extended: Show the number of calls and the share of the run's time too.
        """
        super().__init__(dirpath, filename)
        self.extended = extended
        self._forget()

    def _forget(self) -> None:
        self.calls: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._described = False
        self._began = perf_counter()
        self._ended: float | None = None

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins, and a new report if the one before was shown."""
        super().setup(stage, local_rank, log_dir)
        if self._described:
            self._forget()

    def start(self, action_name: str) -> None:
        """An action begins.

        Raises:
            MisconfigurationError: It has begun before, and not stopped.
        """
        if action_name in self._running:
            raise MisconfigurationError(
                f"{type(self).__name__}.start({action_name!r}): it has started before. Stop it first, or give the one "
                "inside another name."
            )
        self._running[action_name] = perf_counter()

    def stop(self, action_name: str) -> None:
        """An action ends.

        Raises:
            MisconfigurationError: It has not begun.
        """
        now = perf_counter()
        began = self._running.pop(action_name, None)
        if began is None:
            raise MisconfigurationError(
                f"{type(self).__name__}.stop({action_name!r}): it has not started. Call start({action_name!r}) first."
            )
        self.calls[action_name] = self.calls.get(action_name, 0) + 1
        self.seconds[action_name] = self.seconds.get(action_name, 0.0) + now - began

    def summary(self) -> str:
        """A table of actions, the one that took longest first."""
        if not self.calls:
            return ""
        whole = (perf_counter() if self._ended is None else self._ended) - self._began
        heads = ["action", "mean (s)", "total (s)"]
        if self.extended:
            heads = ["action", "mean (s)", "calls", "total (s)", "share (%)"]
        rows = []
        for action in sorted(self.seconds, key=self.seconds.__getitem__, reverse=True):
            total, calls = self.seconds[action], self.calls[action]
            mean = f"{total / calls:.6f}"
            row = [action, mean, f"{total:.4f}"]
            if self.extended:
                row = [action, mean, str(calls), f"{total:.4f}", f"{100 * total / whole:.2f}"]
            rows.append(row)
        return f"{type(self).__name__}, {self.stage or 'so far'}: {whole:.4f} s\n{draw_table(heads, rows)}"

    def describe(self) -> None:
        """Print or write the table."""
        self._ended = perf_counter()
        super().describe()
        self._described = True

    def teardown(self, stage: str | None = None) -> None:
        """The run is over; actions that an exception kept from stopping are left out."""
        self._running.clear()
