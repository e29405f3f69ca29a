"""Keywords and attributes of Lightning 1.x: they work with one warning, or say what to use instead."""

from __future__ import annotations

import argparse
import inspect
import re
import warnings
from typing import Any

import pytest
import torch

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.callbacks.model_summary import ModelSummary
from leyden.core.datamodule import LightningDataModule
from leyden.legacy import METHOD_ARGUMENTS, accept, translate
from leyden.options import TrainerOptions
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, MisconfigurationError, NotBuiltError
from models import TinyModel, ValidatedModel, tiny_loader

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
    ("terminate_on_nan", True, {"on_nonfinite_loss": "stop"}, {}),
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


# Keywords of fit and its like.


QUIET = {
    **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
    **{"enable_checkpointing": False, "max_epochs": 1, "num_sanity_val_steps": 0},
}


def test_fit_takes_train_dataloader() -> None:
    trainer = Trainer(**QUIET)
    with pytest.warns(LeydenWarning, match=r"fit\(train_dataloader=.*fit\(train_dataloaders=.*\[LD250\]") as said:
        trainer.fit(TinyModel(), train_dataloader=tiny_loader(3))
    assert (trainer.global_step, len(said)) == (3, 1)


@pytest.mark.parametrize(("method", "keyword"), [("validate", "val_dataloaders"), ("test", "test_dataloaders")])
def test_evaluation_takes_its_old_keyword(method: str, keyword: str) -> None:
    trainer, model = Trainer(**QUIET), ValidatedModel()
    today = getattr(trainer, method)(model, dataloaders=tiny_loader(2), verbose=False)
    with pytest.warns(LeydenWarning, match=rf"{method}\({keyword}=.*{method}\(dataloaders=.*\[LD250\]") as said:
        old = getattr(trainer, method)(model, verbose=False, **{keyword: tiny_loader(2)})
    assert (old, len(said)) == (today, 1)


def test_the_old_keyword_and_the_new_one_are_too_many() -> None:
    with pytest.raises(MisconfigurationError, match="means train_dataloaders, which is given too"):
        Trainer(**QUIET).fit(TinyModel(), tiny_loader(1), train_dataloader=tiny_loader(1))


@pytest.mark.parametrize(
    ("method", "keyword", "today"),
    [
        ("fit", "val_dataloader", "val_dataloaders"),
        ("fit", "ckpt_pth", "ckpt_path"),
        ("validate", "dataloader", "dataloaders"),
        ("test", "data_module", "datamodule"),
        ("predict", "predict_dataloaders", "dataloaders"),
        ("predict", "return_prediction", "return_predictions"),
    ],
)
def test_an_unknown_keyword_of_a_method_gets_the_nearest_name(method: str, keyword: str, today: str) -> None:
    trainer = Trainer(**QUIET)
    expected = rf"trainer\.{method}\({keyword}=\.\.\.\) is unknown\. Did you mean '{today}'\?"
    with pytest.raises(TypeError, match=expected):
        getattr(trainer, method)(ValidatedModel(), **{keyword: None})


@pytest.mark.parametrize("method", METHOD_ARGUMENTS)
def test_the_names_to_choose_from_are_those_of_the_method(method: str) -> None:
    declared = inspect.signature(getattr(Trainer, method)).parameters
    assert set(METHOD_ARGUMENTS[method]) == set(declared) - {"self", "former"}


# Attributes of the Trainer.


@pytest.fixture(scope="module")
def fitted() -> Trainer:
    class Scheduled(ValidatedModel):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            self.log("train_loss", loss, prog_bar=True)
            return loss

    trainer = Trainer(**QUIET)
    trainer.fit(Scheduled(), tiny_loader(2), tiny_loader(1))
    return trainer


def seen_by_warning(trainer: Trainer, name: str, today: str) -> Any:
    """``trainer.name``, which must warn once and name ``today``."""
    with pytest.warns(
        LeydenWarning, match=rf"^trainer\.{name} is the old spelling of trainer\.{re.escape(today)}"
    ) as said:
        found = getattr(trainer, name)
    assert len(said) == 1
    return found


