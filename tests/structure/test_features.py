"""docs/features.md: everything that Lightning's users know has its row, and every row a test that is there."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from torch import nn

import leyden.utilities
from leyden.core.datamodule import LightningDataModule
from leyden.core.hooks import HOOKS
from leyden.core.module import LightningModule
from leyden.options import TrainerOptions
from leyden.trainer import Trainer
from leyden.utils.errors import NotBuiltError

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "docs" / "features.md").read_text()
LINK = re.compile(r"\[(?P<file>\S+)::(?P<test>test_\w+)\]\(\.\./tests/(?P<linked>\S+)\)")
MARKS = ("today", "more", "differs", "not yet")

# What Lightning's Trainer has, by its documentation and by what code in the wild uses of it.
LIGHTNINGS = (
    "accelerator accumulate_grad_batches callback_metrics callbacks check_val_every_n_epoch checkpoint_callback "
    "checkpoint_callbacks ckpt_path current_epoch datamodule default_root_dir device_ids "
    "distributed_sampler_kwargs early_stopping_callback early_stopping_callbacks enable_validation "
    "estimated_stepping_batches evaluating fast_dev_run fit fit_loop global_rank global_step "
    "gradient_clip_algorithm gradient_clip_val init_module interrupted is_global_zero is_last_batch "
    "lightning_module limit_predict_batches limit_test_batches limit_train_batches limit_val_batches local_rank "
    "log_dir log_every_n_steps logged_metrics logger loggers lr_scheduler_configs max_epochs max_steps min_epochs "
    "min_steps model node_rank num_devices num_nodes num_predict_batches num_sanity_val_batches num_test_batches "
    "num_training_batches num_val_batches optimizers overfit_batches precision precision_plugin predict "
    "predict_dataloaders predict_loop predicting print profiler progress_bar_callback progress_bar_metrics "
    "received_sigterm sanity_checking save_checkpoint scaler should_stop state strategy test test_dataloaders "
    "test_loop testing train_dataloader training val_check_interval val_dataloaders validate validate_loop "
    "validating world_size"
)
# Public methods of the Trainer for callbacks and scripts of our own, documented where they are defined.
OURS = {"add_callback_metrics", "request_checkpoint", "validate_once_per_epoch"}


class Row:
    """One row: its cells, and the section that it stands in."""

    def __init__(self, section: str, line: str) -> None:
        self.section, self.line = section, line
        self.cells = [cell.strip() for cell in line.strip("| ").split("|")]
        self.feature, self.mark = self.cells[0], self.cells[-2] if len(self.cells) > 1 else ""
        self.names = set(re.findall(r"`(\w+)", self.feature))
        self.link = LINK.fullmatch(self.cells[-1])


def read(text: str) -> Iterator[Row]:
    """The rows of all tables."""
    section, below_the_head = "", False
    for line in text.splitlines():
        if line.startswith("## "):
            section, below_the_head = line[3:], False
        elif line.startswith("|---"):
            below_the_head = True
        elif not line.startswith("|"):
            below_the_head = False
        elif below_the_head:
            yield Row(section, line)


ROWS = list(read(TEXT))
ARGUMENTS = [row for row in ROWS if row.section == "Arguments of the Trainer"]


def names_in(*sections: str) -> set[str]:
    found = [row for row in ROWS if row.section in sections]
    assert found, f"docs/features.md has no table under {' or '.join(sections)}."
    return {name for row in found for name in row.names}


@functools.cache
def functions_of(file: str) -> set[str]:
    """The test functions of a file, as pytest collects them."""
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def problems(row: Row) -> str:
    """What is wrong with a row; empty when it is fine."""
    if row.link is None:
        return "has no link such as [core/test_loop.py::test_name](../tests/core/test_loop.py) in its last cell"
    file, test = row.link["file"], row.link["test"]
    if not (TESTS / file).exists() or file != row.link["linked"]:
        return f"links to {row.link['linked']} under the name {file}"
    if test not in functions_of(file):
        return f"names {test}, which {file} has not"
    if not row.mark.startswith(MARKS):
        return f"is marked {row.mark!r}, which is none of {', '.join(MARKS)}"
    return ""


# The table itself.


def test_every_row_has_a_mark_and_a_test_that_is_there():
    assert len(ROWS) > 650
    assert [f"{row.line}\n... {problem}" for row in ROWS if (problem := problems(row))] == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("| `fit` | | today | |", "has no link"),
        ("| `fit` | | today | [core/test_loop.py](../tests/core/test_loop.py) |", "has no link"),
        ("| `fit` | | today | [test_nowhere.py::test_a](../tests/test_nowhere.py) |", "links to test_nowhere.py"),
        ("| `fit` | | today | [structure/test_features.py::test_a](../tests/structure/test_features.py) |", "has not"),
        (
            "| `fit` | | soon | [structure/test_features.py::test_a_row_that_shows_nothing_is_found]"
            "(../tests/structure/test_features.py) |",
            "'soon', which is none of today",
        ),
    ],
)
def test_a_row_that_shows_nothing_is_found(line, problem):
    [row] = read(f"## Methods\n\n| head |\n|---|\n{line}\n")
    assert problem in problems(row)


def test_no_row_is_there_twice():
    lines = [f"{row.section}: {row.line}" for row in ROWS]
    assert [line for line in set(lines) if lines.count(line) > 1] == []


# What has a row.


def test_every_argument_of_the_trainer_has_a_row():
    names = [name for row in ARGUMENTS for name in row.names]
    arguments = [field.name for field in fields(TrainerOptions)]
    assert [name for name in dict.fromkeys(names) if name in arguments] == arguments
    assert set(names) - set(arguments) == {"PL_TRAINER_"}


def test_every_method_and_attribute_of_the_trainer_has_a_row():
    public = {name for name in dir(Trainer) if not name.startswith("_")} | set(LIGHTNINGS.split())
    assert sorted(public - OURS - names_in("Methods of the Trainer", "Attributes of the Trainer")) == []


def test_every_method_attribute_and_hook_of_a_module_has_a_row():
    public = {name for name in dir(LightningModule) if not name.startswith("_") and not hasattr(nn.Module, name)}
    hooks = {name for name in HOOKS if "sanity_check" not in name}  # which callbacks have alone
    rows = names_in("LightningModule", "Hooks of the LightningModule", "self.log") | {"log"}
    assert sorted((public | hooks) - rows) == []


def test_every_method_and_attribute_of_a_datamodule_has_a_row():
    public = {name for name in dir(LightningDataModule) if not name.startswith("_")}
    assert sorted(public - names_in("LightningDataModule and loaders")) == []


def test_every_utility_has_a_row():
    modules = {path.stem for path in Path(leyden.utilities.__file__).parent.glob("*.py")}
    assert sorted(set(dir(leyden.utilities)) - modules - names_in("Utilities, in `leyden.utilities`")) == []


def not_built() -> list[str]:
    """Arguments none of whose rows works."""
    works = {name for row in ARGUMENTS for name in row.names if row.mark != "not yet"}
    return sorted({name for row in ARGUMENTS for name in row.names} - works)


@pytest.mark.parametrize("name", not_built())
def test_an_argument_that_is_not_built_says_so(name):
    value = {"sync_batchnorm": True}.get(name, "something")
    with pytest.raises(NotBuiltError, match=name):
        Trainer(**{name: value})
