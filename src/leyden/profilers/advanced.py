"""AdvancedProfiler: which functions the time of each action goes to."""

from __future__ import annotations

import cProfile
import io
import marshal
import pstats

from leyden.profilers.profiler import Profiler
from leyden.utils.errors import MisconfigurationError
from leyden.utils.paths import AnyPath
from leyden.utils.rank import is_rank_zero


class AdvancedProfiler(Profiler):
    """Runs Python's cProfile, with a profile of its own for every action.

    Only one profile can be active at a time: while an action runs inside another, the other's pauses. So a function
    counts for the innermost action around it, and the profiles do not overlap. cProfile slows Python code down, by a
    factor of about two; to compare whole actions use SimpleProfiler.

    Attributes:
        profiles: Of every action, since the report before.
    """

    def __init__(
        self,
        dirpath: AnyPath | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        """Choose where the report goes, and how much of it.

        Args:
            dirpath: Folder of the report; see Profiler.
            filename: Goes into its name; see Profiler.
            line_count_restriction: How many functions to show of every action: an int is their number, a float a
                fraction.
            dump_stats: Write every profile to a file too, ``{stage}-{filename}-{action}.prof``, for ``pstats`` and
                tools such as snakeviz.
        """
        super().__init__(dirpath, filename)
        if isinstance(line_count_restriction, bool) or not isinstance(line_count_restriction, int | float):
            raise TypeError(f"line_count_restriction={line_count_restriction!r} is neither a number nor a fraction.")
        if line_count_restriction < 0 or (isinstance(line_count_restriction, float) and line_count_restriction > 1.0):
            raise MisconfigurationError(
                f"line_count_restriction={line_count_restriction!r} is out of range. Give a float from 0.0 to 1.0 for "
                "a fraction of the functions, or an int for their number."
            )
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self.profiles: dict[str, cProfile.Profile] = {}
        self._running: list[str] = []  # the outermost first; the last one's profile is active
        self._described = False

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins, and a new report if the one before was shown."""
        super().setup(stage, local_rank, log_dir)
        if self._described:
            self.profiles, self._described = {}, False

    def start(self, action_name: str) -> None:
        """Pause the action around this one, and profile this one."""
        if self._running:
            self.profiles[self._running[-1]].disable()
        self._running.append(action_name)
        self.profiles.setdefault(action_name, cProfile.Profile()).enable()

    def stop(self, action_name: str) -> None:
        """Go on with the action around this one.

        Raises:
            MisconfigurationError: It has not begun.
        """
        if action_name not in self._running:
            raise MisconfigurationError(
                f"{type(self).__name__}.stop({action_name!r}): it has not started. Call start({action_name!r}) first."
            )
        self.profiles[self._running[-1]].disable()
        last = len(self._running) - 1 - self._running[::-1].index(action_name)
        del self._running[last]
        if self._running:
            self.profiles[self._running[-1]].enable()

    def summary(self) -> str:
        """For every action, its functions, those first that took longest with all they called."""
        parts = []
        for action, profile in sorted(self.profiles.items()):
            text = io.StringIO()
            stats = pstats.Stats(profile, stream=text)
            stats.sort_stats("cumulative").print_stats(self.line_count_restriction)
            parts.append(f"{action}\n{text.getvalue().strip()}")
        return f"{type(self).__name__}, {self.stage or 'so far'}\n\n" + "\n\n".join(parts) if parts else ""

    def describe(self) -> None:
        """Print or write the report; dump the profiles if that was asked for."""
        self._pause()
        super().describe()
        if self.dump_stats and is_rank_zero():
            for action, profile in self.profiles.items():
                profile.create_stats()
                self._write(f"{self._prefix()}-{action}.prof", marshal.dumps(profile.stats))  # as pstats reads it
        self._described = True

    def teardown(self, stage: str | None = None) -> None:
        """The run is over; what an exception kept from stopping stops here."""
        self._pause()

    def _pause(self) -> None:
        if self._running:
            self.profiles[self._running[-1]].disable()
            self._running.clear()
