"""Keywords of Lightning 1.x: the Trainer takes them with one warning, or says what to use instead."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.callbacks.model_summary import ModelSummary
from leyden.legacy import accept, translate
from leyden.options import TrainerOptions
from leyden.utils.errors import LeydenWarning, MisconfigurationError, NotBuiltError

# The old keyword and its value, what it means to the Trainer, and to fit.
TRANSLATED: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
    ("gpus", 1, {"accelerator": "gpu", "devices": 1}, {}),
    ("gpus", -1, {"accelerator": "gpu", "devices": -1}, {}),
    ("gpus", "0,1", {"accelerator": "gpu", "devices": "0,1"}, {}),
    ("gpus", [0, 1], {"accelerator": "gpu", "devices": [0, 1]}, {}),
    ("gpus", 0, {"accelerator": "cpu"}, {}),
    ("num_processes", 2, {"accelerator": "cpu", "devices": 2}, {}),
    ("distributed_backend", "ddp", {"strategy": "ddp"}, {}),
    ("distributed_backend", "ddp_cpu", {"accelerator": "cpu", "strategy": "ddp"}, {}),
    ("replace_sampler_ddp", False, {"use_distributed_sampler": False}, {}),
    ("nb_gpu_nodes", 1, {"num_nodes": 1}, {}),
    ("use_amp", True, {"precision": 16}, {}),
    ("resume_from_checkpoint", "last.ckpt", {}, {"ckpt_path": "last.ckpt"}),
    ("checkpoint_callback", False, {"enable_checkpointing": False}, {}),
    ("checkpoint_callback", True, {"enable_checkpointing": True}, {}),
    ("progress_bar_refresh_rate", 0, {"enable_progress_bar": False}, {}),
    ("show_progress_bar", False, {"enable_progress_bar": False}, {}),
    ("weights_summary", None, {"enable_model_summary": False}, {}),
    ("default_save_path", "runs", {"default_root_dir": "runs"}, {}),
    ("reload_dataloaders_every_epoch", True, {"reload_dataloaders_every_n_epochs": 1}, {}),
    ("terminate_on_nan", True, {"detect_anomaly": True}, {}),
    ("print_nan_grads", True, {"detect_anomaly": True}, {}),
    ("row_log_interval", 10, {"log_every_n_steps": 10}, {}),
    ("max_nb_epochs", 3, {"max_epochs": 3}, {}),
    ("min_nb_epochs", 2, {"min_epochs": 2}, {}),
    ("nb_sanity_val_steps", 5, {"num_sanity_val_steps": 5}, {}),
    ("gradient_clip", 0.5, {"gradient_clip_val": 0.5}, {}),
    ("train_percent_check", 0.1, {"limit_train_batches": 0.1}, {}),
    ("val_percent_check", 1, {"limit_val_batches": 1.0}, {}),
    ("test_percent_check", 0.5, {"limit_test_batches": 0.5}, {}),
    ("overfit_pct", 0.01, {"overfit_batches": 0.01}, {}),
]

# Values that ask for what is done anyway.
DROPPED: list[tuple[str, Any]] = [
    ("gpus", None),
    ("num_processes", 1),
    ("distributed_backend", None),
    ("auto_select_gpus", False),
    ("tpu_cores", None),
    ("ipus", None),
    ("hpus", None),
    ("amp_backend", "native"),
    ("amp_level", "O2"),
    ("use_amp", False),
    ("resume_from_checkpoint", None),
    ("early_stop_callback", False),
    ("weights_summary", "top"),
    ("weights_save_path", None),
    ("progress_bar_refresh_rate", None),
    ("process_position", 0),
    ("reload_dataloaders_every_epoch", False),
    ("terminate_on_nan", False),
    ("track_grad_norm", -1),
    ("flush_logs_every_n_steps", 100),
    ("log_save_interval", None),
    ("log_gpu_memory", None),
    ("move_metrics_to_cpu", False),
    ("prepare_data_per_node", True),
    ("multiple_trainloader_mode", "max_size_cycle"),
    ("stochastic_weight_avg", False),
    ("auto_lr_find", False),
    ("auto_scale_batch_size", None),
    ("truncated_bptt_steps", None),
]

REFUSED: list[tuple[str, Any, type[Exception], str]] = [
    ("auto_select_gpus", True, TypeError, r"devices=\[0\]"),
    ("tpu_cores", 8, NotBuiltError, "'cuda', 'mps' or 'cpu'"),
    ("ipus", 4, NotBuiltError, "'cuda', 'mps' or 'cpu'"),
    ("hpus", 1, NotBuiltError, "'cuda', 'mps' or 'cpu'"),
    ("distributed_backend", "dp", TypeError, "strategy='ddp'"),
    ("distributed_backend", "horovod", TypeError, "strategy='ddp'"),
    ("distributed_backend", "nonsense", TypeError, "strategy='auto'"),
    ("amp_backend", "apex", TypeError, "precision='16-mixed'"),
    ("checkpoint_callback", "best", TypeError, r"callbacks=\[ModelCheckpoint"),
    ("early_stop_callback", True, TypeError, r"EarlyStopping\(monitor='val_loss'\)"),
    ("weights_summary", "all", TypeError, "max_depth=1"),
    ("process_position", 1, TypeError, "leave it out"),
    ("track_grad_norm", 2, TypeError, "get_total_norm"),
    ("flush_logs_every_n_steps", 10, TypeError, "CSVLogger"),
    ("log_save_interval", 10, TypeError, "CSVLogger"),
    ("log_gpu_memory", "all", NotBuiltError, "memory_allocated"),
    ("move_metrics_to_cpu", True, TypeError, r"\.cpu\(\)"),
    ("multiple_trainloader_mode", "min_size", TypeError, "CombinedLoader"),
    ("stochastic_weight_avg", True, NotBuiltError, "swa_utils"),
    ("auto_lr_find", True, NotBuiltError, "learning rate"),
    ("auto_lr_find", "lr", NotBuiltError, "learning rate"),
    ("auto_scale_batch_size", "power", NotBuiltError, "batch_size"),
    ("truncated_bptt_steps", 5, TypeError, "automatic_optimization = False"),
    ("min_time", "00:01:00:00", NotBuiltError, "min_epochs or min_steps"),
]


def quietly(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``accept(given)`` without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return accept(given)


@pytest.mark.parametrize(("name", "value", "options", "fit"), TRANSLATED)
def test_an_old_keyword_is_read_and_its_new_spelling_named(
    name: str, value: Any, options: dict[str, Any], fit: dict[str, Any]
) -> None:
    with pytest.warns(LeydenWarning) as said:
        assert translate({name: value}) == (options, fit)
    assert len(said) == 1
    message = str(said[0].message)
    assert message.startswith(f"Trainer({name}={value!r}) is the old spelling of ")
    assert message.endswith(" [LD170]")
    for new, meant in (options | fit).items():
        assert f"{new}={meant!r}" in message


@pytest.mark.parametrize(("name", "value"), DROPPED)
def test_an_old_keyword_that_asks_for_nothing_is_dropped_with_a_warning(name: str, value: Any) -> None:
    with pytest.warns(LeydenWarning, match=rf"Trainer\({name}={re.escape(repr(value))}\) .*\[LD170\]") as said:
        assert translate({name: value}) == ({}, {})
    assert len(said) == 1


@pytest.mark.parametrize(("name", "value", "error", "message"), REFUSED)
def test_an_old_keyword_without_counterpart_says_what_to_use(
    name: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refusal:
        translate({name: value})
    assert f"{name}={value!r}" in str(refusal.value)


def test_a_misspelt_keyword_gets_the_nearest_name() -> None:
    with pytest.raises(TypeError, match=r"^Trainer\(max_epoch=\.\.\.\) is unknown\. Did you mean 'max_epochs'\?$"):
        translate({"max_epoch": 3})


def test_every_unknown_keyword_is_named() -> None:
    with pytest.raises(TypeError, match=r"Trainer\(qqq=\.\.\.\) is unknown\. Trainer\(precison=\.\.\.\).*'precision'"):
        translate({"qqq": 2, "gpus": 1, "precison": 16})


def test_arguments_of_fit_are_sent_there() -> None:
    with pytest.raises(TypeError, match=r"Trainer\(ckpt_path=\.\.\.\).*argument of trainer\.fit"):
        translate({"ckpt_path": "last.ckpt"})


def test_todays_arguments_pass_without_a_word() -> None:
    given = {"max_epochs": 3, "precision": 16, "logger": False}
    assert accept(given) == (given, {})


def test_old_and_new_arguments_are_put_together() -> None:
    options, fit = quietly({"max_epochs": 5, "gpus": 1, "resume_from_checkpoint": "a.ckpt"})
    assert options == {"max_epochs": 5, "accelerator": "gpu", "devices": 1}
    assert fit == {"ckpt_path": "a.ckpt"}


def test_an_argument_at_its_default_gives_way_to_the_old_keyword() -> None:
    options, _ = quietly({"gpus": 1, "accelerator": None, "devices": "auto"})
    assert options == {"accelerator": "gpu", "devices": 1}


def test_an_old_keyword_must_not_contradict_a_new_one() -> None:
    with pytest.raises(MisconfigurationError, match=r"gpus=2.* means devices=2, but devices=4"):
        quietly({"gpus": 2, "devices": 4})


def test_two_old_keywords_must_not_contradict_each_other() -> None:
    with pytest.raises(MisconfigurationError, match=r"accelerator='cpu'.*accelerator='gpu'"):
        quietly({"gpus": 2, "num_processes": 2})


def test_gpus_with_a_strategy_as_accelerator_is_told_about_strategies() -> None:
    options, _ = quietly({"gpus": 2, "accelerator": "ddp"})
    with pytest.raises(MisconfigurationError, match="Give strategy='ddp' instead"):
        TrainerOptions(**options)


def test_callbacks_of_old_keywords_join_those_in_the_list() -> None:
    saving, stopping, given = ModelCheckpoint(), EarlyStopping(monitor="val_loss"), EarlyStopping(monitor="loss")
    options, _ = quietly({"checkpoint_callback": saving, "callbacks": given, "early_stop_callback": stopping})
    assert options["callbacks"] == [given, saving, stopping]


def test_a_refresh_rate_in_batches_is_dropped_for_one_in_seconds() -> None:
    with pytest.warns(LeydenWarning, match=r"refresh_rate=20\) counts batches.*ProgressBar\(refresh_every=0\.1\)"):
        assert accept({"progress_bar_refresh_rate": 20}) == ({}, {})


def test_a_full_summary_becomes_a_summary_of_every_depth() -> None:
    with pytest.warns(LeydenWarning, match=r"callbacks=\[ModelSummary\(max_depth=-1\)\]"):
        options, _ = accept({"weights_summary": "full"})
    assert [callback.max_depth for callback in options["callbacks"] if isinstance(callback, ModelSummary)] == [-1]


def test_weights_save_path_becomes_the_folder_of_a_model_checkpoint() -> None:
    with pytest.warns(LeydenWarning, match=r"callbacks=\[ModelCheckpoint\(dirpath='weights'\)\]"):
        options, _ = accept({"weights_save_path": "weights"})
    (callback,) = options["callbacks"]
    assert isinstance(callback, ModelCheckpoint)
    assert str(callback.dirpath).endswith("weights")


def test_weights_save_path_beside_a_checkpoint_callback_is_refused() -> None:
    with pytest.raises(MisconfigurationError, match=r"Leave weights_save_path out and give the callback dirpath="):
        quietly({"weights_save_path": "weights", "callbacks": [ModelCheckpoint(monitor="loss")]})


def test_each_old_keyword_warns_once() -> None:
    with pytest.warns(LeydenWarning) as said:
        translate({"gpus": 1, "max_nb_epochs": 2})
        translate({"gpus": 2})
    assert len(said) == 2
