"""is_picklable."""

from __future__ import annotations

import threading

import pytest
from torch import nn

from leyden.utils.pickling import is_picklable


@pytest.mark.parametrize(
    ("obj", "picklable"),
    [(1, True), (nn.Linear(1, 1), True), (lambda: 0, False), (threading.Lock(), False), ([open], True)],
)
def test_it_is_tried_out(obj, picklable):
    assert is_picklable(obj) is picklable
