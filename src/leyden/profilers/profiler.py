"""The base of all profilers, which measures nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from leyden.utils.paths import AnyPath, atomic_write, join, make_dirs
from leyden.utils.rank import is_rank_zero


class Profiler:
    """Is told when each *action* of a run starts and stops, and reports at the end of the run.

    Actions lie inside each other: ``training_step`` inside ``run_training_batch`` inside ``run_training_epoch``. A
    subclass overrides ``start``, ``stop`` and ``summary``; the rest is optional. One profiler may serve several runs,
    one after the other.

    Attributes:
        dirpath: Folder of the files; None for that of the first logger.
        filename: Goes into the names of the files.
        stage: The Trainer's method that runs or ran last, such as ``"fit"``; None before.
    """

    def __init__(self, dirpath: AnyPath | None = None, filename: str | None = None) -> None:
        """Choose where the report goes: it is printed if neither is given, else written to ``{stage}-{filename}.txt``.

        Args:
            dirpath: Folder of the file, local or remote. None is the folder of the first logger.
            filename: None leaves it out of the file's name.
        """
        self.dirpath = dirpath
        self.filename = filename
        self.stage: str | None = None
        self._log_dir: str | None = None

    def start(self, action_name: str) -> None:
        """An action begins."""

    def stop(self, action_name: str) -> None:
        """An action ends, by an exception perhaps."""

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Measure what is inside as one action, as in ``with self.trainer.profiler.profile("augment"):``."""
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def summary(self) -> str:
        """The report; empty when there is nothing to say."""
        return ""

    def describe(self) -> None:
        """Print the report, or write it to its file; the Trainer calls this at the end of a run."""
        if not (report := self.summary()) or not is_rank_zero():
            return
        if self.dirpath is None and self.filename is None:
            print(report)
        else:
            self._write(f"{self._prefix()}.txt", report.encode())

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
            local_rank: Of this process on its machine.
            log_dir: Folder of the first logger, for files that have no other place.
        """
        self.stage, self._log_dir = stage, log_dir

    def watch(self, module: Any) -> None:
        """This is the module of the run, on its device."""

    def teardown(self, stage: str | None = None) -> None:
        """The run is over, after a failure too; some actions may not have stopped."""

    def _prefix(self) -> str:
        return "-".join(filter(None, (self.stage, self.filename))) or "profile"

    def _folder(self) -> str:
        return join(self.dirpath if self.dirpath is not None else self._log_dir or ".")

    def _write(self, name: str, content: bytes) -> None:
        folder = self._folder()
        make_dirs(folder)
        with atomic_write(join(folder, re.sub(r"[^\w.-]+", "_", name))) as file:
            file.write(content)


# The name that code written for Lightning uses.
PassThroughProfiler = Profiler
