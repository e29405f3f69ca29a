"""parse_duration: every form in which a span of time is given."""

from __future__ import annotations

from datetime import timedelta

import pytest

from leyden.utils.durations import parse_duration
from leyden.utils.errors import MisconfigurationError


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("00:00:00:05", 5),
        ("01:02:03:04", 93784),
        ("100:00:00:00", 8_640_000),
        (timedelta(minutes=2), 120),
        ({"hours": 1, "seconds": 1}, 3601),
        ({"weeks": 1}, 604_800),
        (timedelta(0), 0),
    ],
)
def test_a_string_a_timedelta_and_a_dict_are_read(value, seconds):
    assert parse_duration(value) == timedelta(seconds=seconds)


def test_nothing_stays_nothing():
    assert parse_duration(None) is None


@pytest.mark.parametrize("value", ["5", "1:2:3", "00:12:00", "half an hour", "-1:00:00:00", 5, 2.5])
def test_anything_else_is_refused_with_the_format_and_the_argument(value):
    with pytest.raises(MisconfigurationError, match=r"max_time=.* is not a span of time\. Give 'DD:HH:MM:SS'"):
        parse_duration(value, "max_time")


def test_a_unit_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(MisconfigurationError, match=r"unknown unit 'hour'.*Did you mean 'hours'\?"):
        parse_duration({"hour": 1})


def test_a_unit_without_a_number_is_refused():
    with pytest.raises(MisconfigurationError, match="'two' hours is not a number"):
        parse_duration({"hours": "two"})


def test_a_negative_span_is_refused():
    with pytest.raises(MisconfigurationError, match="less than nothing"):
        parse_duration(timedelta(seconds=-1))
