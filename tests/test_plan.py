"""trainer.plan: what it says is what a fit of the same configuration then does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from leyden.callbacks.early_stopping import EarlyStopping
from leyden.callbacks.model_checkpoint import ModelCheckpoint
from leyden.core.callback import Callback
from leyden.core.hooks import HOOKS
from leyden.loggers.logger import DummyLogger, Logger
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import TinyModel, ValidatedModel, tiny_loader


class Recorder(Callback):
    """Writes down what a fit does."""

    def __init__(self) -> None:
        self.validations: list[int] = []
        self.rates: list[float] = []
        self.events: list[str] = []

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations.append(trainer.state.position.batch_total)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(float(optimizer.param_groups[0]["lr"]))


class Sent(Logger):
    """Keeps the x-axis of the training loss."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_metrics(self, metrics, step=None):
        if "train_loss" in metrics:
            self.steps.append(step)


class Asked(ModelCheckpoint):
    """Keeps the optimizer steps at which it asked for a checkpoint."""

    asked: list[int]

    def _ask(self, trainer, path, *rest):
        self.asked.append(trainer.global_step)
        return super()._ask(trainer, path, *rest)


class Scheduled(ValidatedModel):
    """ValidatedModel whose scheduler ``make`` makes of the optimizer."""

    def __init__(self, make: Any = None, interval: str = "epoch", **config: Any) -> None:
        super().__init__()
        self.make, self.config, self.scheduler = make, {"interval": interval, **config}, None

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if self.make is None:
            return optimizer
        self.scheduler = self.make(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler, **self.config}}


def trainer_of(tmp_path: Any = None, **options: Any) -> Trainer:
    bare = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    if tmp_path is None:
        bare["enable_checkpointing"] = False
    else:
        bare["default_root_dir"] = tmp_path
    return Trainer(**bare | {"max_epochs": 2} | options)


def one_cycle(steps):
    return lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=steps)


CASES: list[tuple[str, dict[str, Any], Any, int]] = [
    ("plain", {}, lambda: Scheduled(), 5),
    ("steps", {"accumulate_grad_batches": 2}, lambda: Scheduled(one_cycle(6), "step"), 5),
    ("epochs", {"max_epochs": 3}, lambda: Scheduled(lambda o: CosineAnnealingLR(o, 3)), 5),
    ("broken off", {"max_steps": 7, "max_epochs": 4}, lambda: Scheduled(lambda o: StepLR(o, 2), "step"), 5),
    ("frequency", {"accumulate_grad_batches": 3}, lambda: Scheduled(lambda o: StepLR(o, 1), "step", frequency=2), 10),
    ("tail", {"accumulate_grad_batches": 4}, lambda: Scheduled(lambda o: StepLR(o, 1), "step", frequency=5), 10),
    ("by fraction", {"val_check_interval": 0.4}, lambda: Scheduled(), 5),
    ("across epochs", {"val_check_interval": 3, "check_val_every_n_epoch": None}, lambda: Scheduled(), 5),
    ("every other epoch", {"check_val_every_n_epoch": 2, "max_epochs": 5}, lambda: Scheduled(), 3),
    ("limited", {"limit_train_batches": 3, "limit_val_batches": 1}, lambda: Scheduled(), 5),
    ("few logged", {"log_every_n_steps": 4}, lambda: Scheduled(), 5),
    ("trial", {"fast_dev_run": 2, "max_epochs": None}, lambda: Scheduled(), 5),
    (
        "sequential",
        {},
        lambda: Scheduled(lambda o: SequentialLR(o, [LinearLR(o, 0.1), StepLR(o, 1)], [4]), "step"),
        5,
    ),
]


