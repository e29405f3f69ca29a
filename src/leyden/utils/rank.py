"""Which process am I; do, print, warn and log on one process only."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("leyden")

# Launchers name the rank in their own variable: torchrun and Leyden, SLURM, OpenMPI, LSF.
_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "JSM_NAMESPACE_RANK")


def global_rank() -> int:
    """Rank of this process among all processes of the run; 0 when it runs alone."""
    for name in _RANK_VARIABLES:
        if value := os.environ.get(name):
            return int(value)
    return 0


def is_rank_zero() -> bool:
    """True on the one process that prints, logs and writes."""
    return global_rank() == 0


class _RankZeroOnly:
    """The decorator ``rank_zero_only``; an object, because code in the wild reads ``rank_zero_only.rank``."""

    @property
    def rank(self) -> int:
        """``global_rank()``."""
        return global_rank()

    def __call__(self, function: Callable[P, R], default: R | None = None) -> Callable[P, R | None]:
        """Make ``function`` do nothing, and return ``default``, on every process but rank 0."""

        @functools.wraps(function)
        def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> R | None:
            return function(*args, **kwargs) if is_rank_zero() else default

        return on_rank_zero


rank_zero_only = _RankZeroOnly()


def say(message: str) -> None:
    """Tell the user one line about the run, on rank 0, through the ``leyden`` logger at INFO."""
    if log.isEnabledFor(logging.INFO) and is_rank_zero():
        log.info(message)


def speak_plainly() -> None:
    """Show the ``leyden`` logger's lines on stderr, unless the application has set up logging for it."""
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
