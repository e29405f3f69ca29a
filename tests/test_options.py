"""TrainerOptions: every argument of the Trainer is checked when the Trainer is made."""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import FrozenInstanceError, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.callbacks.progress import ProgressBar
from leyden.callbacks.timer import Timer
from leyden.core.callback import Callback
from leyden.fabric.accelerators import Accelerator
from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.fabric.precision import DoublePrecision, Precision
from leyden.fabric.strategies.strategy import Strategy
from leyden.loggers.logger import Logger
from leyden.option_checks import CHECKS, check_argument
from leyden.options import TrainerOptions
from leyden.utils.errors import LeydenWarning, MisconfigurationError, NotBuiltError

LIGHTNINGS = (
    "accelerator strategy devices num_nodes precision logger callbacks fast_dev_run max_epochs min_epochs max_steps "
    "min_steps max_time limit_train_batches limit_val_batches limit_test_batches limit_predict_batches "
    "overfit_batches val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps "
    "enable_checkpointing enable_progress_bar enable_model_summary accumulate_grad_batches gradient_clip_val "
    "gradient_clip_algorithm deterministic benchmark inference_mode use_distributed_sampler profiler detect_anomaly "
    "barebones plugins sync_batchnorm reload_dataloaders_every_n_epochs default_root_dir enable_autolog_hparams "
    "model_registry suggest_integrations"
)
OURS = ["on_nonfinite_loss", "warnings", "preempt_grace", "fast_paths", "compile"]


class ClusterEnvironment:
    """A kind of plugin that is not built."""