@pytest.mark.parametrize(("options", "make", "batches"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
@pytest.mark.parametrize("trigger", [{}, {"every_n_train_steps": 3}, {"save_on_train_epoch_end": False}])
def test_a_fit_does_what_was_planned(tmp_path, options, make, batches, trigger):
    recorder, sent, checkpoint = Recorder(), Sent(), Asked(save_top_k=-1, **trigger)
    checkpoint.asked = []
    model = make()
    trial = "fast_dev_run" in options
    trainer = trainer_of(tmp_path, **{"log_every_n_steps": 2} | options, logger=sent, callbacks=[recorder, checkpoint])
    plan = trainer.plan(model, tiny_loader(batches), tiny_loader(2))
    assert (recorder.rates, recorder.validations, sent.steps, checkpoint.asked) == ([], [], [], [])
    trainer.fit(model, tiny_loader(batches), tiny_loader(2))
    assert plan.whole
    assert plan.learning_rates == {"SGD": pytest.approx(recorder.rates, rel=1e-12)}
    assert plan.steps == trainer.global_step == len(recorder.rates)
    assert plan.validations == recorder.validations
    assert plan.checkpoints == {"Asked": checkpoint.asked}
    if not trial:
        assert plan.logged == sent.steps
    if model.scheduler is not None:
        assert plan.scheduler_steps == [model.scheduler.last_epoch]
    assert plan.end == trainer.state.stop_reason


def all_events(events: list[str]) -> Callback:
    """A callback that listens to every hook."""
    callback = type("Listener", (Callback,), {})()
    for name in HOOKS:
        setattr(callback, name, lambda *_, name=name: events.append(name))
    return callback


def test_the_order_of_events_is_the_fits(tmp_path):
    events: list[str] = []

    class Model(ValidatedModel):
        def training_step(self, batch, batch_idx):
            events.append("training_step")
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            events.append("validation_step")
            super().validation_step(batch, batch_idx)

    trainer = trainer_of(max_epochs=1, num_sanity_val_steps=1, callbacks=[all_events(events)])
    plan = trainer.plan(Model(), tiny_loader(1), tiny_loader(1))
    assert events == []
    trainer.fit(Model(), tiny_loader(1), tiny_loader(1))
    assert plan.hooks == events


def test_planning_leaves_no_trace(tmp_path):
    model = Scheduled(one_cycle(10), "step")
    trainer = trainer_of(tmp_path, logger=DummyLogger())
    weights, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    state, options, dirpath = repr(trainer.state), trainer.options, trainer.checkpoint_callback.dirpath
    loader = tiny_loader(5, shuffle=True)
    model.eval()
    trainer.plan(model, loader, tiny_loader(2))
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.scheduler.last_epoch == 0
    assert model.scheduler.optimizer.state == {}
    assert model.scheduler.optimizer.param_groups[0]["params"][0] is next(model.parameters())
    assert (repr(trainer.state), trainer.options, trainer.checkpoint_callback.dirpath) == (state, options, dirpath)
    assert trainer.optimizers == [] and trainer.lightning_module is None
    assert list(tmp_path.iterdir()) == []


def test_it_says_all_this_to_people(capsys, tmp_path):
    stopping = EarlyStopping(monitor="val_loss", patience=4)
    trainer = trainer_of(
        tmp_path,
        accumulate_grad_batches=2,
        logger=Sent(),
        log_every_n_steps=1,
        callbacks=[stopping, ModelCheckpoint(monitor="val_loss", save_top_k=2)],
    )
    model = Scheduled(one_cycle(6), "step")
    plan = trainer.plan(model, tiny_loader(5), tiny_loader(2))
    assert capsys.readouterr().out == f"{plan}\n"
    for line in (
        "training        2 epochs of 5 batches",
        "steps           6 optimizer steps, 3 an epoch, of 2 batches each",
        "end             max_epochs=2 reached",
        "                or before: EarlyStopping looks at val_loss (min) after each training epoch, patience 4",
        "sanity check    2 validation batches before training",
        "validation      2 times 2 batches, after training batch 5, 10",
        "step values     to Sent 6 times, at x = 0, 1, 2, 3, 4, 5",
        "checkpoints     ModelCheckpoint: considered 2 times, after step 3, 6; the best 2 kept by val_loss (min)",
        "scheduler       OneCycleLR after every optimizer step, 6 times",
        "    on_train_epoch_end                     EarlyStopping, ModelCheckpoint",
    ):
        assert line in str(plan).splitlines()
    rates = plan.learning_rates["SGD"]
    assert f"first {rates[0]:.4g}, last {rates[-1]:.4g}, least {min(rates):.4g}, most {max(rates):.4g}" in str(plan)
    assert repr(plan) == "Plan(epochs=2, steps=6, validations=2)"


def test_a_scheduler_that_watches_a_metric_is_left_alone():
    model = Scheduled(lambda o: ReduceLROnPlateau(o), monitor="val_loss")
    plan = trainer_of().plan(model, tiny_loader(5), tiny_loader(2))
    assert plan.scheduler_steps == [None]
    assert "ReduceLROnPlateau looks at val_loss after every epoch" in str(plan)
    assert set(plan.learning_rates["SGD"]) == {0.1}


def test_a_scheduler_that_cannot_be_copied_is_not_stepped(tmp_path):
    def make(optimizer):
        scheduler = StepLR(optimizer, 1)
        scheduler.notes = open(tmp_path / "notes", "w")  # noqa: SIM115
        return scheduler

    model = Scheduled(make)
    plan = trainer_of().plan(model, tiny_loader(5), tiny_loader(2))
    model.scheduler.notes.close()
    assert (plan.steps, plan.learning_rates, plan.scheduler_steps) == (10, {}, [2])
    assert "learning rate   not known: TypeError" in str(plan)
    assert model.scheduler.last_epoch == 0


def test_one_cycle_at_its_end_keeps_its_last_rate():
    stopping = EarlyStopping(monitor="val_loss")
    with pytest.warns(LeydenWarning, match="LD217"):
        plan = trainer_of(callbacks=[stopping]).plan(Scheduled(one_cycle(4), "step"), tiny_loader(5), tiny_loader(2))
    assert plan.scheduler_steps == [4]
    assert len(plan.learning_rates["SGD"]) == 10


def test_optimizers_that_take_turns_have_a_curve_each():
    class Turns(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return {"a": loss, "b": loss}

        def configure_optimizers(self):
            first = torch.optim.SGD(self.net[0].parameters(), lr=0.1)
            second = torch.optim.SGD(self.net[2].parameters(), lr=0.2)
            by_step = {"scheduler": StepLR(second, 1, 0.5), "interval": "step"}
            return {"a": first, "b": {"optimizer": second, "every": 2, "lr_scheduler": by_step}}

    plan = trainer_of(max_epochs=1).plan(Turns(), tiny_loader(5))
    assert plan.learning_rates == {"a": [0.1] * 5, "b": [0.2, 0.1]}
    assert (plan.steps, plan.scheduler_steps) == (5, [2])


def test_manual_optimization_is_not_foreseen():
    class Manual(TinyModel):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.optimizers().step()

    plan = trainer_of().plan(Manual(), tiny_loader(5))
    assert (plan.steps, plan.learning_rates, plan.epochs) == (None, {"SGD": []}, 2)
    assert "training_step takes them (manual optimization)" in str(plan)


def test_what_the_clock_decides_is_not_foreseen():
    plan = trainer_of(val_check_interval="00:00:10:00").plan(ValidatedModel(), tiny_loader(5), tiny_loader(1))
    assert plan.validations == []
    assert "validation      every 0:10:00" in str(plan)


def test_a_run_without_end_is_planned_in_part():
    plan = trainer_of(max_epochs=-1).plan(TinyModel(), tiny_loader(5))
    assert (plan.whole, plan.epochs, plan.steps) == (False, 10, 50)
    assert "not in sight" in str(plan)


def test_a_loader_without_length_is_planned_up_to_max_steps():
    plan = trainer_of(max_epochs=-1, max_steps=7).plan(TinyModel(), (batch for batch in tiny_loader(3)))
    assert (plan.whole, plan.epochs, plan.steps) == (True, 1, 7)


def test_a_run_that_goes_on_is_planned_from_where_it_stands():
    model = TinyModel()
    trainer = trainer_of(max_epochs=3, max_steps=7)
    trainer.fit(model, tiny_loader(5))
    trainer.options = trainer_of(max_epochs=3, max_steps=12).options
    plan = trainer.plan(model, tiny_loader(5))
    assert (plan.steps, plan.epochs, trainer.global_step) == (5, 2, 7)


def test_what_fit_refuses_plan_refuses_and_everybody_is_torn_down():
    class Model(TinyModel):
        down = False

        def configure_optimizers(self):
            return "adam"

        def teardown(self, stage):
            self.down = True

    model, trainer = Model(), trainer_of()
    with pytest.raises(MisconfigurationError, match="configure_optimizers may return"):
        trainer.plan(model, tiny_loader())
    assert model.down
    assert trainer.state.fn is None


# Schedulers whose total cannot match the run.


def test_one_cycle_that_is_too_short_is_refused_before_training():
    model = Scheduled(one_cycle(9), "step")
    with pytest.raises(MisconfigurationError, match=r"OneCycleLR\(total_steps\)=9 is too few.* steps it 10 times"):
        trainer_of(num_sanity_val_steps=0).fit(model, tiny_loader(5), tiny_loader(1))


def test_one_cycle_in_a_sequence_counts_with_the_milestone():
    def make(optimizer):
        return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=3), one_cycle(6)(optimizer)], [3])

    with pytest.raises(MisconfigurationError, match=r"together=9 is too few"):
        trainer_of().fit(Scheduled(make, "step"), tiny_loader(5), tiny_loader(1))


