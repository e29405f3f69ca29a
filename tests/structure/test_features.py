"""docs/features.md: every argument of the Trainer has its row, and every test it names is there."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from leyden.options import TrainerOptions
from leyden.trainer import Trainer
from leyden.utils.errors import NotBuiltError

DOCS = Path(__file__).parents[2] / "docs"
TEXT = (DOCS / "features.md").read_text()
ARGUMENTS = TEXT.partition("## Arguments of the Trainer")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", ARGUMENTS, re.MULTILINE))


def test_every_argument_of_the_trainer_has_a_row():
    assert list(ROWS) == [field.name for field in fields(TrainerOptions)]


def test_every_test_that_is_named_is_there():
    named = re.findall(r"\]\((\.\./[^)]+)\)", TEXT)
    assert len(named) > 80
    assert [path for path in named if not (DOCS / path).exists()] == []


def test_a_row_without_a_test_is_not_built_yet():
    bare = re.findall(r"^\| (.+?) \| (.+?) \|  \|$", TEXT, re.MULTILINE)
    assert bare and all(status == "not yet" for _, status in bare)


@pytest.mark.parametrize("name", [name for name, status in ROWS.items() if status == "not yet"])
def test_an_argument_that_is_not_built_says_so(name):
    value = {"sync_batchnorm": True}.get(name, "something")
    with pytest.raises(NotBuiltError, match=name):
        Trainer(**{name: value})
