"""What changes in mid-run: optimizers, limits, schedulers, patched functions; what a resumed run still has to do."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import weakref

import pytest
import torch
from torch.utils.data import DataLoader

from leyden.callbacks import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.combined import CombinedLoader
from leyden.core.optimizers import LRSchedulerConfig
from leyden.utils.errors import MisconfigurationError, NonFiniteLossError
from models import TinyModel, ValidatedModel, tiny_data, tiny_loader
from recording import bare


class Unsized:
    """Batches of which nobody knows how many there are."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("fast", [True, False])
def test_three_datasets_that_are_added_up_are_read(fast):
    class Seeing(TinyModel):
        def training_step(self, batch, batch_idx):
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    seen: list[torch.Tensor] = []
    parts = [tiny_data(12, seed) for seed in range(3)]
    bare(max_epochs=1, fast_paths=fast).fit(Seeing(), DataLoader(parts[0] + parts[1] + parts[2], batch_size=9))
    assert torch.equal(torch.cat(seen), torch.cat([part.tensors[0] for part in parts]))


@pytest.mark.parametrize("hook", ["on_train_batch_start", "training_step"])
@pytest.mark.parametrize("index", [0, 3, 20])
def test_an_optimizer_that_is_replaced_in_a_batch_does_not_step_in_it_any_more(hook, index):
    class Replacing(TinyModel):
        def on_train_batch_start(self, batch, batch_idx):
            if hook == "on_train_batch_start":
                self.replace(batch_idx)

        def training_step(self, batch, batch_idx):
            if hook == "training_step":
                self.replace(batch_idx)
            return super().training_step(batch, batch_idx)

        def replace(self, batch_idx):
            if batch_idx == index:
                before.append(self.net[0].weight.detach().clone())
                self.trainer.optimizers = [torch.optim.SGD(self.parameters(), lr=0.0)]

    before: list[torch.Tensor] = []
    model = Replacing()
    bare(max_epochs=1).fit(model, list(tiny_loader(22)))
    assert torch.equal(model.net[0].weight, before[0])


def test_accumulation_that_is_set_as_a_batch_begins_holds_in_that_batch():
    class Setting(TinyModel):
        def on_train_batch_start(self, batch, batch_idx):
            steps.append(self.trainer.global_step)
            if batch_idx == 2:
                self.trainer.accumulate_grad_batches = 2

    steps: list[int] = []
    bare(max_epochs=1).fit(Setting(), list(tiny_loader(6)))
    assert steps == [0, 1, 2, 2, 3, 3]


def test_weights_that_lbfgs_has_moved_are_put_back_where_it_came_into_a_run_late():
    class Failing(TinyModel):
        calls = 0

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 18:
                self.trainer.optimizers = [torch.optim.LBFGS(self.parameters(), max_iter=5)]

        def training_step(self, batch, batch_idx):
            self.calls += batch_idx == 20
            return super().training_step(batch, batch_idx) * (math.nan if self.calls == 3 else 1)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.last = [parameter.detach().clone() for parameter in self.parameters()]

    model = Failing()
    with pytest.raises(NonFiniteLossError, match="The weights are as they were before this step"):
        bare(max_epochs=1).fit(model, list(tiny_loader(22)))
    assert all(map(torch.equal, model.parameters(), model.last))


def test_a_bad_loss_behind_a_replaced_optimizer_is_told_by_its_own_step_method():
    class Named(TinyModel):
        def training_step_main(self, batch):
            return self.loss(batch) * (math.nan if self.trainer.global_step == 20 else 1)

        def configure_optimizers(self):
            return {"main": torch.optim.SGD(self.parameters(), lr=0.1)}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 18:
                self.trainer.optimizers = [torch.optim.SGD(self.parameters(), lr=0.1)]

    with pytest.raises(NonFiniteLossError, match="for the optimizer 'main'") as caught:
        bare(max_epochs=1).fit(Named(), list(tiny_loader(22)))
    assert "it arises in training_step_main() itself" in str(caught.value)


