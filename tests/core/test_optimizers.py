"""What configure_optimizers may return, when schedulers step, and the optimizer that training code is given."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from leyden.core.optimizers import SteppingOptimizer, uniform
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from recording import Manual, Plain, bare, ones


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)


# Forms.


def test_every_form_comes_to_a_list_of_optimizers_and_a_list_of_schedulers():
    one, other = sgd(), sgd()
    of_one, of_other = StepLR(one, 1), StepLR(other, 1)
    forms: list[tuple[Any, list[Any], list[Any]]] = [
        (one, [one], []),
        ([one], [one], []),
        ((one, other), [one, other], []),
        (([one], [of_one]), [one], [of_one]),
        ([[one, other], [of_one, of_other]], [one, other], [of_one, of_other]),
        (([one], []), [one], []),
        ((one, of_one), [one], [of_one]),
        ((one, [of_one]), [one], [of_one]),
        ((one, {"scheduler": of_one}), [one], [of_one]),
        ({"optimizer": one}, [one], []),
        ({"optimizer": one, "lr_scheduler": of_one}, [one], [of_one]),
        ({"optimizer": one, "lr_scheduler": {"scheduler": of_one, "interval": "step"}}, [one], [of_one]),
        ({"optimizer": one, "lr_scheduler": None}, [one], []),
        (({"optimizer": one, "lr_scheduler": of_one}, {"optimizer": other}), [one, other], [of_one]),
    ]
    for returned, optimizers, schedulers in forms:
        found, configs = uniform(returned)
        assert (found, [config.scheduler for config in configs]) == (optimizers, schedulers), returned


def test_a_schedulers_dict_says_when_it_steps():
    optimizer = sgd()
    scheduler = ReduceLROnPlateau(optimizer)
    given = {"scheduler": scheduler, "interval": "step", "frequency": 3, "monitor": "v", "strict": False, "name": "lr"}
    _, [config] = uniform({"optimizer": optimizer, "lr_scheduler": given})
    assert {name: getattr(config, name) for name in given} == given
    assert config.reduce_on_plateau
    _, [config] = uniform({"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, 1)})
    assert (config.interval, config.frequency, config.monitor, config.strict) == ("epoch", 1, None, True)
    assert not config.reduce_on_plateau


def test_monitor_may_stand_beside_the_scheduler():
    optimizer = sgd()
    scheduler = ReduceLROnPlateau(optimizer)
    _, [config] = uniform({"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"})
    assert config.monitor == "val_loss"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: "adam", r"configure_optimizers may return an optimizer, .*; got str: 'adam'"),
        (lambda o: [], "got list"),
        (lambda o: [o, o, StepLR(o, 1)], "got "),
        (lambda o: ("adam", StepLR(o, 1)), "got "),
        (lambda o: (o, "step"), "'step' is not a scheduler"),
        (lambda o: {"optimiser": o}, r"unknown key 'optimiser'. .* Did you mean 'optimizer'\?"),
        (lambda o: {"optimizer": "adam"}, "the dict's 'optimizer' is 'adam'"),
        (lambda o: {"optimizer": o, "lr_scheduler": {"interval": "step"}}, "'scheduler' is None, not a scheduler"),
        (lambda o: (o, {"scheduler": StepLR(o, 1), "frequenzy": 2}), r"Did you mean 'frequency'\?"),
        (lambda o: (o, {"scheduler": StepLR(o, 1), "interval": "batch"}), "Choose 'epoch' or 'step'"),
        (lambda o: (o, {"scheduler": StepLR(o, 1), "frequency": 0}), "frequency=0 is not a whole number from 1"),
        (lambda o: (o, ReduceLROnPlateau(o)), "needs a metric to watch"),
        (lambda o: (o, StepLR(sgd(), 1)), "StepLR belongs to an optimizer that configure_optimizers does not return"),
    ],
)
def test_anything_else_is_refused_with_advice(make, message):
    with pytest.raises(MisconfigurationError, match=message):
        uniform(make(sgd()))


def test_one_cycle_by_epoch_is_warned_about():
    optimizer = sgd()
    with pytest.warns(LeydenWarning, match=r"OneCycleLR.*interval.*LD020"):
        uniform((optimizer, OneCycleLR(optimizer, 1.0, total_steps=10)))


class Configured(Plain):
    """Its optimizer, SGD with a rate of 1, and its schedulers are made by ``make(optimizer)``.

    Logs ``v``, one of ``values``, in every validation; notes the epoch and the batch index at every scheduler's step.
    """

    def __init__(self, make: Any, values: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.make, self.values = make, list(values)
        self.steps: list[tuple[int, int]] = []
        self.metrics: list[Any] = []

    def configure_optimizers(self):
        return self.make(torch.optim.SGD(self.parameters(), lr=1.0))

    def on_train_batch_start(self, batch, batch_idx):
        self.index = batch_idx

    def lr_scheduler_step(self, scheduler, metric):
        self.steps.append((self.current_epoch, self.index))
        self.metrics.append(None if metric is None else metric.item())
        super().lr_scheduler_step(scheduler, metric)

    def validation_step(self, batch, batch_idx):
        self.log("v", self.values.pop(0))


def trained(model: Any, train: Any = None, val: Any = None, **options: Any) -> Any:
    """A Trainer that has fitted ``model`` to ``train``, by default 5 batches; without ``val`` it does not validate."""
    trainer = bare(**({"limit_val_batches": 0} if val is None else {}) | options)
    trainer.fit(model, ones(5) if train is None else train, val)
    return trainer


def rate(trainer: Any) -> float:
    return trainer.optimizers[0].param_groups[0]["lr"]


def halving(**config: Any) -> Any:
    """Makes an optimizer with a scheduler that halves the rate every time it steps."""
    return lambda optimizer: (optimizer, {"scheduler": StepLR(optimizer, 1, gamma=0.5), **config})


# When they step.


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({}, [(0, 4), (1, 4), (2, 4)]),
        ({"frequency": 2}, [(1, 4)]),
        ({"interval": "step"}, [(epoch, index) for epoch in range(3) for index in range(5)]),
        ({"interval": "step", "frequency": 2}, [(epoch, index) for epoch in range(3) for index in (1, 3)]),
    ],
)
def test_a_scheduler_steps_by_epoch_or_by_step_at_its_frequency(config, steps):
    model = Configured(halving(**config))
    trainer = trained(model, max_epochs=3)
    assert model.steps == steps
    assert rate(trainer) == 0.5 ** len(steps)
    assert set(model.metrics) == {None}


def test_by_step_means_by_step_of_the_optimizer():
    model = Configured(halving(interval="step"))
    trained(model, accumulate_grad_batches=2)
    assert model.steps == [(0, 1), (0, 3), (0, 4)]


def test_a_scheduler_by_epoch_steps_before_the_hooks_of_the_last_batch():
    class Model(Configured):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.rates.append(rate(self.trainer))

    model = Model(halving())
    model.rates = []
    trained(model)
    assert model.rates == [1.0, 1.0, 1.0, 1.0, 0.5]


def test_an_epoch_that_is_broken_off_steps_no_scheduler_by_epoch():
    model = Configured(halving())
    trained(model, max_steps=3)
    assert model.steps == []


def test_several_schedulers_of_one_optimizer_all_step():
    def make(optimizer):
        return [optimizer], [StepLR(optimizer, 1, gamma=0.5), {"scheduler": StepLR(optimizer, 1), "interval": "step"}]

    model = Configured(make)
    trained(model)
    assert model.steps == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 4)]


def test_a_scheduler_of_ones_own_needs_no_more_than_step_and_a_state():
    class Own:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def step(self):
            self.optimizer.param_groups[0]["lr"] /= 10

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    assert rate(trained(Configured(lambda optimizer: (optimizer, Own(optimizer))), max_epochs=2)) == 0.01


def test_a_scheduler_adds_no_frame_between_the_loop_and_the_step():
    class Model(Configured):
        def training_step(self, batch, batch_idx):
            self.files = [frame.filename for frame in traceback.extract_stack()]
            return super().training_step(batch, batch_idx)

    model = Model(halving())
    trained(model)
    assert not [name for name in model.files if "torch/optim" in name]  # they wrap step, but do not need the closure


@pytest.mark.filterwarnings("ignore:.*LD291")
def test_in_manual_optimization_schedulers_are_the_steps_own_business():
    class Model(Manual):
        def on_train_epoch_end(self):
            by_epoch, by_step = self.lr_schedulers()
            assert (by_epoch.last_epoch, by_step.last_epoch) == (0, 0)
            by_epoch.step()

    trainer = trained(Model())
    assert [config.scheduler.last_epoch for config in trainer.lr_scheduler_configs] == [1, 0]


# Schedulers that watch a metric.


def plateau(monitor: str = "v", **config: Any) -> Any:
    def make(optimizer: Any) -> Any:
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": monitor, **config}}

    return make


def test_a_plateau_scheduler_steps_with_the_value_of_the_epochs_validation():
    model = Configured(plateau(), values=(3.0, 2.0, 2.5, 2.5))
    trainer = trained(model, None, ones(1), max_epochs=4)
    assert model.steps == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert model.metrics == [3.0, 2.0, 2.5, 2.5]
    assert rate(trainer) == 0.25


def test_a_plateau_scheduler_with_a_frequency_waits_for_its_epochs():
    model = Configured(plateau(frequency=2), values=(3.0, 2.0))
    trained(model, None, ones(1), max_epochs=4, check_val_every_n_epoch=2)
    assert model.metrics == [3.0, 2.0]


class LogsInTraining(Configured):
    """Logs the batch index as ``t`` by epoch and as ``s`` by step, and the epoch as ``e`` at its end."""

    def training_step(self, batch, batch_idx):
        self.log("t", float(batch_idx), on_step=False, on_epoch=True)
        self.log("s", float(batch_idx))
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        self.log("e", float(self.current_epoch))


@pytest.mark.parametrize(("monitor", "metrics"), [("t", [2.0, 2.0]), ("s", [4.0, 4.0]), ("e", [0.0, 1.0])])
def test_a_plateau_scheduler_may_watch_what_training_logs(monitor, metrics):
    model = LogsInTraining(plateau(monitor))
    trained(model, max_epochs=2)
    assert model.metrics == metrics


def test_a_plateau_scheduler_by_step_steps_whether_or_not_there_is_validation():
    model = LogsInTraining(plateau("s", interval="step", frequency=2))
    trained(model)
    assert (model.steps, model.metrics) == ([(0, 1), (0, 3)], [1.0, 3.0])


def test_a_plateau_scheduler_by_step_sees_the_validation_that_came_after_the_batch():
    model = Configured(plateau(interval="step", frequency=2), values=(3.0, 2.0))
    trained(model, ones(4), ones(1), val_check_interval=2)
    assert (model.steps, model.metrics) == ([(0, 1), (0, 3)], [3.0, 2.0])


class LogsALate(Configured):
    """Logs under a name that cannot be read off the source, and from the second epoch on."""

    def on_train_epoch_end(self):
        if self.current_epoch:
            self.log("".join(("la", "te")), 1.0)


def test_a_metric_that_is_missing_is_an_error_that_lists_what_there_is():
    with pytest.raises(MisconfigurationError, match=r"watches 'late', which was not logged. Logged: v"):
        trained(LogsALate(plateau("late"), values=(1.0,)), None, ones(1), max_epochs=2)


def test_a_metric_that_is_missing_is_a_warning_if_it_need_not_be_there():
    model = LogsALate(plateau("late", strict=False), values=(1.0, 1.0))
    with pytest.warns(LeydenWarning, match=r"'late', which was not logged.*does not step.*LD034"):
        trained(model, None, ones(1), max_epochs=2)
    assert model.metrics == [1.0]


# The optimizer that training code is given.


class UsesItsOptimizer(Manual):
    def __init__(self, use: Any) -> None:
        super().__init__()
        self.use = use

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.layer(batch).mean())
        self.use(self)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_it_counts_its_steps_and_is_the_users_in_everything_else():
    def use(module):
        optimizer = module.optimizers()
        plain = module.optimizers(use_pl_optimizer=False)
        assert type(optimizer) is SteppingOptimizer
        assert isinstance(optimizer, torch.optim.SGD)
        assert optimizer.optimizer is plain
        assert optimizer.param_groups is plain.param_groups
        assert optimizer.state_dict() == plain.state_dict()
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.mark = 3
        assert plain.mark == 3
        with optimizer.toggle_model():
            optimizer.step()
        optimizer.zero_grad()
        assert module.layer.weight.grad is None
        module.seen = (module.global_step, plain.param_groups[0]["lr"])

    model = UsesItsOptimizer(use)
    trained(model, ones(1))
    assert model.seen == (1, 0.5)


def test_its_step_runs_a_closure_and_returns_what_it_returns():
    def use(module):
        optimizer = module.optimizers()
        assert optimizer.step(lambda: torch.tensor(7.0)).item() == 7.0

    assert trained(UsesItsOptimizer(use), ones(2)).global_step == 2


def test_a_scheduler_can_be_made_for_it():
    def use(module):
        scheduler = LambdaLR(module.optimizers(), lambda step: 0.5**step)
        module.optimizers().step()
        scheduler.step()
        assert module.optimizers().param_groups[0]["lr"] == 0.05

    trained(UsesItsOptimizer(use), ones(1))


def test_gradients_can_be_clipped_in_manual_optimization():
    def use(module):
        module.clip_gradients(module.optimizers(), gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        gradients = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        assert gradients.norm().item() == pytest.approx(0.5)
        module.optimizers().step()

    trained(UsesItsOptimizer(use), ones(1))


def test_no_optimizer_trains_nothing_and_says_so():
    class Model(Plain):
        def configure_optimizers(self):
            return None

    model = Model()
    before = model.layer.weight.clone()
    with pytest.warns(LeydenWarning, match=r"returned None: nothing will be optimized.*LD021"):
        trainer = trained(model)
    assert torch.equal(model.layer.weight, before)
    assert trainer.state.position.batch_total == 5


def test_several_optimizers_need_names_or_manual_optimization():
    with pytest.raises(MisconfigurationError, match=r"2 optimizers without names.*automatic_optimization = False"):
        trained(Configured(lambda optimizer: [optimizer, optimizer]))
