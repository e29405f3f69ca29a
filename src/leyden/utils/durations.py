"""Spans of time, in every form in which users give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from leyden.utils.errors import MisconfigurationError, nearest

_FORMAT = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")
_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")


def parse_duration(value: Any, argument: str = "duration") -> timedelta | None:
    """The span that ``value`` stands for; None stays None.

    >>> parse_duration("01:02:30:00")
    datetime.timedelta(days=1, seconds=9000)

    Args:
        value: ``"DD:HH:MM:SS"``, a timedelta, or a mapping of timedelta's arguments such as ``{"hours": 2}``.
        argument: Whose value it is, for the message.

    Raises:
        MisconfigurationError: ``value`` is none of these, or less than nothing.
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        span = value
    elif isinstance(value, Mapping):
        span = _from_units(value, argument)
    elif isinstance(value, str) and (match := _FORMAT.fullmatch(value.strip())):
        days, hours, minutes, seconds = map(int, match.groups())
        span = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    else:
        raise MisconfigurationError(
            f"{argument}={value!r} is not a span of time. Give 'DD:HH:MM:SS' (90 minutes are '00:01:30:00'), "
            "a timedelta, or a dict such as {'hours': 1, 'minutes': 30}."
        )
    if span < timedelta(0):
        raise MisconfigurationError(f"{argument}={value!r} is less than nothing. Give a span of at least 0 seconds.")
    return span


def _from_units(units: Mapping[str, Any], argument: str) -> timedelta:
    for unit, number in units.items():
        if unit not in _UNITS:
            raise MisconfigurationError(
                f"{argument}={dict(units)!r} has the unknown unit {unit!r}. "
                f"Choose from: {', '.join(_UNITS)}.{nearest(unit, _UNITS)}"
            )
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise MisconfigurationError(f"{argument}={dict(units)!r}: {number!r} {unit} is not a number.")
    return timedelta(**units)