def test_lr_schedulers_are_dicts_with_their_scheduler(fitted: Trainer) -> None:
    (found,) = seen_by_warning(fitted, "lr_schedulers", "lr_scheduler_configs")
    assert found["scheduler"] is fitted.lr_scheduler_configs[0].scheduler
    assert (found["interval"], found["frequency"]) == ("epoch", 1)


@pytest.mark.parametrize(
    ("name", "today", "value"),
    [
        ("progress_bar_dict", "progress_bar_metrics", lambda t: t.progress_bar_metrics),
        ("num_gpus", "num_devices", lambda t: 0),
        ("gpus", "num_devices", lambda t: 0),
        ("root_gpu", "strategy.device", lambda t: None),
        ("data_parallel_device_ids", "device_ids", lambda t: t.device_ids),
        ("validated_ckpt_path", "ckpt_path", lambda t: None),
        ("tested_ckpt_path", "ckpt_path", lambda t: None),
        ("predicted_ckpt_path", "ckpt_path", lambda t: None),
        ("resume_from_checkpoint", "ckpt_path", lambda t: None),
        ("training_type_plugin", "strategy", lambda t: t.strategy),
        ("batch_idx", "fit_loop.batch_idx", lambda t: 1),
        ("total_batch_idx", "fit_loop.total_batch_idx", lambda t: 1),
        ("proc_rank", "global_rank", lambda t: 0),
        ("running_sanity_check", "sanity_checking", lambda t: False),
        ("disable_validation", "enable_validation", lambda t: False),
    ],
)
def test_an_old_attribute_is_there_and_names_todays(fitted: Trainer, name: str, today: str, value: Any) -> None:
    assert seen_by_warning(fitted, name, today) == value(fitted)


def test_the_old_loops_are_todays_views(fitted: Trainer) -> None:
    assert seen_by_warning(fitted, "train_loop", "fit_loop").total_batch_idx == 1
    assert seen_by_warning(fitted, "evaluation_loop", "validate_loop").max_batches == [1]


def test_get_model_is_a_method(fitted: Trainer) -> None:
    assert seen_by_warning(fitted, "get_model", "lightning_module")() is fitted.lightning_module


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("tpu_cores", "accelerator='cuda'"),
        ("ipus", "accelerator='cuda'"),
        ("weights_save_path", "trainer.checkpoint_callback.dirpath"),
        ("optimizer_frequencies", "'every': 5"),
        ("reset_train_dataloader", "reload_dataloaders_every_n_epochs=1"),
        ("reset_val_dataloader", "reload_dataloaders_every_n_epochs=1"),
        ("reset_train_val_dataloader", "reload_dataloaders_every_n_epochs=1"),
        ("reset_test_dataloader", r"trainer.test\(\)"),
        ("tune", "learning rate"),
        ("tuner", "learning rate"),
    ],
)
def test_an_attribute_that_is_gone_says_what_to_do(name: str, instead: str) -> None:
    with pytest.raises(AttributeError, match=rf"no attribute '{name}' any more.*{instead}"):
        getattr(Trainer(**QUIET), name)
    assert not hasattr(Trainer(**QUIET), name)


# The command line.


class Data(LightningDataModule):
    def __init__(self, data_dir: str = "data", batch_size: int = 16, shuffle: bool = False) -> None:
        super().__init__()
        self.given = (data_dir, batch_size, shuffle)


