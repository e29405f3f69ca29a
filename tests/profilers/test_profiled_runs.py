"""Trainer(profiler=...): what is measured in a run, by which names, and when the report comes."""

from __future__ import annotations

import gc

import pytest
import torch

import leyden
from leyden.core.callback import Callback
from leyden.core.datamodule import LightningDataModule
from leyden.profilers.advanced import AdvancedProfiler
from leyden.profilers.profiler import PassThroughProfiler, Profiler
from leyden.profilers.simple import SimpleProfiler
from leyden.profilers.torch import PyTorchProfiler
from leyden.trainer import Trainer
from leyden.utils.errors import MisconfigurationError, NotBuiltError
from models import TinyModel, ValidatedModel, tiny_loader


def quiet(**options):
    bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{"max_epochs": 2, "accelerator": "cpu", **bare, **options})


class Recorder(Profiler):
    """Writes down what it is told."""

    def __init__(self):
        super().__init__()
        self.seen, self.open = [], []

    def start(self, action_name):
        self.seen.append(action_name)
        self.open.append(action_name)

    def stop(self, action_name):
        assert self.open.pop() == action_name  # actions lie inside each other

    def setup(self, stage, local_rank=None, log_dir=None):
        super().setup(stage, local_rank, log_dir)
        self.seen.append(f"setup {stage}")

    def describe(self):
        self.seen.append("describe")

    def teardown(self, stage=None):
        self.seen.append(f"teardown {stage}")


def actions_of(model=None, *loaders, **options):
    recorder = Recorder()
    quiet(profiler=recorder, **options).fit(model or TinyModel(), *(loaders or [tiny_loader(4)]))
    assert recorder.open == []
    return recorder.seen


def test_a_training_batch_is_measured_part_by_part():
    seen = actions_of()
    first = seen.index("run_training_batch")
    parts = ["training_step", "optimizer_zero_grad", "backward", "optimizer_step", "[training] next batch"]
    assert seen[first + 1 : first + 6] == parts
    assert seen.count("run_training_epoch") == 2
    assert [seen.count(part) for part in parts] == [8, 8, 8, 8, 10]  # an epoch's last fetch finds the end


def test_the_run_is_framed_by_setup_report_and_teardown():
    seen = actions_of()
    assert seen[0] == "setup fit"
    assert seen[-2:] == ["describe", "teardown fit"]


def test_validation_lies_inside_training_and_the_sanity_check_outside():
    recorder = Recorder()
    quiet(profiler=recorder, max_epochs=1).fit(ValidatedModel(), tiny_loader(4), tiny_loader(3))
    count = recorder.seen.count
    assert count("run_sanity_check_batch") == 2
    assert count("run_validation_batch") == 3
    assert count("validation_step") == 5