@pytest.mark.parametrize("index", [0, 20])
def test_a_complex_loss_is_refused_in_words_in_whichever_step_it_comes(index):
    class Complex(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * (1 + 1j) if batch_idx == index else loss

    with pytest.raises((RuntimeError, MisconfigurationError), match=r"complex64|torch\.complex"):
        bare(max_epochs=1).fit(Complex(), list(tiny_loader(22)))


_PATCHING = """
import torch
real, seen = torch.Tensor.backward, []
def patched(self, *args, **options):
    seen.append(0)
    return real(self, *args, **options)
torch.Tensor.backward = patched
from models import TinyModel, tiny_loader
from recording import bare
bare(max_steps=3).fit(TinyModel(), tiny_loader(5))
print(len(seen))
"""


def test_whoever_patched_backward_before_leyden_was_imported_is_called():
    done = subprocess.run(
        [sys.executable, "-c", _PATCHING],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert done.stdout.split()[-1] == "3"


_PROFILED = """
import sys
from leyden.profilers import SimpleProfiler
from models import TinyModel, tiny_loader
from recording import bare
class Seeing(SimpleProfiler):
    def start(self, action):
        self.before = "torch._dynamo" in sys.modules
        super().start(action)
    def stop(self, action):
        super().stop(action)
        if "torch._dynamo" in sys.modules and not self.before and action.startswith("optimizer_"):
            print("imported in", action)
bare(max_steps=3, profiler=Seeing()).fit(TinyModel(), tiny_loader(5))
print("over")
"""


def test_no_profile_takes_the_import_of_torchs_compiler_for_time_of_the_optimizer():
    done = subprocess.run(
        [sys.executable, "-c", _PROFILED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert "imported in" not in done.stdout
    assert done.stdout.rstrip().endswith("over")


def test_whoever_patches_backward_while_a_run_goes_on_is_called(monkeypatch):
    real, seen = torch.Tensor.backward, []

    def patched(self, *args, **options):
        seen.append(self.ndim)
        real(self, *args, **options)

    class Patching(TinyModel):
        def on_train_start(self):
            monkeypatch.setattr(torch.Tensor, "backward", patched)

    bare(max_epochs=1).fit(Patching(), list(tiny_loader(20)))
    assert len(seen) == 20


def test_a_scheduler_that_is_added_in_mid_epoch_steps_from_then_on():
    class Adding(TinyModel):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 2:
                scheduler = torch.optim.lr_scheduler.StepLR(self.trainer.optimizers[0], 1, 0.5)
                config = LRSchedulerConfig(scheduler, interval="step")
                self.trainer._run.turn_of[id(config)] = self.trainer._run.turns[0]
                self.trainer.lr_scheduler_configs.append(config)

    trainer = bare(max_epochs=1)
    trainer.fit(Adding(), list(tiny_loader(6)))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1 / 2**4


def test_a_batch_as_the_loader_gave_it_is_let_go_where_the_model_works_on_another():
    class Fresh:
        def __iter__(self):
            for _ in range(4):
                alive.append(sum(one() is not None for one in given))
                batch = (torch.randn(4, 32), torch.zeros(4, dtype=torch.int64))
                given.append(weakref.ref(batch[0]))
                yield batch
                del batch

        def __len__(self):
            return 4

    class Moving(TinyModel):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 2, batch[1]

    given: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    bare(max_epochs=1).fit(Moving(), Fresh())
    assert alive == [0, 1, 1, 1]  # one is read ahead


def test_a_combined_loader_without_a_length_is_saved_in_mid_epoch(tmp_path):
    class Both(TinyModel):
        def training_step(self, batch, batch_idx):
            return self.loss(batch[0]) + self.loss(batch[1])

    batches = list(tiny_loader(6))
    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=4)
    loader = CombinedLoader([batches, Unsized(batches[:-1])], "max_size_cycle")
    bare(max_epochs=1, callbacks=[saving], enable_checkpointing=True).fit(Both(), loader)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=0-step=4.ckpt"]


@pytest.mark.parametrize("known", [True, False])
def test_a_validation_at_the_end_of_an_epoch_that_a_signal_broke_off_is_run_by_the_resumed_fit(tmp_path, known):
    class Stopping(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 8:
                os.kill(os.getpid(), signal.SIGTERM)

    class Seeing(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append((trainer.current_epoch, trainer.global_step))

    def fit(*callbacks, **options):
        seen.clear()
        loader = tiny_loader(4) if known else Unsized(list(tiny_loader(4)))
        saving = ModelCheckpoint(dirpath=tmp_path, save_top_k=0)
        trainer = bare(max_epochs=2, callbacks=[Seeing(), saving, *callbacks], enable_checkpointing=True)
        trainer.fit(ValidatedModel(), loader, tiny_loader(2), **options)
        return trainer.callback_metrics["val_loss"]

    seen: list[tuple[int, int]] = []
    whole = fit()
    with pytest.raises(SystemExit):
        fit(Stopping())
    resumed = fit(ckpt_path=tmp_path / "preempt.ckpt")
    assert seen[-1:] == [(1, 8)]
    assert torch.equal(resumed, whole)


def test_max_steps_that_are_set_in_mid_epoch_are_not_overrun():
    class Setting(TinyModel):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 2:
                self.trainer.max_steps = 5

    trainer = bare(max_epochs=1)
    trainer.fit(Setting(), list(tiny_loader(10)))
    assert trainer.global_step == 5
