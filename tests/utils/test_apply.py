"""apply_to_collection: Lightning's map over nested collections."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from leyden.utils.apply import apply_to_collection

Point = namedtuple("Point", ["x", "y"])


@dataclass(frozen=True)
class Frozen:
    x: int


def plus(number: int, more: int, once: int = 0) -> int:
    return number + more + once


def test_items_of_the_type_are_replaced_and_others_kept():
    data = {"a": 1, "b": "text", "c": [None, 2.0, (3,)], "d": Point(1, "y"), "e": OrderedDict(f=Frozen(5))}
    assert apply_to_collection(data, int, plus, 10, once=100) == {
        "a": 111,
        "b": "text",
        "c": [None, 2.0, (113,)],
        "d": Point(111, "y"),
        "e": OrderedDict(f=Frozen(115)),
    }


def test_tensors_and_several_types():
    assert apply_to_collection([torch.ones(2), 3, "x"], (torch.Tensor, int), str) == ["tensor([1., 1.])", "3", "x"]
    assert apply_to_collection("abc", str, str.upper) == "ABC"
    assert apply_to_collection([1, None], type(None), lambda _: 5) == [1, 5]


def test_wrong_types_are_left_alone():
    assert apply_to_collection([1, True, "a"], int, lambda x: x + 1, wrong_dtype=bool) == [2, True, "a"]
    assert apply_to_collection([[1], (1,)], (list, tuple), len, wrong_dtype=list) == [[1], 1]


def none(_: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ([1, None, "a"], ["a"]),
        ({"a": 1, "b": 2.0}, {"b": 2.0}),
        ((1, [1, "a"], {"b": 1}), (["a"], {})),
        (Point(1, (1, "a")), Point(None, ("a",))),
        (1, None),
    ],
)
def test_none_can_be_left_out(data, left):
    assert apply_to_collection(data, int, none, include_none=False) == left


def test_what_the_function_returns_stays_as_it_is():
    returned = [None, 1]
    assert apply_to_collection({"a": "x"}, str, lambda _: returned, include_none=False) == {"a": [None, 1]}