def read(words: str, *kinds: Any) -> argparse.Namespace:
    """What a script's parser makes of ``words``, with the options of ``kinds``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    for kind in kinds:
        with pytest.warns(LeydenWarning, match=rf"{kind.__name__}\.add_argparse_args\(\).*\[LD252\]") as said:
            parser = kind.add_argparse_args(parser)
        assert len(said) == 1
    return parser.parse_args(words.split())


def made(kind: Any, args: Any, **arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.from_argparse_args(args, **arguments)


def test_a_trainer_is_made_of_the_command_line() -> None:
    args = read("--max_epochs 3 --limit_val_batches 0.5 --lr 0.5 --precision bf16 --logger false", Trainer)
    trainer = made(Trainer, args, accelerator="cpu")
    assert (trainer.max_epochs, trainer.limit_val_batches, trainer.precision) == (3, 0.5, "bf16-mixed")
    assert (trainer.loggers, args.lr, args.max_steps) == ([], 0.5, -1)


def test_a_flag_may_stand_alone() -> None:
    assert made(Trainer, read("--fast_dev_run", Trainer), accelerator="cpu").max_steps == 1


def test_old_keywords_are_read_from_the_command_line_too() -> None:
    args = read("--gpus 0 --max_nb_epochs 2", Trainer)
    with pytest.warns(LeydenWarning) as said:
        trainer = Trainer.from_argparse_args(args, logger=False)
    assert (trainer.options.accelerator, trainer.max_epochs) == ("cpu", 2)
    assert [str(each.message)[-7:] for each in said] == ["[LD170]", "[LD170]"]


def test_help_lists_todays_options_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help", Trainer)
    shown = capsys.readouterr().out
    assert "--max_epochs" in shown
    assert "--gpus" not in shown


def test_what_the_script_passes_comes_before_the_command_line() -> None:
    args = read("--max_epochs 3", Trainer)
    args.callbacks = [EarlyStopping("loss")]
    trainer = made(Trainer, args, max_epochs=5, accelerator="cpu", logger=False)
    assert trainer.max_epochs == 5
    assert args.callbacks[0] in trainer.callbacks


def test_a_script_that_has_an_option_of_its_own_under_a_name_of_the_trainers_keeps_it() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_epochs", type=int, default=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = Trainer.add_argparse_args(parser)
    assert parser.parse_args([]).max_epochs == 7


def test_parse_argparser_reads_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max_epochs", type=int)
    monkeypatch.setattr("sys.argv", ["script.py", "--max_epochs", "4"])
    assert Trainer.parse_argparser(parser).max_epochs == 4
    assert made(Trainer, parser, accelerator="cpu", logger=False).max_epochs == 4


def test_a_datamodule_is_made_of_the_command_line() -> None:
    args = read("--data_dir 7 --batch_size 8 --shuffle --max_epochs 1", Trainer, Data)
    assert made(Data, args).given == ("7", 8, True)
    assert made(Data, args, batch_size=4).given == ("7", 4, True)


# Names of packages.


@pytest.mark.parametrize(
    ("package", "name", "instead"),
    [
        ("leyden", "metrics", "torchmetrics"),
        ("leyden", "TrainResult", "self.log"),
        ("leyden", "EvalResult", "self.log"),
        ("leyden", "LightningLite", "leyden.Fabric"),
        ("leyden.loggers", "LoggerCollection", "trainer.loggers"),
        ("leyden.loggers", "TestTubeLogger", "TensorBoardLogger"),
        ("leyden.loggers", "LightningLoggerBase", "leyden.loggers.Logger"),
        ("leyden.callbacks", "GPUStatsMonitor", "."),
        ("leyden.callbacks", "ProgressBarBase", "ProgressBar"),
        ("leyden.callbacks", "QuantizationAwareTraining", "torch.ao.quantization"),
    ],
)
def test_a_name_that_is_gone_says_what_to_use(package: str, name: str, instead: str) -> None:
    with pytest.raises(ImportError, match=rf"{package}\.{name} .*{instead}"):
        exec(f"from {package} import {name}")


@pytest.mark.parametrize("name", ["dp", "ddp2", "horovod", "ddp_sharded", "fairscale", "bagua", "colossalai"])
def test_a_strategy_that_is_gone_names_todays(name: str) -> None:
    with pytest.raises(MisconfigurationError, match=rf"strategy='{name}' is gone since Lightning 2\. Give strategy='"):
        Trainer(strategy=name)


# Arguments of callbacks.


@pytest.mark.parametrize("name", ["filepath", "prefix", "period", "every_n_val_epochs"])
def test_an_argument_that_model_checkpoint_has_no_more_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        ModelCheckpoint(**{name: None})  # type: ignore[arg-type]


def test_early_stopping_must_be_told_what_to_monitor() -> None:
    with pytest.raises(TypeError, match="monitor"):
        EarlyStopping()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [ModelCheckpoint, EarlyStopping])
def test_a_mode_that_guesses_is_refused(kind: Any) -> None:
    with pytest.raises(MisconfigurationError, match=r"mode='auto'.*'min'.*'max'"):
        kind(monitor="val_loss", mode="auto")
