"""The Trainer's arguments that no other test is about, and what can be read from a Trainer."""

import copy
import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import leyden
from leyden.options import TrainerOptions
from leyden.utils.errors import MisconfigurationError
from models import TinyModel, ValidatedModel, tiny_loader


def bare(**options):
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return leyden.Trainer(**{"max_epochs": 1, **off, **options})


def test_its_signature_is_that_of_the_options():
    signature = inspect.signature(leyden.Trainer)
    assert list(signature.parameters) == [field.name for field in fields(TrainerOptions)]
    assert {name: parameter.default for name, parameter in signature.parameters.items()} == {
        field.name: field.default for field in fields(TrainerOptions)
    }


@pytest.fixture
def determinism():
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=warn_only)
    torch.backends.cudnn.benchmark = before[1]


@pytest.mark.parametrize(("deterministic", "warn_only"), [(True, False), ("warn", True)])
def test_deterministic_turns_torchs_switch_and_benchmark_off(determinism, deterministic, warn_only):
    torch.backends.cudnn.benchmark = True
    bare(deterministic=deterministic)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only
    assert torch.backends.cudnn.benchmark is False


def test_deterministic_false_turns_it_off_and_none_leaves_it(determinism):
    torch.use_deterministic_algorithms(True)
    bare()
    assert torch.are_deterministic_algorithms_enabled()
    bare(deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("benchmark", [True, False])
def test_benchmark_is_cudnns_switch(determinism, benchmark):
    torch.backends.cudnn.benchmark = not benchmark
    bare(benchmark=benchmark)
    assert torch.backends.cudnn.benchmark is benchmark


@pytest.mark.parametrize("detect", [True, False])
def test_detect_anomaly_holds_for_the_run_alone(detect):
    seen = []

    class Sees(TinyModel):
        def training_step(self, batch, batch_idx):
            seen.append(torch.is_anomaly_enabled())
            return super().training_step(batch, batch_idx)

    bare(detect_anomaly=detect).fit(Sees(), tiny_loader(1))
    assert seen == [detect]
    assert not torch.is_anomaly_enabled()


def test_detect_anomaly_names_the_operation_whose_gradient_is_nan():
    class Nan(TinyModel):
        def training_step(self, batch, batch_idx):
            return (self.loss(batch) * 0).sqrt()

    with pytest.warns(UserWarning, match="Error detected in"), pytest.raises(RuntimeError, match="returned nan values"):
        bare(detect_anomaly=True).fit(Nan(), tiny_loader(1))


def test_logs_and_checkpoints_go_below_default_root_dir(tmp_path):
    leyden.Trainer(max_epochs=1, default_root_dir=tmp_path / "root").fit(TinyModel(), tiny_loader())
    assert (tmp_path / "root" / "lightning_logs" / "version_0" / "checkpoints" / "epoch=0-step=4.ckpt").exists()


def test_without_a_logger_checkpoints_go_there_directly(tmp_path):
    bare(default_root_dir=tmp_path / "root", enable_checkpointing=True).fit(TinyModel(), tiny_loader())
    assert (tmp_path / "root" / "checkpoints" / "epoch=0-step=4.ckpt").exists()


class Saves(TinyModel):
    def __init__(self, width=32):
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.parametrize("autolog", [True, False])
def test_enable_autolog_hparams_sends_them_to_the_loggers(tmp_path, autolog):
    bare(logger=True, default_root_dir=tmp_path, enable_autolog_hparams=autolog).fit(Saves(), tiny_loader())
    assert [path.read_text() for path in tmp_path.rglob("hparams.yaml")] == (["width: 32\n"] if autolog else [])


@pytest.mark.parametrize("name", ["use_distributed_sampler", "suggest_integrations"])
def test_what_makes_no_difference_on_one_process_gives_the_same_weights(name):
    weights = []
    for value in (True, False):
        model = TinyModel()
        bare(**{name: value}).fit(model, tiny_loader())
        weights.append(model.net[0].weight)
    assert torch.equal(*weights)


def test_before_a_run_there_is_nothing_to_see():
    trainer = bare()
    assert trainer.lightning_module is None and trainer.datamodule is None and trainer.train_dataloader is None
    assert trainer.val_dataloaders is None and trainer.test_dataloaders is None and trainer.predict_dataloaders is None
    assert (trainer.current_epoch, trainer.global_step, trainer.is_last_batch) == (0, 0, False)
    assert trainer.callback_metrics == trainer.logged_metrics == trainer.progress_bar_metrics == {}
    assert trainer.optimizers == trainer.lr_scheduler_configs == trainer.num_val_batches == []
    assert trainer.num_training_batches == float("inf")
    assert not (trainer.training or trainer.validating or trainer.testing or trainer.predicting or trainer.evaluating)


def test_on_one_process_it_is_the_first_and_only_one():
    trainer = bare()
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (1, 0, 0, 0)
    assert (trainer.num_nodes, trainer.num_devices, trainer.device_ids, trainer.is_global_zero) == (1, 1, [0], True)
    assert trainer.precision == "32-true" and trainer.precision_plugin.name == "32-true" and trainer.scaler is None


def test_the_flags_say_which_loop_is_running():
    seen = {}

    class Sees(ValidatedModel):
        def note(self, where):
            names = ("training", "validating", "testing", "predicting", "sanity_checking", "evaluating")
            seen[where] = [name for name in names if getattr(self.trainer, name)]

        def training_step(self, batch, batch_idx):
            self.note("training_step")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.note("sanity" if self.trainer.sanity_checking else "validation_step")

        def test_step(self, batch, batch_idx):
            self.note("test_step")

        def predict_step(self, batch, batch_idx):
            self.note("predict_step")

    trainer, model = bare(), Sees()
    trainer.fit(model, tiny_loader(), tiny_loader())
    trainer.test(model, tiny_loader())
    trainer.predict(model, tiny_loader())
    assert seen == {
        "sanity": ["sanity_checking"],
        "training_step": ["training"],
        "validation_step": ["validating", "evaluating"],
        "test_step": ["testing", "evaluating"],
        "predict_step": ["predicting"],
    }


def test_loaders_counts_and_optimizers_stay_to_be_seen_after_a_later_test():
    class Several(ValidatedModel):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val_loss", self.loss(batch))

    trainer, model = bare(), Several()
    train, val, test = tiny_loader(4), tiny_loader(3), tiny_loader(2)
    trainer.fit(model, train, [val, val])
    trainer.test(model, test, verbose=False)
    assert trainer.train_dataloader is train
    assert trainer.val_dataloaders == [val, val] and trainer.test_dataloaders is test
    assert (trainer.num_training_batches, trainer.num_val_batches, trainer.num_test_batches) == (4, [3, 3], [2])
    assert [type(optimizer) for optimizer in trainer.optimizers] == [torch.optim.SGD]


def test_the_callbacks_by_kind():
    callbacks = leyden.callbacks
    stop, save = callbacks.EarlyStopping("val_loss"), callbacks.ModelCheckpoint(monitor="val_loss")
    trainer = bare(callbacks=[save, stop], enable_checkpointing=True, enable_progress_bar=True)
    assert trainer.checkpoint_callback is save and trainer.checkpoint_callbacks == [save]
    assert trainer.early_stopping_callback is stop and trainer.early_stopping_callbacks == [stop]
    assert isinstance(trainer.progress_bar_callback, callbacks.ProgressBar)
    assert trainer.callbacks[-1] is save  # checkpoints come last, whatever order they were given in


def test_the_optimizers_can_be_replaced_when_fit_starts():
    class Replaces(leyden.Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.0)]

    model = TinyModel()
    before = model.net[0].weight.clone()
    bare(callbacks=[Replaces()]).fit(model, tiny_loader())
    assert torch.equal(model.net[0].weight, before)


