"""Fingerprints: the same for the same value, another for another."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter, OrderedDict, deque
from datetime import date
from itertools import count

import numpy
import pytest
import torch
from torch import nn

from leyden.utils.fingerprint import bits, describe, digest


class Thing:
    def __init__(self, value):
        self.value = value
        self.itself = self


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


DIFFERENT = [
    (1, 2),
    (1, 1.0),
    (0.0, -0.0),
    ("a", "b"),
    ([1, 2], [2, 1]),
    ([1, 2], (1, 2)),
    ([1], [1, 1]),
    ({"a": 1}, {"a": 2}),
    (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
    (Counter("ab"), Counter("aab")),
    ({1, 2}, {1, 3}),
    (deque([1]), deque([2])),
    (torch.zeros(2), torch.zeros(3)),
    (torch.zeros(2), -torch.zeros(2)),
    (torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16)),
    (torch.zeros(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64)),
    (numpy.zeros(2), numpy.ones(2)),
    (numpy.float32(1), numpy.float32(2)),
    (numpy.random.default_rng(0), numpy.random.default_rng(1)),
    (numpy.random.RandomState(0), numpy.random.RandomState(1)),
    (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
    (Thing(1), Thing(2)),
    (Thing([{"a": torch.zeros(2)}]), Thing([{"a": torch.ones(2)}])),
    (Slotted(1), Slotted(2)),
    (count(1), count(2)),
    (date(2000, 1, 1), date(2000, 1, 2)),
    (list(range(10_000)), list(range(9_999))),
    (nn.Linear(2, 2), nn.Linear(2, 2)),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_value_has_another_digest(one, other):
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)


def test_equal_values_have_one_digest_though_they_are_not_the_same_object():
    assert digest(Thing([1, {"b"}])) == digest(Thing([1, {"b"}]))
    assert digest({"a", "b", "c"}) == digest({"c", "b", "a"})
    assert digest(torch.zeros(4)[::2]) == digest(torch.zeros(2))
    assert digest(threading.Thread()) == digest(threading.Thread())
    assert digest(lambda: 1) == digest(lambda: 2)


def test_opaque_types_count_as_any_other():
    assert digest([Thing(1)], (Thing,)) == digest([Thing(2)], (Thing,))


def test_a_digest_is_the_same_in_another_process():
    code = "from leyden.utils.fingerprint import digest; print(digest({'a': [1, {'x', 'y', 'z'}], 'b': 0.1}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest({"a": [1, {"x", "y", "z"}], "b": 0.1})


def test_bits_are_the_bytes():
    assert bits(torch.tensor([1, 256], dtype=torch.int16)).tolist() == [1, 0, 0, 1]
    assert bits(torch.tensor(1, dtype=torch.uint8)).tolist() == [1]
    assert bits(torch.zeros(0)).numel() == 0


def test_descriptions_are_short():
    values = [torch.zeros(2, 3), torch.tensor(1.5), numpy.zeros((2,)), [1, 2], 4, "x" * 100, None, Thing(1)]
    assert [describe(value) for value in values] == [
        "a tensor of shape (2, 3)",
        "tensor(1.5)",
        "an array of shape (2,)",
        "a list of 2",
        "4",
        "'" + "x" * 35 + " ...",
        "None",
        "a Thing",
    ]
