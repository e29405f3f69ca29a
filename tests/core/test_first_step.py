"""Which parameters are trained: said before the first batch, and when the first gradients are there."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric

from leyden.core.callback import Callback
from leyden.core.module import LightningModule
from leyden.loggers.logger import Logger
from leyden.trainer import Trainer
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import FEATURES, TinyModel, tiny_loader

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def fit(model: Any, batches: int = 4, **options: Any) -> Trainer:
    trainer = Trainer(**{**QUIET, "accelerator": "cpu", "max_epochs": 2, **options})
    trainer.fit(model, tiny_loader(batches))
    return trainer


def weights(model: nn.Module) -> list[Any]:
    return [value.tolist() for value in model.state_dict().values()]


def refused(message: str, model: Any, **options: Any) -> None:
    before = weights(model)
    with pytest.raises(MisconfigurationError, match=message):
        fit(model, **options)
    assert weights(model) == before


def ids_said(model: Any, **options: Any) -> list[str]:
    """The ids of the warnings of a fit, in order."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, **options)
    return [str(one.message)[-6:-1] for one in caught if issubclass(one.category, LeydenWarning)]


class Extra(TinyModel):
    """Has a second layer, ``extra``, which nothing uses."""

    def __init__(self, extra: nn.Module | None = None) -> None:
        super().__init__()
        self.extra = nn.Linear(FEATURES, 10) if extra is None else extra


class OnlyNet(Extra):
    """Gives its optimizer ``net`` alone."""

    def configure_optimizers(self) -> Any:
        return SGD(self.net.parameters(), lr=0.1)


# In no optimizer.


def test_parameters_in_no_optimizer_are_named_with_both_remedies():
    message = r"2 parameters of OnlyNet .* in no optimizer.*: extra\.weight, extra\.bias\. Give .*requires_grad_.*LD280"
    with pytest.warns(LeydenWarning, match=message):
        assert fit(OnlyNet()).global_step == 8


def test_only_the_first_few_of_many_are_named():
    with pytest.warns(LeydenWarning, match=r"10 parameters of .*extra\.1\.weight, extra\.1\.bias, \.\.\.\. Give"):
        fit(OnlyNet(nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))))


@pytest.mark.parametrize(
    "extra",
    [nn.Linear(2, 2).requires_grad_(False), AveragedModel(nn.Linear(2, 2)), MeanMetric()],
    ids=["frozen", "an average", "a metric"],
)
def test_what_no_optimizer_is_to_train_is_not_named(extra):
    assert ids_said(OnlyNet(extra)) == []


def test_nothing_is_said_where_nothing_is_optimized():
    model = OnlyNet()
    model.configure_optimizers = lambda: None
    assert ids_said(model) == ["LD021"]


def test_several_optimizers_may_share_the_parameters_out():
    class Two(TinyModel):
        def configure_optimizers(self) -> Any:
            return {name: SGD(self.net[at].parameters(), lr=0.1) for name, at in (("first", 0), ("last", 2))}

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return dict.fromkeys(("first", "last"), self.loss(batch))

    assert ids_said(Two()) == []


# No gradient in the first step.


def test_parameters_without_a_gradient_are_named_once():
    message = r"2 of the 6 parameters that SGD holds have no gradient.*: extra\.weight, extra\.bias\..*LD281"
    with pytest.warns(LeydenWarning, match=message):
        fit(Extra())
    assert ids_said(Extra()) == ["LD281"]


def test_frozen_parameters_need_no_gradient():
    assert ids_said(Extra(nn.Linear(2, 2).requires_grad_(False))) == []


def test_with_accumulation_the_gradients_of_the_whole_window_count():
    class Alternates(Extra):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            net = self.extra if batch_idx % 2 else self.net
            return nn.functional.cross_entropy(net(batch[0]), batch[1])

    assert ids_said(Alternates(), accumulate_grad_batches=2) == []
    assert ids_said(Alternates()) == ["LD281"]


def test_an_optimizer_that_runs_the_closure_itself_is_looked_at_too():
    class ByClosure(Extra):
        def configure_optimizers(self) -> Any:
            return LBFGS(self.parameters(), max_iter=2)

    assert ids_said(ByClosure()) == ["LD281"]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loss_that_does_not_depend_on_the_optimizers_parameters_is_refused(accumulate):
    class Copied(TinyModel):
        def configure_optimizers(self) -> Any:
            return SGD([*copy.deepcopy(self.net).parameters(), self.net[2].bias.requires_grad_(False)], lr=0.1)

    message = (
        r"None of the 4 parameters that SGD holds has a gradient in its first step: one of shape \(32, 32\), .*copy"
    )
    refused(message, Copied(), accumulate_grad_batches=accumulate, warnings={"LD280": "ignore"})