class Remembers(Callback):
    """A callback with a state, told apart from others of its class by nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 3}


# The keywords, the error, and what its message must match; the argument's name and its value are looked for anyway.
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"accelerator": 1}, TypeError, "'auto'"),
    ({"accelerator": "ddp"}, MisconfigurationError, "strategy='ddp'"),
    ({"accelerator": "dp"}, MisconfigurationError, "strategy='ddp'"),
    ({"strategy": 2}, TypeError, "not a Strategy"),
    ({"strategy": Strategy}, TypeError, r"Call it: Strategy\(\.\.\.\)"),
    ({"devices": True}, TypeError, "not a number of devices"),
    ({"devices": 1.5}, TypeError, r"\[0, 1\]"),
    ({"devices": [0, "1"]}, TypeError, "holds '1'"),
    ({"devices": [True]}, TypeError, "holds True"),
    ({"num_nodes": 0}, MisconfigurationError, "less than 1"),
    ({"num_nodes": 2}, NotBuiltError, "one machine"),
    ({"precision": "bf-16"}, ValueError, "bf16"),
    ({"precision": 8}, ValueError, "16-mixed"),
    ({"precision": 16.0}, TypeError, "'bf16-mixed'"),
    ({"precision": True}, TypeError, "not a precision"),
    ({"logger": "csv"}, TypeError, "Give a logger"),
    ({"logger": "tensorboard_logger"}, TypeError, "Did you mean 'TensorBoardLogger'"),
    ({"logger": Logger}, TypeError, r"Call it: Logger\(\.\.\.\)"),
    ({"logger": [True]}, TypeError, "holds True"),
    ({"logger": {"a": 1}}, TypeError, "not a Logger"),
    ({"logger": 3}, TypeError, "not a Logger"),
    ({"callbacks": "x"}, TypeError, "not a Callback"),
    ({"callbacks": ["checkpoint"]}, TypeError, "Did you mean 'ModelCheckpoint'"),
    ({"callbacks": EarlyStopping}, TypeError, r"Call it: EarlyStopping\(\.\.\.\)"),
    ({"callbacks": [EarlyStopping]}, TypeError, r"Call it: EarlyStopping\(\.\.\.\)"),
    ({"callbacks": [None]}, TypeError, "holds None"),
    ({"callbacks": False}, TypeError, "not a Callback"),
    ({"fast_dev_run": -1}, MisconfigurationError, "1 batch"),
    ({"fast_dev_run": 1.5}, TypeError, "1 batch"),
    ({"fast_dev_run": None}, TypeError, "1 batch"),
    ({"max_epochs": -2}, MisconfigurationError, "-1 for no limit"),
    ({"max_epochs": 2.5}, TypeError, "not a whole number"),
    ({"max_epochs": True}, TypeError, "not a whole number"),
    ({"max_epochs": "10"}, TypeError, "not a whole number"),
    ({"max_epochs": float("inf")}, TypeError, "-1 for no limit"),
    ({"max_epochs": torch.tensor(3)}, TypeError, "not a whole number"),
    ({"min_epochs": -1}, MisconfigurationError, "None for no minimum"),
    ({"min_epochs": 5, "max_epochs": 3}, MisconfigurationError, "max_epochs=3"),
    ({"max_steps": -2}, MisconfigurationError, "-1 for no limit"),
    ({"max_steps": 0.5}, TypeError, "-1 for no limit"),
    ({"min_steps": "5"}, TypeError, "optimizer steps"),
    ({"min_steps": 100, "max_steps": 10}, MisconfigurationError, "max_steps=10"),
    ({"max_time": 90}, TypeError, "DD:HH:MM:SS"),
    ({"max_time": "1 hour"}, MisconfigurationError, "DD:HH:MM:SS"),
    ({"max_time": {"hour": 1}}, MisconfigurationError, "Did you mean 'hours'"),
    ({"limit_train_batches": 1.5}, MisconfigurationError, "0.0 to 1.0"),
    ({"limit_train_batches": -1}, MisconfigurationError, "negative"),
    ({"limit_val_batches": -0.1}, MisconfigurationError, "0.0 to 1.0"),
    ({"limit_val_batches": False}, TypeError, "neither a fraction nor a number"),
    ({"limit_test_batches": "all"}, TypeError, "1.0 is all"),
    ({"limit_predict_batches": float("nan")}, MisconfigurationError, "0.0 to 1.0"),
    ({"overfit_batches": 1.5}, MisconfigurationError, "0.0 to 1.0"),
    ({"overfit_batches": -1}, MisconfigurationError, "negative"),
    ({"overfit_batches": True}, TypeError, "1 is one"),
    ({"overfit_batches": None}, TypeError, "1 is one"),
    ({"val_check_interval": 1.5}, MisconfigurationError, "0.0 to 1.0"),
    ({"val_check_interval": 0}, MisconfigurationError, "limit_val_batches=0"),
    ({"val_check_interval": 0.0}, MisconfigurationError, "limit_val_batches=0"),
    ({"val_check_interval": -3}, MisconfigurationError, "negative"),
    ({"val_check_interval": True}, TypeError, "number of batches"),
    ({"val_check_interval": "10 minutes"}, MisconfigurationError, "DD:HH:MM:SS"),
    ({"val_check_interval": "00:00:00:00"}, MisconfigurationError, "no interval"),
    ({"val_check_interval": timedelta(minutes=-1)}, MisconfigurationError, "less than nothing"),
    ({"val_check_interval": {"minute": 10}}, MisconfigurationError, "Did you mean 'minutes'"),
    ({"val_check_interval": [10]}, TypeError, "nor a time"),
    ({"val_check_interval": 0.5, "check_val_every_n_epoch": None}, MisconfigurationError, "number of batches"),
    ({"val_check_interval": 1.0, "check_val_every_n_epoch": None}, MisconfigurationError, "number of batches"),
    ({"check_val_every_n_epoch": 0}, MisconfigurationError, "limit_val_batches=0"),
    ({"check_val_every_n_epoch": 1.5}, TypeError, "number of epochs"),
    ({"num_sanity_val_steps": -5}, MisconfigurationError, "-1 for all"),
    ({"num_sanity_val_steps": False}, TypeError, "0 for none"),
    ({"log_every_n_steps": -1}, MisconfigurationError, "0 never"),
    ({"log_every_n_steps": "10"}, TypeError, "not a whole number"),
    ({"enable_checkpointing": 1}, TypeError, "True or False"),
    ({"enable_progress_bar": "no"}, TypeError, "True or False"),
    ({"enable_model_summary": 0}, TypeError, "True or False"),
    ({"accumulate_grad_batches": 0}, MisconfigurationError, "less than 1"),
    ({"accumulate_grad_batches": 1.5}, TypeError, "not a whole number"),
    ({"accumulate_grad_batches": {5: 3}}, NotBuiltError, "one number"),
    ({"gradient_clip_val": "1"}, TypeError, "not a number"),
    ({"gradient_clip_val": True}, TypeError, "not a number"),
    ({"gradient_clip_val": -0.5}, MisconfigurationError, "None or 0"),
    ({"gradient_clip_val": float("nan")}, MisconfigurationError, "None or 0"),
    ({"gradient_clip_algorithm": "nrom"}, MisconfigurationError, "Did you mean 'norm'"),
    ({"gradient_clip_algorithm": 2}, TypeError, "'norm', 'value'"),
    ({"deterministic": "wran"}, MisconfigurationError, "Did you mean 'warn'"),
    ({"deterministic": 1}, TypeError, "'warn'"),
    ({"benchmark": "yes"}, TypeError, "True or False"),
    ({"inference_mode": None}, TypeError, "True or False"),
    ({"use_distributed_sampler": 2}, TypeError, "True or False"),
    ({"profiler": "simpel"}, MisconfigurationError, "Did you mean 'simple'"),
    ({"profiler": "xla"}, NotBuiltError, "not supported"),
    ({"profiler": 3}, TypeError, "not a Profiler"),
    ({"profiler": True}, TypeError, "not a Profiler"),
    ({"barebones": True, "profiler": "simple"}, ValueError, "profiler='simple'"),
    ({"detect_anomaly": "True"}, TypeError, "True or False"),
    ({"barebones": 1}, TypeError, "True or False"),
    ({"fast_paths": 1}, TypeError, "True or False"),
    ({"compile": "stpe"}, ValueError, "Did you mean 'step'"),
    ({"compile": True}, TypeError, "does not say what"),
    ({"barebones": True, "logger": True}, ValueError, "logger=True"),
    ({"barebones": True, "enable_checkpointing": True}, ValueError, "enable_checkpointing=True"),
    ({"barebones": True, "enable_progress_bar": True}, ValueError, "enable_progress_bar=True"),
    ({"barebones": True, "enable_model_summary": True}, ValueError, "enable_model_summary=True"),
    ({"barebones": True, "num_sanity_val_steps": 2}, ValueError, "num_sanity_val_steps=2"),
    ({"barebones": True, "log_every_n_steps": 10}, ValueError, "log_every_n_steps=10"),
    ({"barebones": True, "fast_dev_run": True}, ValueError, "fast_dev_run=True"),
    ({"barebones": True, "detect_anomaly": True}, ValueError, "detect_anomaly=True"),
    ({"plugins": "fp8"}, TypeError, "Precision or a CheckpointIO"),
    ({"plugins": Precision}, TypeError, r"Call it: Precision\(\.\.\.\)"),
    ({"sync_batchnorm": True}, NotBuiltError, "One|one"),
    ({"sync_batchnorm": None}, TypeError, "True or False"),
    ({"reload_dataloaders_every_n_epochs": 1.5}, TypeError, "0 to make the loaders once"),
    ({"reload_dataloaders_every_n_epochs": -1}, MisconfigurationError, "0 to make the loaders once"),
    ({"default_root_dir": 5}, TypeError, "pathlib.Path"),
    ({"enable_autolog_hparams": None}, TypeError, "True or False"),
    ({"model_registry": "mine"}, NotBuiltError, "ModelCheckpoint"),
    ({"suggest_integrations": "no"}, TypeError, "True or False"),
    ({"warnings": "ignore"}, TypeError, "not a dict"),
    ({"warnings": {"LD31": "ignore"}}, MisconfigurationError, "'LD31' is not the id of a warning"),
    ({"warnings": {31: "ignore"}}, MisconfigurationError, "31 is not the id of a warning"),
    ({"warnings": {"LD031": "ignroe"}}, MisconfigurationError, "Did you mean 'ignore'"),
    ({"warnings": {"LD031": None}}, MisconfigurationError, "None of LD031 is unknown"),
]

GOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"accelerator": "gpu", "devices": "0,1", "strategy": "ddp"}, {"devices": "0,1"}),  # resolved by fabric
    ({"devices": (0, np.int64(1))}, {"devices": [0, 1]}),
    ({"precision": 16}, {"precision": "16-mixed"}),
    ({"precision": "bf16"}, {"precision": "bf16-mixed"}),
    ({"logger": False}, {"logger": False}),
    ({"logger": []}, {"logger": []}),
    ({"callbacks": []}, {"callbacks": []}),
    ({"fast_dev_run": True}, {"fast_dev_run": True}),
    ({"fast_dev_run": 3}, {"fast_dev_run": 3}),
    ({"max_epochs": -1, "min_epochs": 7}, {"max_epochs": -1, "min_epochs": 7}),
    ({"max_epochs": np.int32(4)}, {"max_epochs": 4}),
    ({"max_steps": 1e6}, {"max_steps": 1_000_000}),
    ({"max_steps": 0}, {"max_steps": 0}),
    ({"min_steps": 5}, {"min_steps": 5}),
    ({"max_time": "00:12:00:00"}, {"max_time": "00:12:00:00"}),
    ({"max_time": {"hours": 8}}, {"max_time": {"hours": 8}}),
    ({"max_time": timedelta(hours=8)}, {"max_time": timedelta(hours=8)}),
    ({"limit_train_batches": 0}, {"limit_train_batches": 0}),
    ({"limit_val_batches": 1.0, "limit_test_batches": 1}, {"limit_val_batches": 1.0, "limit_test_batches": 1}),
    ({"limit_predict_batches": np.float32(0.5)}, {"limit_predict_batches": 0.5}),
    ({"overfit_batches": 1}, {"overfit_batches": 1}),
    ({"val_check_interval": 100, "check_val_every_n_epoch": None}, {"check_val_every_n_epoch": None}),
    ({"val_check_interval": 0.25, "check_val_every_n_epoch": 2}, {"val_check_interval": 0.25}),
    ({"val_check_interval": "00:00:10:00"}, {"val_check_interval": "00:00:10:00"}),
    ({"val_check_interval": {"minutes": 10}, "check_val_every_n_epoch": None}, {"check_val_every_n_epoch": None}),
    ({"val_check_interval": timedelta(minutes=10)}, {"val_check_interval": timedelta(minutes=10)}),
    ({"reload_dataloaders_every_n_epochs": 2}, {"reload_dataloaders_every_n_epochs": 2}),
    ({"check_val_every_n_epoch": None}, {"check_val_every_n_epoch": 1}),
    ({"num_sanity_val_steps": -1}, {"num_sanity_val_steps": -1}),
    ({"log_every_n_steps": 0}, {"log_every_n_steps": 0}),
    ({"enable_progress_bar": np.True_}, {"enable_progress_bar": True}),
    ({"accumulate_grad_batches": 4}, {"accumulate_grad_batches": 4}),
    ({"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}, {"gradient_clip_algorithm": "value"}),
    ({"gradient_clip_val": float("inf")}, {"gradient_clip_val": float("inf")}),
    ({"deterministic": "warn", "benchmark": False}, {"deterministic": "warn"}),
    ({"use_distributed_sampler": False, "suggest_integrations": False}, {"suggest_integrations": False}),
    ({"default_root_dir": Path("runs")}, {"default_root_dir": "runs"}),
    ({"default_root_dir": "s3://bucket/runs"}, {"default_root_dir": "s3://bucket/runs"}),
    ({"warnings": {"LD031": "error", "LD050": "always"}}, {"warnings": {"LD031": "error", "LD050": "always"}}),
]


def case(keywords: dict[str, Any]) -> str:
    """A short name of a test case."""
    return ",".join(f"{name}={value!r}"[:40] for name, value in keywords.items())


@pytest.mark.parametrize(("keywords", "error", "message"), BAD, ids=[case(keywords) for keywords, _, _ in BAD])
def test_a_bad_value_is_refused_by_name_and_value(
    keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refusal:
        TrainerOptions(**keywords)
    name, value = next(iter(keywords.items()))
    assert re.search(rf"{name}={re.escape(repr(value))}", str(refusal.value))


@pytest.mark.parametrize(("keywords", "kept"), GOOD, ids=[case(keywords) for keywords, _ in GOOD])
def test_a_good_value_is_kept_and_nothing_is_said(keywords: dict[str, Any], kept: dict[str, Any]) -> None:
    options = TrainerOptions(**keywords)
    for name, value in kept.items():
        found = getattr(options, name)
        assert found == value
        assert type(found) is type(value)


def test_the_arguments_are_lightnings_in_lightnings_order_and_then_ours() -> None:
    assert list(inspect.signature(TrainerOptions).parameters) == [*LIGHTNINGS.split(), *OURS]


def test_every_argument_has_a_check_and_an_entry_in_the_docstring() -> None:
    names = [field.name for field in fields(TrainerOptions)]
    attributes = (TrainerOptions.__doc__ or "").partition("Attributes:")[2]
    assert list(CHECKS) == names
    assert re.findall(r"^ {8}(\w+): ", attributes, re.MULTILINE) == names


def test_annotations_can_be_read_when_the_program_runs() -> None:
    assert typing.get_type_hints(TrainerOptions)["max_epochs"] == int | None


def test_every_default_passes_its_own_check() -> None:
    options = TrainerOptions()
    assert all(getattr(options, field.name) == field.default for field in fields(options))


def test_options_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainerOptions().max_epochs = 3  # type: ignore[misc]


def test_a_changed_copy_is_checked_and_says_nothing_new() -> None:
    options = TrainerOptions(barebones=True, precision=16, plugins=[CheckpointIO()], overfit_batches=0.5)
    copy = replace(options, limit_train_batches=0.5, limit_val_batches=0.5)
    assert replace(copy, fast_dev_run=False, limit_train_batches=None, limit_val_batches=None) == options
    with pytest.raises(MisconfigurationError, match="max_epochs=-7"):
        replace(options, max_epochs=-7)


def test_one_callback_is_a_list_of_one() -> None:
    callback = EarlyStopping(monitor="val_loss")
    assert TrainerOptions(callbacks=callback).callbacks == [callback]


def test_the_list_of_callbacks_is_copied() -> None:
    given: list[Callback] = [EarlyStopping(monitor="val_loss")]
    options = TrainerOptions(callbacks=given)
    given.clear()
    assert len(options.callbacks or []) == 1  # type: ignore[arg-type]


def test_several_loggers_may_come_from_any_iterable() -> None:
    first, second = Logger(), Logger()
    assert TrainerOptions(logger=iter([first, second])).logger == [first, second]
    assert TrainerOptions(logger=first).logger is first


def test_the_same_callback_twice_is_refused() -> None:
    callback = EarlyStopping(monitor="val_loss")
    with pytest.raises(MisconfigurationError, match="the same EarlyStopping twice"):
        TrainerOptions(callbacks=[callback, callback])


def test_callbacks_whose_states_would_clash_are_refused() -> None:
    with pytest.raises(MisconfigurationError, match="two callbacks with the state_key 'Remembers'"):
        TrainerOptions(callbacks=[Remembers(), Remembers()])


def test_callbacks_of_one_class_without_a_state_do_not_clash() -> None:
    assert len(TrainerOptions(callbacks=[Callback(), Callback()]).callbacks) == 2  # type: ignore[arg-type]


def test_a_callback_of_lightnings_own_package_is_named_as_such() -> None:
    theirs = type("EarlyStopping", (), {"__module__": "pytorch_lightning.callbacks.early_stopping"})()
    with pytest.raises(TypeError, match=r"of the package pytorch_lightning\. Import EarlyStopping from leyden"):
        TrainerOptions(callbacks=[theirs])


def test_checkpointing_turned_off_contradicts_a_checkpoint_callback() -> None:
    with pytest.raises(MisconfigurationError, match="enable_checkpointing=False contradicts the ModelCheckpoint"):
        TrainerOptions(enable_checkpointing=False, callbacks=[ModelCheckpoint()])


def test_the_bar_turned_off_contradicts_a_bar() -> None:
    with pytest.raises(MisconfigurationError, match="enable_progress_bar=False contradicts the ProgressBar"):
        TrainerOptions(enable_progress_bar=False, callbacks=[ProgressBar()])


def test_two_progress_bars_are_refused() -> None:
    class MyBar(ProgressBar):
        pass

    with pytest.raises(MisconfigurationError, match="2 progress bars: ProgressBar, MyBar"):
        TrainerOptions(callbacks=[ProgressBar(), MyBar()])


def test_barebones_turns_off_what_costs_time() -> None:
    options = TrainerOptions(barebones=True)
    assert options.logger is False
    assert options.enable_checkpointing is False
    assert options.enable_progress_bar is False
    assert options.enable_model_summary is False
    assert options.num_sanity_val_steps == 0
    assert options.log_every_n_steps == 0


def test_barebones_contradicts_a_checkpoint_callback() -> None:
    with pytest.raises(ValueError, match="barebones=True"):
        TrainerOptions(barebones=True, callbacks=[ModelCheckpoint()])


def test_barebones_lists_everything_that_contradicts_it() -> None:
    with pytest.raises(ValueError, match="logger=True, enable_progress_bar=True, fast_dev_run=2"):
        TrainerOptions(barebones=True, fast_dev_run=2, enable_progress_bar=True, logger=True)


def test_barebones_accepts_what_it_turns_off_when_it_is_off() -> None:
    assert TrainerOptions(barebones=True, logger=[], num_sanity_val_steps=0).logger is False


def test_plugins_may_be_one_precision_and_one_checkpoint_io() -> None:
    precision, io = Precision(), CheckpointIO()
    assert TrainerOptions(plugins=io).plugins == [io]
    assert TrainerOptions(plugins=[precision, io]).plugins == [precision, io]


def test_two_plugins_of_a_kind_are_refused() -> None:
    with pytest.raises(MisconfigurationError, match="2 of Precision"):
        TrainerOptions(plugins=[Precision(), DoublePrecision()])


def test_other_kinds_of_plugin_are_not_built() -> None:
    with pytest.raises(NotBuiltError, match=r"plugins=.* with a ClusterEnvironment"):
        TrainerOptions(plugins=[ClusterEnvironment()])  # type: ignore[list-item]


def test_a_precision_given_twice_is_refused() -> None:
    with pytest.raises(MisconfigurationError, match="precision='64-true' and the DoublePrecision in plugins"):
        TrainerOptions(precision=64, plugins=DoublePrecision())


def test_objects_stand_for_accelerator_and_strategy() -> None:
    accelerator, strategy = Accelerator(), Strategy("cpu")
    options = TrainerOptions(accelerator=accelerator, strategy=strategy)
    assert options.accelerator is accelerator
    assert options.strategy is strategy


WARNED: list[tuple[dict[str, Any], str, str]] = [
    ({"deterministic": True, "benchmark": True}, "LD172", "benchmark=True contradict"),
    ({"deterministic": "warn", "benchmark": True}, "LD172", "deterministic='warn'"),
    ({"overfit_batches": 2, "limit_train_batches": 0.5}, "LD173", "limit_train_batches=0.5 is ignored"),
    ({"overfit_batches": 2, "limit_val_batches": 3}, "LD173", "overfit_batches=2"),
    ({"overfit_batches": 1, "limit_val_batches": 1.0}, "LD173", "limit_val_batches=1.0"),
    ({"gradient_clip_algorithm": "value"}, "LD174", "gradient_clip_val=None"),
    ({"gradient_clip_algorithm": "value", "gradient_clip_val": 0}, "LD174", "gradient_clip_val=0"),
    ({"max_time": "00:01:00:00", "callbacks": [Timer("00:02:00:00")]}, "LD175", "max_time='00:01:00:00' is ignored"),
]


@pytest.mark.parametrize(("keywords", "identity", "message"), WARNED, ids=[case(keywords) for keywords, _, _ in WARNED])
def test_what_is_ignored_is_said_once(keywords: dict[str, Any], identity: str, message: str) -> None:
    with pytest.warns(LeydenWarning, match=rf"{re.escape(message)}.*\[{identity}\]"):
        TrainerOptions(**keywords)
    TrainerOptions(**keywords)  # a second warning would be an error


def test_limits_that_agree_with_overfit_batches_are_not_ignored() -> None:
    TrainerOptions(overfit_batches=2, limit_train_batches=2)
    TrainerOptions(overfit_batches=2, limit_train_batches=1, fast_dev_run=True)


@pytest.mark.parametrize(
    ("name", "old", "today"),
    [
        ("max_steps", None, -1),
        ("accelerator", None, "auto"),
        ("strategy", None, "auto"),
        ("devices", None, "auto"),
        ("profiler", False, None),
    ],
)
def test_values_of_lightning_1_are_read_with_a_warning(name: str, old: Any, today: Any) -> None:
    with pytest.warns(LeydenWarning, match=rf"Trainer\({name}={today!r}\).*\[LD171\]"):
        options = TrainerOptions(**{name: old})
    assert getattr(options, name) == today


def test_environment_variables_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
    assert TrainerOptions().max_epochs is None


@pytest.mark.parametrize("option", fields(TrainerOptions), ids=lambda option: option.name)
def test_every_default_passes_its_own_check_and_is_kept_as_it_is(option):
    # So nobody need check it where nothing is given.
    assert check_argument(option.name, option.default) is option.default
