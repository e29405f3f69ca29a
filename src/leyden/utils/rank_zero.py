"""Messages and warnings for user code, given on rank 0 only, under Lightning's names."""

from __future__ import annotations

import os
import warnings
from typing import Any

from leyden.utils.rank import log, rank_zero_only, speak_plainly

# stacklevel= counts as in Lightning, whose default is the line that calls; one frame less stands between here.


class PossibleUserWarning(UserWarning):
    """Something may be a mistake, or may be meant. Leyden's own warnings have ids instead: docs/warnings.md."""


@rank_zero_only
def rank_zero_info(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a line at INFO, with the arguments of ``logging.info``, on rank 0."""
    speak_plainly()
    log.info(*args, stacklevel=stacklevel - 1, **kwargs)


@rank_zero_only
def rank_zero_debug(*args: Any, stacklevel: int = 4, **kwargs: Any) -> None:
    """Log a line at DEBUG, with the arguments of ``logging.debug``, on rank 0."""
    log.debug(*args, stacklevel=stacklevel - 1, **kwargs)


@rank_zero_only
def rank_zero_warn(message: str | Warning, stacklevel: int = 4, category: type[Warning] = UserWarning) -> None:
    """Warn on rank 0.

    Args:
        message: The text, or a warning, whose class then replaces ``category``.
        stacklevel: Which line the warning names: 4 is the one that calls, 5 the one that calls that function.
        category: The warning's class.
    """
    warnings.warn(message, category, stacklevel=stacklevel - 1)


def rank_zero_deprecation(
    message: str | Warning, stacklevel: int = 5, category: type[Warning] = DeprecationWarning
) -> None:
    """Warn on rank 0 that something will go; ``stacklevel`` 5 is the line that calls."""
    rank_zero_warn(message, stacklevel=stacklevel, category=category)


class WarningCache(set[str]):
    """The messages given so far; gives each once."""

    def warn(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """``rank_zero_warn``, unless ``message`` was given already; ``stacklevel`` 5 is the line that calls."""
        if self._is_new(message):
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int = 6, **kwargs: Any) -> None:
        """``rank_zero_deprecation``, unless given already; ``stacklevel`` 6 is the line that calls."""
        if self._is_new(message):
            rank_zero_deprecation(message, stacklevel=stacklevel, **kwargs)

    def info(self, message: str, stacklevel: int = 5, **kwargs: Any) -> None:
        """``rank_zero_info``, unless given already; ``stacklevel`` 5 is the line that calls."""
        if self._is_new(message):
            rank_zero_info(message, stacklevel=stacklevel, **kwargs)

    def _is_new(self, message: str) -> bool:
        if message in self:
            return False
        self.add(message)
        return True


def disable_possible_user_warnings(module: str = "") -> None:
    """Silence every PossibleUserWarning, or those whose line is in a module that matches the pattern ``module``."""
    warnings.filterwarnings("ignore", category=PossibleUserWarning, module=module)


# Nobody can give the warning before this module is imported, so it is soon enough to read the variable here.
if os.environ.get("POSSIBLE_USER_WARNINGS", "").lower() in ("0", "off"):
    disable_possible_user_warnings()