def test_of_several_optimizers_each_is_looked_at_in_its_own_first_step():
    class Gan(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

        def configure_optimizers(self) -> Any:
            rest = [*self.net[2].parameters(), *self.spare.parameters()]
            return {
                "first": SGD(self.net[0].parameters(), lr=0.1),
                "last": {"optimizer": SGD(rest, lr=0.1), "every": 3},
            }

        def training_step_first(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss(batch)

        def training_step_last(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss(batch)

    with pytest.warns(LeydenWarning, match=r"2 of the 4 parameters that SGD holds .*spare\.weight, spare\.bias.*LD281"):
        fit(Gan())


class Steps(TinyModel):
    """Steps by hand, without a backward pass."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.optimizers().step()


def test_a_step_by_hand_without_a_backward_pass_warns():
    with pytest.warns(LeydenWarning, match=r"None of the 4 .* that SGD holds .*self\.manual_backward\(loss\).*LD296"):
        fit(Steps())


def test_a_hook_may_clear_the_gradients_to_leave_a_step_out():
    class Leaves(TinyModel):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            optimizer.zero_grad()

    assert ids_said(Leaves()) == []


# Gradients that are not finite.


class Root(TinyModel):
    """The loss is finite, and its gradient is not: the root of 0."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch) + (self.net[2].bias - self.net[2].bias.detach()).abs().sum().sqrt()


def test_a_gradient_that_is_not_finite_is_refused_before_the_weights_change():
    refused(
        r"1 of the 4 parameters that SGD holds have a gradient that is not finite.*net\.2\.bias\..*sqrt\(0\)", Root()
    )


def test_anomaly_detection_comes_first():
    with pytest.warns(UserWarning, match="Error detected in"), pytest.raises(RuntimeError, match="returned nan values"):
        fit(Root(), detect_anomaly=True)


def test_a_hook_may_mend_the_gradients():
    class Mended(Root):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for parameter in self.parameters():
                parameter.grad.nan_to_num_()

    assert fit(Mended()).global_step == 8


# Layers in plain collections.


class Hidden(TinyModel):
    """Keeps a layer in ``kept``, and uses it or not."""

    def __init__(self, wrap: Any, item: Any = None, used: bool = True) -> None:
        super().__init__()
        self.item = [nn.Linear(FEATURES, FEATURES) if item is None else item]
        self.kept, self.item, self.used = wrap(self.item[0]), None, used

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        item = next(iter(self.kept.values() if isinstance(self.kept, dict) else self.kept))
        while isinstance(item, list):
            item = item[0]
        if not self.used:
            return self.loss(batch)
        added = item(batch[0]) if isinstance(item, nn.Module) else item
        return self.loss((batch[0] + added, batch[1]))


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [(lambda x: [x], "list"), (lambda x: (x,), "tuple"), (lambda x: {"a": x}, "dict"), (lambda x: [[x]], "list")],
)
@pytest.mark.parametrize("item", [None, nn.Parameter(torch.zeros(FEATURES))], ids=["layer", "parameter"])
def test_layers_that_torch_does_not_see_are_refused_when_they_would_have_to_be_trained(wrap, kind, item):
    message = rf"Hidden\.kept is a {kind} with parameters that the loss depends on.*no optimizer.*ModuleList"
    with pytest.warns(LeydenWarning, match=rf"Hidden\.kept is a {kind} of modules or parameters.*ParameterList.*LD052"):
        refused(message, Hidden(wrap, item))


def test_those_the_loss_does_not_depend_on_are_only_warned_of():
    assert ids_said(Hidden(lambda x: [x], used=False)) == ["LD052"]


def test_those_that_an_optimizer_holds_are_only_warned_of():
    model = Hidden(lambda x: [x])
    model.configure_optimizers = lambda: SGD([*model.parameters(), *model.kept[0].parameters()], lr=0.1)
    assert ids_said(model) == ["LD052"]


def test_frozen_layers_may_lie_anywhere():
    assert ids_said(Hidden(lambda x: [x], nn.Linear(FEATURES, FEATURES).requires_grad_(False))) == []


def test_a_list_of_layers_that_are_registered_elsewhere_is_fine():
    model = TinyModel()
    model.linears = [model.net[0], model.net[2]]
    assert ids_said(model) == []


# What is logged.


class Logs(TinyModel):
    """Logs a ``value`` with ``options``."""

    def __init__(self, value: float, **options: Any) -> None:
        super().__init__()
        self.value, self.options = value, options

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("x", self.value, **self.options)
        return self.loss(batch)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_first_value_that_is_not_finite_warns(value):
    with pytest.warns(LeydenWarning, match=rf"self\.log\('x'\): the first value is {value}\..*LD282"):
        fit(Logs(value))


def test_logger_true_without_a_logger_warns():
    with pytest.warns(LeydenWarning, match=r"self\.log\('x', logger=True\): there is no logger.*LD284"):
        fit(Logs(1.0, logger=True))
    assert ids_said(Logs(1.0, logger=True), fast_dev_run=True) == []


class Sink(Logger):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.sent.append(int(step or 0))


def test_log_every_n_steps_beyond_the_run_warns_where_something_is_logged_by_step():
    with pytest.warns(LeydenWarning, match=r"log_every_n_steps=50\) is more than the 8 steps .* values of x\..*LD283"):
        fit(Logs(1.0), logger=(sink := Sink()))
    assert sink.sent == []
    assert ids_said(Logs(1.0), logger=Sink(), log_every_n_steps=8) == []
    assert ids_said(Logs(1.0, on_step=False, on_epoch=True), logger=Sink()) == []
    assert ids_said(Logs(1.0), logger=Sink(), log_every_n_steps=0) == []


# What it costs.


def test_later_steps_are_not_looked_at():
    class Fires(Callback):
        """Notes what fires on_before_optimizer_step."""

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
            self.seen.append(trainer._running.hooks.on_before_optimizer_step)

    fit(TinyModel(), callbacks=[fires := Fires()])
    first, *later = fires.seen
    assert first is not None and later == [None] * 7


def test_an_optimizer_that_never_steps_is_not_waited_for_for_ever():
    class Other(Steps):
        def configure_optimizers(self) -> Any:
            return [SGD(self.net[0].parameters(), lr=0.1), SGD(self.net[2].parameters(), lr=0.1)]

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(self.loss(batch))
            self.optimizers()[0].step()
            self.last = self.trainer._running.hooks.on_before_optimizer_step

    fit(model := Other(), batches=99, max_epochs=1)
    assert model.last is not None
    fit(model, batches=100, max_epochs=1)
    assert model.last is None