def test_they_must_be_as_many_as_before():
    class Removes(leyden.Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.optimizers = []

    with pytest.raises(MisconfigurationError, match="has 1 optimizers, and 0 are to replace them"):
        bare(callbacks=[Removes()]).fit(TinyModel(), tiny_loader())


def test_init_module_makes_modules_in_the_trainers_number_type():
    with bare(precision="bf16-true").init_module():
        assert torch.nn.Linear(2, 2).weight.dtype is torch.bfloat16
    assert torch.get_default_dtype() is torch.float32


def test_an_empty_init_leaves_weights_as_their_memory_is():
    with bare().init_module(empty_init=True):
        torch.manual_seed(0)
        layer = torch.nn.Linear(64, 64)
        state = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())  # nothing was drawn
    assert layer.weight.shape == (64, 64)


def test_a_checkpoint_needs_a_model(tmp_path):
    with pytest.raises(AttributeError, match="needs a model"):
        bare().save_checkpoint(tmp_path / "early.ckpt")


def test_print_writes_to_stdout(capsys):
    bare().print("one", 2, sep="-")
    assert capsys.readouterr().out == "one-2\n"


def test_an_unknown_attribute_is_told_with_the_nearest_one():
    with pytest.raises(AttributeError, match=r"no attribute 'current_epochs'. Did you mean 'current_epoch'\?"):
        _ = bare().current_epochs


def test_fit_says_why_it_stopped(capfd):
    bare(max_steps=3).fit(TinyModel(), tiny_loader())
    assert "Trainer.fit stopped: max_steps=3 reached.\n" in capfd.readouterr().err


def test_nothing_is_left_in_the_working_directory_by_a_bare_trainer():
    bare().fit(TinyModel(), tiny_loader())
    assert list(Path.cwd().iterdir()) == []


def test_a_trainer_that_has_run_can_be_copied():
    trainer = leyden.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(TinyModel(), tiny_loader(2))
    copied = copy.deepcopy(trainer)
    assert copied.global_step == 2
    assert copied.optimizers[0] is not trainer.optimizers[0]
    assert trainer.lightning_module is not copied.lightning_module
