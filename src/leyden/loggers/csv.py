"""CSVLogger: metrics in a metrics.csv that is only appended to."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from leyden.loggers.folders import (
    DEFAULT_NAME,
    RunFolder,
    number,
    params_dict,
    pinned,
    with_prefix,
    write_hparams,
)
from leyden.loggers.logger import DummyLogger, Logger
from leyden.utils.errors import warn
from leyden.utils.paths import AnyPath, atomic_write, exists, is_remote, join, make_dirs, open_file
from leyden.utils.rank import is_rank_zero, rank_zero_only

if TYPE_CHECKING:
    from leyden.loggers.media import Media

METRICS_FILE = "metrics.csv"


class MetricsFile:
    """The metrics.csv of one run, and its hparams.yaml.

    Every call of ``log_metrics`` is a row of its own; a metric that it did not have is empty there. Rows are appended,
    so that the ten-thousandth costs what the first did. Only a metric that was never logged before, which needs a
    column, has the file copied, row by row, to one with a longer header. A file of an earlier run, which may have been
    killed, is copied once too, when the first rows follow.

    Object stores cannot append: in a remote folder every flush uploads the file as a whole.

    Attributes:
        metrics: Rows that are not in the file yet.
        hparams: Hyper-parameters in hparams.yaml.
        log_dir: Folder of both files; made when there is something to write.
        metrics_file_path: Path of metrics.csv.
    """

    def __init__(self, log_dir: str, flush_every_n_steps: int = 100) -> None:
        self.metrics: list[dict[str, float]] = []
        self.hparams: dict[str, Any] = {}
        self.log_dir = log_dir
        self.metrics_file_path = join(log_dir, METRICS_FILE)
        self._flush_every = flush_every_n_steps
        self._flushes_due = 0  # of the step logged last
        self._rows = 0
        self._columns: dict[str, None] = {"step": None}  # an ordered set
        self._may_append = False  # the file is there, whole and with these columns
        if exists(self.metrics_file_path):
            warn(
                "LD110",
                f"{self.metrics_file_path} is there already: rows are added to it. "
                "For a file of its own, leave out version= and the run gets the next free number.",
                subject=self.metrics_file_path,
            )

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row; the file gets it at the next flush.

        Args:
            metrics: One number for each name. ``"step"`` gives way to the argument.
            step: Default: the number of rows logged before.

        Raises:
            TypeError: A value is not one number.
        """
        # Whole numbers stay such: the epoch is 3, not 3.0.
        row = {name: value if type(value) is int else number(name, value) for name, value in metrics.items()}
        row["step"] = step = self._rows if step is None else step
        self.metrics.append(row)
        self._rows += 1
        # After step 99, 199, ... for 100; and when as many rows wait, should the step stand still.
        due = (step + 1) // self._flush_every
        if due != self._flushes_due or len(self.metrics) >= self._flush_every:
            self.save()
        self._flushes_due = due

    def log_hparams(self, params: Mapping[str, Any] | Namespace) -> None:
        """Add ``params`` to those in hparams.yaml; objects are written as their text."""
        self.hparams.update(params_dict(params))
        if self.hparams:
            write_hparams(self.log_dir, self.hparams)

    def save(self) -> None:
        """Write the rows that wait."""
        if not self.metrics:
            return
        known = len(self._columns)
        for row in self.metrics:
            self._columns.update(dict.fromkeys(row))
        appends = self._may_append and len(self._columns) == known
        self._may_append = False  # if the disk is full now, the next copy leaves out the line that broke off
        if appends:
            text = io.StringIO(newline="")
            _write(text, self._waiting())
            # In one write, so that a kill leaves whole rows wherever the system lets it.
            with open_file(self.metrics_file_path, "ab") as file:
                file.write(text.getvalue().encode())
        else:
            self._copy_and_add()
        self._may_append = not is_remote(self.metrics_file_path)
        self.metrics = []

    def _waiting(self) -> Iterator[list[Any]]:
        return ([row.get(name, "") for name in self._columns] for row in self.metrics)

    def _copy_and_add(self) -> None:
        """Write header, the rows of the file as it is, and those that wait, to a file that takes its place."""
        make_dirs(self.log_dir)
        path = self.metrics_file_path
        with atomic_write(path) as new, open_file(path, "r", newline="") if exists(path) else io.StringIO() as old:
            rows = csv.reader(self._whole_lines(old))
            header = next(rows, [])
            # What the file calls its columns comes first: its rows stay as they are, but for empty fields at the end.
            self._columns = dict.fromkeys([*header, *self._columns])
            text = io.TextIOWrapper(new, "utf-8", newline="")
            _write(text, [self._columns])
            _write(text, (row + [""] * (len(self._columns) - len(row)) for row in rows))
            _write(text, self._waiting())
            text.detach()

    def _whole_lines(self, file: Iterable[str]) -> Iterator[str]:
        for line in file:
            if line.endswith(("\n", "\r")):
                yield line
                continue
            warn(
                "LD111",
                f"The last line of {self.metrics_file_path} breaks off, as after a kill or on a full disk: "
                f"{line!r} is left out.",
                subject=self.metrics_file_path,
            )


