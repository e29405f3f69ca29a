"""Parameters that several modules share."""

from __future__ import annotations

import copy

import pytest
from torch import nn

from leyden.utils.tying import find_shared_parameters, set_shared_parameters


def tied() -> nn.Module:
    """Three layers: ``a`` is ``c``, and ``b`` has their weight."""
    module = nn.Module()
    module.a, module.b = nn.Linear(2, 2), nn.Linear(2, 2)
    module.c = module.a
    module.b.weight = module.a.weight
    return module


def test_every_parameter_with_several_names_is_found():
    assert find_shared_parameters(tied()) == [["a.weight", "b.weight", "c.weight"], ["a.bias", "c.bias"]]
    assert find_shared_parameters(nn.Linear(2, 2)) == []


def test_what_was_copied_apart_is_shared_again():
    module = tied()
    names = find_shared_parameters(module)
    module.b, module.c = copy.deepcopy(module.b), copy.deepcopy(module.c)
    assert find_shared_parameters(module) == []
    assert set_shared_parameters(module, names) is module
    assert find_shared_parameters(module) == names


def test_a_module_can_share_with_the_one_it_is_in():
    module = nn.Linear(2, 2)
    module.inner = nn.Linear(2, 2)
    set_shared_parameters(module, [["inner.weight", "weight"]])
    assert module.weight is module.inner.weight


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="d"):
        set_shared_parameters(tied(), [["d.weight", "a.weight"]])