def test_one_cycle_that_is_too_short_may_be_meant_where_a_callback_ends_training():
    stopping = EarlyStopping(monitor="val_loss", stopping_threshold=1e9)
    model = Scheduled(one_cycle(9), "step")
    with pytest.warns(LeydenWarning, match=r"LD217"):
        trainer_of(callbacks=[stopping]).fit(model, tiny_loader(5), tiny_loader(1))


def test_one_cycle_that_goes_on_counts_what_is_left(tmp_path):
    path = str(tmp_path / "a.ckpt")
    first = trainer_of(max_epochs=1)
    first.fit(Scheduled(one_cycle(10), "step"), tiny_loader(5), tiny_loader(1))
    first.save_checkpoint(path)
    trainer_of(max_epochs=2).fit(Scheduled(one_cycle(10), "step"), tiny_loader(5), tiny_loader(1), ckpt_path=path)
    with pytest.raises(MisconfigurationError, match="=10 is too few: this run steps it 15 times"):
        trainer_of(max_epochs=3).fit(Scheduled(one_cycle(10), "step"), tiny_loader(5), tiny_loader(1), ckpt_path=path)


@pytest.mark.parametrize(
    ("make", "interval", "message"),
    [
        (lambda o: CosineAnnealingLR(o, 15), "epoch", r"CosineAnnealingLR\(T_max\)=15 fits the 15 optimizer steps"),
        (lambda o: PolynomialLR(o, 3), "step", r"PolynomialLR\(total_iters\)=3 fits the 3 epochs of this run"),
        (lambda o: LinearLR(o, total_iters=15), "epoch", r"LinearLR\(total_iters\)=15.*'interval': 'step'"),
    ],
)
def test_a_total_that_counts_the_other_interval_is_warned_of(make, interval, message):
    with pytest.warns(LeydenWarning, match=message + r".*\[LD215\]"):
        trainer_of(max_epochs=3).fit(Scheduled(make, interval), tiny_loader(5), tiny_loader(1))


def test_a_sequence_that_never_comes_to_its_last_scheduler_is_warned_of():
    def make(optimizer):
        return SequentialLR(optimizer, [LinearLR(optimizer, 0.1), StepLR(optimizer, 1)], [100])

    with pytest.warns(LeydenWarning, match=r"milestones=\[100\].*\[LD216\]"):
        trainer_of(max_epochs=3).fit(Scheduled(make), tiny_loader(5), tiny_loader(1))