def _write(file: IO[str], rows: Iterable[Iterable[Any]]) -> None:
    csv.writer(file, lineterminator="\n").writerows(rows)


class CSVLogger(Logger):
    """Writes metrics.csv and hparams.yaml to ``save_dir/name/version_N``, local or remote.

    ``pandas.read_csv`` reads the file: a column ``step``, one for every metric, and a row for every time that values
    were logged. The folder is made when there is something to write.
    """

    def __init__(
        self,
        save_dir: AnyPath,
        name: str | None = DEFAULT_NAME,
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        """Say where to write.

        Args:
            save_dir: Folder of all experiments; a URL such as ``s3://bucket/logs`` too.
            name: Name of the experiment, the folder below; None or ``""`` for no such folder.
            version: Which run: a number N for the folder ``version_N``, or the folder's name. None takes the number
                above those that are there. Rows are added to a metrics.csv that is there.
            prefix: Put before every metric's name, with a ``-`` between.
            flush_logs_every_n_steps: A kill loses the values of fewer steps than this. Remote files are uploaded as a
                whole each time, so choose a large number there.

        Raises:
            TypeError: ``save_dir``, ``name`` or ``version`` is of another type.
            ValueError: ``flush_logs_every_n_steps`` is not a whole number from 1, or ``version`` is negative.
        """
        self._folder = RunFolder(save_dir, name, version)
        self._prefix = prefix
        if not isinstance(flush_logs_every_n_steps, int) or flush_logs_every_n_steps < 1:
            raise ValueError(
                f"flush_logs_every_n_steps={flush_logs_every_n_steps!r} is not a whole number from 1. "
                "1 writes every value at once."
            )
        self._flush_every = flush_logs_every_n_steps
        self._experiment: MetricsFile | None = None

    @property
    def name(self) -> str:
        """Name of the experiment; empty when there is none."""
        return self._folder.name

    @property
    def version(self) -> int | str:
        """Which run of the experiment; chosen when first asked, so ask on one process only and tell the others."""
        return self._folder.version

    @property
    def save_dir(self) -> str:
        """Folder of all experiments."""
        return self._folder.save_dir

    @property
    def root_dir(self) -> str:
        """Folder of all versions of this experiment."""
        return self._folder.root

    @property
    def log_dir(self) -> str:
        """Folder of this run; there once something was written."""
        return self._folder.path

    @property
    def experiment(self) -> Any:
        """The MetricsFile; on other processes than the first an object whose methods do nothing."""
        if self._experiment is None:
            if not is_rank_zero():
                return DummyLogger().experiment
            self._experiment = MetricsFile(pinned(self.log_dir), self._flush_every)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row to metrics.csv at the next flush; ``step`` is by default the number of rows before it.

        Raises:
            TypeError: A value is not one number.
        """
        self.experiment.log_metrics(with_prefix(metrics, self._prefix), step)

    def log_media(self, name: str, media: Media, step: int | None = None) -> None:
        """Write the file ``log_dir/media/name/step_N``: PNG, WAV, text, JSON or CSV."""
        super().log_media(f"{self._prefix}-{name}" if self._prefix else name, media, step)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add ``params`` to hparams.yaml, at once; objects are written as their text."""
        self.experiment.log_hparams(params)

    def save(self) -> None:
        """Write the rows that wait."""
        if self._experiment is not None:
            self._experiment.save()
