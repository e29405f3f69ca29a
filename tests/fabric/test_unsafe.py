"""What a checkpoint may hold: exactly what torch reads back without running code."""

from __future__ import annotations

import collections
import datetime
import enum
import io
import pathlib
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from leyden.fabric.unsafe import unsafe_places


class Cfg:
    """What users put into hyper-parameters."""

    def __init__(self):
        self.lr = 0.1


class Color(str, enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class MyDict(dict):
    pass


class MyOrdered(collections.OrderedDict):
    pass


class MyTensor(torch.Tensor):
    pass


class MyStr(str):
    pass


Pair = collections.namedtuple("Pair", "a b")


def with_attribute(tensor, value):
    tensor.tag = value
    return tensor


def ordered(value):
    of = collections.OrderedDict(a=1)
    of._metadata = value
    return of


def cyclic_list():
    cyclic: list = []
    cyclic.append((cyclic,))
    return cyclic


def cyclic_tuple():
    cyclic: tuple = ([],)
    cyclic[0].append(cyclic)
    return cyclic


def cyclic_counter():
    cyclic = collections.Counter()
    cyclic["a"] = [cyclic]  # type: ignore[assignment]
    return cyclic


def shared():
    one = (Color.RED,)
    return [one, one]


VALUES = {
    "none": None,
    "bools": [True, False],
    "ints": [0, -1, 255, 2**31, -(2**70)],
    "longest int": 2**2039 - 1,
    "int too long": 2**2039,
    "lowest int": -(2**2039),
    "int too low": -(2**2039) - 1,
    "floats": [0.1, float("inf"), float("nan")],
    "complex": 1j,
    "str": ["", "x", "ü" * 300, "\ud800"],
    "bytes": b"x",
    "long bytes": b"x" * 300,
    "empty bytes": b"",
    "bytearrays": [bytearray(), bytearray(b"x")],
    "tuples": [(), (1,), (1, 2, 3, 4)],
    "lists": [[], [1], [[1]]],
    "dicts": [{}, {"a": 1}, {(1, "a"): 1, 1.5: 2, None: 3, b"x": 4}],
    "sets": [set(), {1, "a", (1,)}],
    "set of tensors": {torch.ones(1)},
    "frozenset": frozenset({1}),
    "empty frozenset": frozenset(),
    "OrderedDict": ordered(collections.OrderedDict(version=1)),
    "OrderedDict with an object": ordered(Color.RED),
    "OrderedDict subclass": MyOrdered(a=1),
    "Counter": collections.Counter("ab"),
    "Counter of objects": collections.Counter([Color.RED]),
    "defaultdict": collections.defaultdict(int),
    "defaultdict without factory": collections.defaultdict(None, a=1),
    "dict subclass": MyDict(a=1),
    "deque": collections.deque([1]),
    "named tuple": Pair(1, 2),
    "range": range(3),
    "slice": slice(1),
    "ellipsis": ...,
    "str-Enum": Color.RED,
    "IntEnum": Number.ONE,
    "str subclass": MyStr("x"),
    "object": Cfg(),
    "path": pathlib.Path("x"),
    "date": datetime.date(2020, 1, 1),
    "timedelta": datetime.timedelta(1),
    "partial": partial(print),
    "function": unsafe_places,
    "lambda": lambda: 0,
    "builtin": print,
    "bound method": Cfg().__init__,
    "class": Cfg,
    "builtin class": dict,
    "classes that torch knows": [collections.OrderedDict, nn.Parameter, torch.Size, set],
    "module": nn.Linear(1, 1),
    "exception": ValueError("x"),
    "numpy float32": np.float32(1),
    "numpy float64": np.float64(1),
    "numpy bool": np.bool_(True),
    "numpy str": np.str_("x"),
    "numpy array": np.ones(2),
    "key": {Color.RED: 1},
    "element": {Color.RED},
    "deep": {"a": [({"b": Color.RED},)]},
    "list that contains itself": cyclic_list(),
    "tuple that contains itself": cyclic_tuple(),
    "Counter that contains itself": cyclic_counter(),
    "shared": shared(),
    "Size": torch.Size([1, 2]),
    "dtypes": [torch.float32, torch.bfloat16, torch.uint16, torch.complex64, torch.float8_e4m3fn],
    "devices": [torch.device("cpu"), torch.device("cuda:1")],
    "layouts": [torch.strided, torch.sparse_csr],
    "memory format": torch.channels_last,
    "generator": torch.Generator(),
    "finfo": torch.finfo(torch.float32),
    "tensors": [torch.ones(2), torch.empty(0), torch.ones(1, requires_grad=True) * 2, torch.ones(2, device="meta")],
    "tensors of many dtypes": [torch.ones(2).to(d) for d in (torch.bfloat16, torch.uint16, torch.float8_e4m3fn)],
    "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
    "sparse": torch.eye(2).to_sparse(),
    "parameter": nn.Parameter(torch.ones(1), requires_grad=False),
    "buffer": nn.Buffer(torch.ones(1)),
    "tensor with an attribute": with_attribute(torch.ones(1), "x"),
    "tensor with an object": with_attribute(torch.ones(1), Color.RED),
    "parameter with an attribute": with_attribute(nn.Parameter(torch.ones(1)), "x"),
    "parameter with an object": with_attribute(nn.Parameter(torch.ones(1)), Color.RED),
    "tensor subclass": torch.ones(1).as_subclass(MyTensor),
    "parameter not yet made": nn.UninitializedParameter(),
    "storage": torch.ones(2).untyped_storage(),
    "state_dict": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict(),
    "optimizer": torch.optim.Adam(nn.Linear(1, 1).parameters()).state_dict(),
    "generator states": [random.getstate(), torch.get_rng_state()],
}


def can_be_read_back(value):
    file = io.BytesIO()
    try:
        torch.save(value, file)
    except Exception:
        return False
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", VALUES)
def test_a_value_has_no_unsafe_place_exactly_when_torch_reads_it_back(name):
    assert (unsafe_places(VALUES[name]) == []) == can_be_read_back(VALUES[name])
    assert (unsafe_places({"top": [VALUES[name]]}) == []) == can_be_read_back(VALUES[name])


def test_places_are_written_as_the_user_would_reach_them():
    assert unsafe_places({"epoch": 1, "hyper_parameters": {"cfg": Cfg(), "layers": [1, (Color.RED,)]}}) == [
        f"hyper_parameters['cfg']: {__name__}.Cfg",
        f"hyper_parameters['layers'][1][0]: {__name__}.Color",
    ]
    assert unsafe_places({"cfg": frozenset(), "act": nn.ReLU, "fn": print, 3: 1}, "hyper_parameters") == [
        "hyper_parameters['cfg']: frozenset",
        "hyper_parameters['act']: class torch.nn.modules.activation.ReLU",
        "hyper_parameters['fn']: function print",
    ]
    assert unsafe_places([{1}, {Color.RED}]) == [f"checkpoint[1], element: {__name__}.Color"]
    assert unsafe_places({"a": {Color.RED: 1}}) == [f"a, key {Color.RED!r}: {__name__}.Color"]
    assert unsafe_places({"a": 2**3000, "b": b"", "c": ordered(Color.RED)}) == [
        "a: an int of 3001 bits",
        "b: empty bytes",
        f"c._metadata: {__name__}.Color",
    ]


def test_what_the_user_allowed_torch_to_read_is_safe():
    with torch.serialization.safe_globals([Cfg]):
        assert unsafe_places({"cfg": Cfg()}) == []
    assert unsafe_places({"cfg": Cfg()}) == [f"cfg: {__name__}.Cfg"]