def test_hooks_are_measured_by_kind_class_and_name():
    class Watcher(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pass

    class Net(TinyModel):
        def on_train_start(self):
            pass

    class Data(LightningDataModule):
        def train_dataloader(self):
            return tiny_loader(1)

    recorder = Recorder()
    quiet(profiler=recorder, callbacks=[Watcher()]).fit(Net(), datamodule=Data())
    assert recorder.seen.count("[Callback]Watcher.on_train_epoch_end") == 2
    assert recorder.seen.count("[LightningModule]Net.on_train_start") == 1
    assert recorder.seen.count("[LightningDataModule]Data.setup") == 1
    assert recorder.seen.count("[LightningModule]Net.configure_optimizers") == 1
    assert "[Callback]Watcher.on_train_start" not in recorder.seen  # nobody wrote one


def test_clipping_schedulers_checkpoints_and_transfer_are_measured(tmp_path):
    class Net(TinyModel):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    seen = actions_of(Net(), gradient_clip_val=1.0, enable_checkpointing=True, default_root_dir=tmp_path)
    assert seen.count("clip_gradients") == 8
    assert seen.count("lr_scheduler_step") == 2
    assert seen.count("save_checkpoint") == 2
    assert seen.count("transfer_batch_to_device") == 8
    assert seen.count("[Strategy]Strategy.setup_module") == 1


def test_accumulation_steps_and_clears_once_a_window():
    seen = actions_of(accumulate_grad_batches=4)
    counts = {name: seen.count(name) for name in ("backward", "optimizer_step", "optimizer_zero_grad")}
    assert counts == {"backward": 8, "optimizer_step": 2, "optimizer_zero_grad": 2}


def test_manual_optimization_is_measured():
    class Manual(TinyModel):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    seen = actions_of(Manual())
    assert [seen.count(name) for name in ("training_step", "backward", "optimizer_step")] == [8, 8, 8]


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_the_other_methods_are_measured(method):
    recorder = Recorder()
    getattr(quiet(profiler=recorder), method)(ValidatedModel(), tiny_loader(3))
    word = {"validate": "validation"}.get(method, method)
    assert recorder.seen.count(f"run_{word}_batch") == recorder.seen.count(f"{word}_step") == 3
    assert recorder.seen[-2:] == ["describe", f"teardown {method}"]


def test_the_module_measures_parts_of_its_own():
    class Net(TinyModel):
        def training_step(self, batch, batch_idx):
            with self.trainer.profiler.profile("my part"):
                return self.loss(batch)

    assert actions_of(Net()).count("my part") == 8
    quiet().fit(Net(), tiny_loader(1))  # without a profiler it costs next to nothing


def test_profiling_changes_no_weight():
    plain, measured = TinyModel(), TinyModel()
    quiet().fit(plain, tiny_loader(4))
    quiet(profiler=SimpleProfiler()).fit(measured, tiny_loader(4))
    for one, other in zip(plain.parameters(), measured.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["simple", "advanced"])
def test_a_failed_run_reports_too(name, capsys):
    class Failing(TinyModel):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("no more")
            return self.loss(batch)

    trainer = quiet(profiler=name)
    with pytest.raises(RuntimeError, match="no more"):
        trainer.fit(Failing(), tiny_loader(4))
    gc.collect()
    assert "backward" in capsys.readouterr().out
    trainer.fit(TinyModel(), tiny_loader(4))  # and the profiler can be used again
    assert "run_training_epoch" in capsys.readouterr().out


def test_a_run_that_stops_within_an_epoch_stops_its_actions():
    seen = actions_of(max_steps=3)
    assert seen.count("run_training_batch") == 3


@pytest.mark.parametrize(
    ("name", "kind"), [("simple", SimpleProfiler), ("advanced", AdvancedProfiler), ("pytorch", PyTorchProfiler)]
)
def test_names_make_profilers(name, kind):
    trainer = quiet(profiler=name)
    assert type(trainer.profiler) is kind
    assert trainer.profiler is trainer.profiler


def test_without_one_there_is_a_profiler_that_does_nothing():
    assert type(quiet().profiler) is Profiler is PassThroughProfiler
    assert quiet().profiler.summary() == ""


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(MisconfigurationError, match=r"profiler='simpl' is unknown.*Did you mean 'simple'\?"):
        Trainer(profiler="simpl")


def test_xla_is_refused():
    with pytest.raises(NotBuiltError, match="TPUs are not supported"):
        Trainer(profiler="xla")
    with pytest.raises(ImportError, match="TPUs are not supported"):
        from leyden.profilers import XLAProfiler  # noqa: F401


def test_a_class_is_refused():
    with pytest.raises(TypeError, match=r"Call it: SimpleProfiler\(\.\.\.\)"):
        Trainer(profiler=SimpleProfiler)


def test_barebones_refuses_a_profiler():
    with pytest.raises(MisconfigurationError, match="barebones=True contradicts profiler='simple'"):
        Trainer(barebones=True, profiler="simple")


def test_the_package_has_the_names():
    assert leyden.profilers.SimpleProfiler is SimpleProfiler
    assert {"AdvancedProfiler", "PassThroughProfiler", "Profiler", "PyTorchProfiler"} < set(dir(leyden.profilers))
