"""Nested batches: mapped, moved, measured."""

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from leyden.utils.tree import batch_size_of, move_data_to_device, tree_leaves, tree_map

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Sample:
    x: torch.Tensor
    name: str
    seen: int = field(init=False, default=3)


class Words(list):
    """A list of one's own."""


class Named(tuple):
    """A tuple that cannot be made of items alone."""

    def __new__(cls, items, name):
        return super().__new__(cls, items)


def double(tensor):
    return tensor * 2


ONE = torch.tensor([1.0])


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (ONE, torch.tensor([2.0])),
        ([ONE, "a", 1], [ONE * 2, "a", 1]),
        ((ONE, [ONE]), (ONE * 2, [ONE * 2])),
        ({"x": ONE, "deep": {"y": (ONE,)}}, {"x": ONE * 2, "deep": {"y": (ONE * 2,)}}),
        (Pair(ONE, "a"), Pair(ONE * 2, "a")),
        (OrderedDict(x=ONE), OrderedDict(x=ONE * 2)),
        (Words([ONE]), Words([ONE * 2])),
        (None, None),
        ([], []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_tensors_are_mapped_wherever_they_are_and_containers_keep_their_type(tree, expected):
    mapped = tree_map(double, tree)
    assert type(mapped) is type(expected)
    assert str(mapped) == str(expected)


def test_a_mapping_of_ones_own_comes_back_as_one():
    mapped = tree_map(double, UserDict(x=ONE))
    assert type(mapped) is UserDict and mapped["x"] == 2


def test_a_container_that_cannot_be_rebuilt_comes_back_as_a_plain_one():
    assert tree_map(double, defaultdict(list, x=ONE)) == {"x": torch.tensor([2.0])}
    assert tree_map(double, Named([ONE], "n")) == [torch.tensor([2.0])]


def test_dataclasses_keep_what_is_no_tensor():
    sample = Sample(ONE, "a")
    sample.seen = 5
    mapped = tree_map(double, sample)
    assert (mapped.x, mapped.name) == (torch.tensor([2.0]), "a")
    assert sample.x is ONE


def test_the_original_is_left_as_it_is():
    tree = {"x": [ONE]}
    tree_map(double, tree)
    assert tree["x"][0] is ONE


def test_leaves_of_other_types_may_be_mapped():
    assert tree_map(str.upper, ["a", {"b": ("c", 1)}], str) == ["A", {"b": ("C", 1)}]


def test_leaves_come_in_order():
    tree = {"x": [1, (2, None)], "y": Pair("a", {"z": 3}), "s": Sample(ONE, "b")}
    assert list(tree_leaves(tree)) == [1, 2, None, "a", 3, ONE, "b", 3]


# Moving.


def test_every_tensor_is_moved_and_the_rest_is_kept():
    moved = move_data_to_device({"x": [torch.ones(2)], "s": Sample(ONE, "a"), "n": 1}, "meta")
    assert (moved["x"][0].device.type, moved["s"].x.device.type) == ("meta", "meta")
    assert (moved["s"].name, moved["n"]) == ("a", 1)


def test_a_tensor_that_is_there_already_is_the_same():
    assert move_data_to_device([ONE], torch.device("cpu"))[0] is ONE


def test_objects_that_know_how_are_asked_to_move_themselves():
    class Batch:
        def to(self, device):
            return ("moved", device)

    assert move_data_to_device([Batch()], "meta") == [("moved", torch.device("meta"))]


def test_packed_sequences_are_moved_whole():
    moved = move_data_to_device(pack_sequence([torch.ones(3), torch.ones(2)]), "cpu")
    assert moved.data.tolist() == [1.0] * 5


def test_a_class_with_a_to_method_is_no_object_with_one():
    class Batch:
        def to(self, device):
            raise AssertionError

    assert move_data_to_device([Batch], "meta") == [Batch]


# Measuring.


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        ([torch.zeros(4, 2), torch.zeros(5)], 4),
        ({"text": "a", "x": (torch.zeros(6),)}, 6),
        (Sample(torch.zeros(7), "a"), 7),
        ([torch.zeros(()), torch.zeros(8)], 8),
        (torch.zeros(()), 1),
        (torch.zeros(0, 2), 0),
        (["a", 1, None], None),
        ([], None),
    ],
)
def test_the_size_is_the_first_dimension_of_the_first_tensor_that_has_one(batch, size):
    assert batch_size_of(batch) == size
