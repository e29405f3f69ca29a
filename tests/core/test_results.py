"""self.log: what is logged, under which name, reduced how, and who sees it when."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision

import leyden
from leyden.core.callback import Callback
from leyden.core.former_hooks import FORMER_HOOKS
from leyden.core.module import LightningModule
from leyden.core.results import PLACES
from leyden.loggers.logger import Logger
from leyden.utils.errors import LeydenWarning, MisconfigurationError
from models import TinyModel, tiny_data, tiny_loader


class Kept(Logger):
    """Keeps what it is sent, in order."""

    name, version = "kept", 0

    def __init__(self):
        super().__init__()
        self.sent = []

    def log_metrics(self, metrics, step=None):
        self.sent.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def of(self, name):
        """Values of one name, by step."""
        return [(step, metrics[name]) for step, metrics in self.sent if name in metrics]


QUIET = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def trainer_with(logger=None, **options):
    defaults = {"max_epochs": 1, "log_every_n_steps": 1, "accelerator": "cpu", **QUIET}
    return leyden.Trainer(logger=logger or False, **defaults | options)


class Steps(TinyModel):
    """TinyModel whose training step does what a test wants of it: ``said(self, batch, batch_idx)``."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def training_step(self, batch, batch_idx):
        self.said(self, batch, batch_idx)
        return super().training_step(batch, batch_idx)


class Validates(TinyModel):
    """TinyModel whose validation step does what a test wants of it."""

    def __init__(self, said):
        super().__init__()
        self.said = said

    def validation_step(self, batch, batch_idx):
        self.said(self, batch, batch_idx)


def fit(said, loader=None, callbacks=(), **options):
    """Train one epoch of 4 batches; returns the Trainer and what its logger was sent."""
    kept = Kept()
    trainer = trainer_with(kept, callbacks=list(callbacks), **options)
    trainer.fit(Steps(said), loader or tiny_loader(4))
    return trainer, kept


def validate(said, loaders=None):
    """Validate on 2 batches; returns the metrics, one dict for each loader."""
    return trainer_with().validate(Validates(said), loaders or tiny_loader(2), verbose=False)


# Where what may be logged.


BY_STEP = ["training_step", "on_before_zero_grad", "on_before_backward", "on_after_backward"]
BY_STEP += ["on_before_optimizer_step", "on_train_batch_start", "on_train_batch_end"]


def logs_in(hook, base=TinyModel, **options):
    """A model that logs ``v`` in ``hook``, and runs its own training and validation."""

    def method(self, *args):
        self.log("v", 1.0, **options)
        return base.training_step(self, *args) if hook == "training_step" else None

    steps = {"validation_step": lambda self, batch, batch_idx: None, "test_step": lambda self, batch, batch_idx: None}
    return type("Logs", (base,), {**steps, hook: method})()


def run_all(model, **options):
    kept = Kept()
    trainer = trainer_with(kept, num_sanity_val_steps=0, **options)
    trainer.fit(model, tiny_loader(2), tiny_loader(2))
    trainer.test(model, tiny_loader(2), verbose=False)
    return kept


@pytest.mark.parametrize("hook", BY_STEP)
def test_in_training_values_go_by_step_unless_told(hook):
    assert run_all(logs_in(hook)).of("v") == [(0, 1.0), (1, 1.0)]


@pytest.mark.parametrize("hook", BY_STEP)
def test_in_training_values_may_go_by_epoch(hook):
    assert run_all(logs_in(hook, on_step=False, on_epoch=True)).of("v") == [(1, 1.0)]


@pytest.mark.parametrize("hook", [place for place in PLACES if place not in (*BY_STEP, *FORMER_HOOKS)])
def test_elsewhere_values_go_by_epoch_unless_told(hook):
    logged = run_all(logs_in(hook)).of("v")
    assert logged == [(2 if "test" in hook else 1, 1.0)]


@pytest.mark.parametrize("hook", ["validation_step", "on_validation_batch_end", "test_step", "on_test_batch_start"])
def test_evaluation_batches_may_log_by_step_on_an_axis_of_their_own(hook):
    assert run_all(logs_in(hook, on_step=True, on_epoch=False)).sent == [(0, {"v": 1.0}), (1, {"v": 1.0})]


def test_in_what_a_module_overrides_of_the_step_values_go_by_step_too():
    class Overrides(TinyModel):
        def backward(self, loss):
            self.log("backward", 1.0)
            loss.backward()

        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(optimizer_closure)
            self.log("optimizer_step", 1.0)

        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            self.log("optimizer_zero_grad", 1.0)
            optimizer.zero_grad()

        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.log("clipping", 1.0)

    kept = Kept()
    trainer_with(kept).fit(Overrides(), tiny_loader(1))
    names = ("backward", "optimizer_step", "optimizer_zero_grad", "clipping")
    assert kept.sent == [(0, {**dict.fromkeys(names, 1.0), "epoch": 0})]


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_epoch_end", "on_validation_epoch_end", "on_test_start"])
def test_where_there_is_no_step_none_is_logged_by_step(hook):
    with pytest.raises(MisconfigurationError, match=rf"'v', on_step=True\) in {hook}: only on_epoch=True"):
        run_all(logs_in(hook, on_step=True))


@pytest.mark.parametrize(
    "hook", ["on_fit_start", "on_train_end", "on_fit_end", "on_validation_end", "on_test_end", "configure_model"]
)
def test_where_nothing_is_collected_logging_is_refused_with_the_places_that_work(hook):
    with pytest.raises(MisconfigurationError, match=r"'v'\) cannot be called in .*training_step, "):
        run_all(logs_in(hook))


def test_predictions_cannot_be_logged():
    class Logs(TinyModel):
        def predict_step(self, batch, batch_idx):
            self.log("v", 1.0)

    with pytest.raises(MisconfigurationError, match="cannot be called in predict_step"):
        trainer_with().predict(Logs(), tiny_loader(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.log("v", 1.0, on_step=False, on_epoch=False), "would log nothing"),
        (lambda m: m.log("v/dataloader_idx_1", 1.0), "add_dataloader_idx=False"),
        (lambda m: m.log("v", 1.0, reduce_fx=torch.std), "choose 'mean', 'sum', 'min' or 'max'"),
        (lambda m: m.log("v", 1.0, reduce_fx=["mean"]), "choose 'mean', 'sum', 'min' or 'max'"),
        (lambda m: (m.log("v", 1.0), m.log("v", 1.0, prog_bar=True)), "twice in training_step with different options"),
        (lambda m: m.log("v", MulticlassAccuracy(10)), "MulticlassAccuracy is not an attribute of the module"),
    ],
)
def test_calls_that_make_no_sense_are_refused(call, message):
    with pytest.raises(MisconfigurationError, match=message):
        fit(lambda m, batch, i: call(m))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), r"shape \(3,\).*\.mean\(\)"),
        ({"a": 1.0}, r"got a dict\. Use self\.log_dict"),
        ("high", "got str: 'high'"),
        (None, "got NoneType"),
    ],
)
def test_what_is_not_one_number_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        fit(lambda m, batch, i: m.log("v", value))


def test_a_name_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match=r"takes a name first, got tensor"):
        fit(lambda m, batch, i: m.log(torch.ones(()), "loss"))


# Names.


def test_by_step_and_epoch_the_name_forks_and_callbacks_see_the_plain_one_too():
    seen = {}

    class Looks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen[batch_idx] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    trainer, kept = fit(lambda m, batch, i: m.log("v", float(i), on_step=True, on_epoch=True), callbacks=[Looks()])
    assert kept.of("v_step") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert kept.of("v_epoch") == [(3, 1.5)]
    assert kept.of("v") == []
    assert seen[2] == {"v": 2.0, "v_step": 2.0}
    assert {n: float(v) for n, v in trainer.callback_metrics.items()} == {"v": 1.5, "v_step": 3.0, "v_epoch": 1.5}


def test_several_loaders_have_their_number_in_the_name():
    class Two(TinyModel):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.log("v", float(dataloader_idx))
            self.log(f"own_{dataloader_idx}", 1.0, add_dataloader_idx=False)

        def on_validation_epoch_end(self):
            self.log("shared", 7.0)

    trainer = trainer_with()
    found = trainer.validate(Two(), [tiny_loader(2), tiny_loader(1)], verbose=False)
    assert found == [
        {"v/dataloader_idx_0": 0.0, "own_0": 1.0, "shared": 7.0},
        {"v/dataloader_idx_1": 1.0, "own_1": 1.0, "shared": 7.0},
    ]
    assert sorted(trainer.callback_metrics) == ["own_0", "own_1", "shared", "v/dataloader_idx_0", "v/dataloader_idx_1"]


def test_training_and_validation_may_share_a_name_and_callbacks_see_what_was_logged_last():
    seen = []

    class Both(TinyModel):
        def training_step(self, batch, batch_idx):
            self.log("loss", float(batch_idx))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.log("loss", 100.0)

    class Looks(Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append(float(trainer.callback_metrics["loss"]))

        def on_validation_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["loss"]))

        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["loss"]))

    trainer = trainer_with(callbacks=[Looks()], val_check_interval=2, num_sanity_val_steps=0)
    trainer.fit(Both(), tiny_loader(4), tiny_loader(1))
    assert seen == [0, 1, 100, 2, 3, 100, 100]
    assert float(trainer.callback_metrics["loss"]) == 100


def test_log_dict_logs_every_item_with_the_same_options():
    values = {"a": 1.0, "b": torch.tensor(2.0)}
    _, kept = fit(lambda m, batch, i: m.log_dict(values, on_step=False, on_epoch=True))
    assert kept.sent == [(3, {"a": 1.0, "b": 2.0, "epoch": 0})]


# Reductions.


def test_each_batch_weighs_as_much_as_its_samples():
    loader = DataLoader(tiny_data(67), batch_size=64)
    found = validate(lambda m, batch, i: m.log("v", (1.0, 2.0)[i]), loader)
    assert found[0]["v"] == pytest.approx((64 * 1.0 + 3 * 2.0) / 67)


def test_tensors_weigh_as_much_as_numbers():
    loader = DataLoader(tiny_data(67), batch_size=64)
    found = validate(lambda m, batch, i: m.log("v", torch.tensor((1.0, 2.0)[i])), loader)
    assert found[0]["v"] == pytest.approx((64 * 1.0 + 3 * 2.0) / 67)


def test_the_batch_size_may_be_given():
    found = validate(lambda m, batch, i: m.log("v", (1.0, 2.0)[i], batch_size=(1, 3)[i]))
    assert found == [{"v": (1.0 + 2.0 * 3) / 4}]


def test_a_batch_without_tensors_needs_a_batch_size_to_be_given():
    with pytest.raises(MisconfigurationError, match=r"self.log\('v', value, batch_size=...\)"):
        validate(lambda m, batch, i: m.log("v", 1.0), [["a", "b"]])
    assert validate(lambda m, batch, i: m.log("v", 1.0, batch_size=2), [["a", "b"]]) == [{"v": 1.0}]
    assert validate(lambda m, batch, i: m.log("v", 1.0, reduce_fx="sum"), [["a", "b"]]) == [{"v": 1.0}]


@pytest.mark.parametrize("empty", [[], {}, ()])
def test_an_empty_batch_needs_a_batch_size_to_be_given_too(empty):
    with pytest.raises(MisconfigurationError, match=r"holds no tensor to take it from. Pass it: self.log\('v', value"):
        validate(lambda m, batch, i: m.log("v", 1.0), [empty])


def test_a_number_and_a_tensor_may_be_mixed_under_one_name():
    def said(m, batch, i):
        value = (2.0, torch.tensor(1.0), 3.0)[i]
        m.log("mean", value)
        for reduction in ("sum", "min", "max"):
            m.log(reduction, value, reduce_fx=reduction)

    assert validate(said, tiny_loader(3)) == [{"mean": 2.0, "sum": 6.0, "min": 1.0, "max": 3.0}]


@pytest.mark.parametrize(
    "around",
    [
        lambda x: x,
        lambda x: [x, "a"],
        lambda x: (x, "a"),
        lambda x: {"x": x},
        lambda x: {"name": "a", "x": [x]},
        lambda x: [[x]],
    ],
)
def test_each_batch_weighs_as_much_as_its_samples_wherever_they_are_in_it(around):
    loader = [around(torch.zeros(samples, 2)) for samples in (3, 1)]
    assert validate(lambda m, batch, i: m.log("v", float(i)), loader) == [{"v": 0.25}]


def test_a_scalar_before_the_samples_is_passed_over():
    loader = [(torch.zeros(()), torch.zeros(samples)) for samples in (3, 1)]
    assert validate(lambda m, batch, i: m.log("v", float(i)), loader) == [{"v": 0.25}]


@pytest.mark.parametrize(
    ("reduce_fx", "expected"),
    [("sum", 6.0), (torch.sum, 6.0), (sum, 6.0), ("min", 1.0), (torch.min, 1.0), (min, 1.0), ("max", 3.0), (max, 3.0)],
)
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_epochs_may_be_reduced_in_other_ways(reduce_fx, expected, kind):
    values = (3.0, 1.0, 2.0)
    found = validate(lambda m, batch, i: m.log("v", kind(values[i]), reduce_fx=reduce_fx), tiny_loader(3))
    assert found == [{"v": expected}]


@pytest.mark.parametrize(
    ("value", "expected"), [(3, 3.0), (True, 1.0), (torch.tensor(3), 3.0), (torch.ones(1, 1), 1.0)]
)
def test_numbers_of_every_kind_are_reduced(value, expected):
    assert validate(lambda m, batch, i: m.log("v", value)) == [{"v": expected}]


def test_numpy_numbers_are_numbers():
    numpy = pytest.importorskip("numpy")
    assert validate(lambda m, batch, i: m.log("v", numpy.float32(0.5))) == [{"v": 0.5}]


def test_a_whole_number_beyond_the_precision_of_a_float_warns_once():
    with pytest.warns(LeydenWarning, match="LD010") as caught:
        fit(lambda m, batch, i: m.log("v", 2**53 + 1))
    assert len(caught) == 1


def test_half_precision_is_summed_in_single():
    loader = [torch.zeros(1)] * 3000  # in float16, 2048 + 1 == 2048

    def said(m, batch, i):
        one = torch.ones((), dtype=torch.float16)
        m.log("mean", one)
        m.log("sum", one, reduce_fx="sum")

    assert validate(said, loader) == [{"mean": 1.0, "sum": 3000.0}]


def test_single_precision_sums_of_python_numbers_lose_nothing():
    assert validate(lambda m, batch, i: m.log("v", 0.1, reduce_fx="sum")) == [{"v": 0.2}]


def test_every_epoch_begins_anew():
    kept = Kept()
    trainer = trainer_with(kept, max_epochs=2)
    model = Steps(lambda m, batch, i: m.log("v", float(m.current_epoch), on_step=False, on_epoch=True))
    trainer.fit(model, tiny_loader(2))
    assert kept.of("v") == [(1, 0.0), (3, 1.0)]


def test_a_name_that_is_not_logged_in_an_epoch_is_not_sent_for_it():
    kept = Kept()
    trainer = trainer_with(kept, max_epochs=3)

    def said(m, batch, i):
        if m.current_epoch == 1:
            m.log("v", 1.0, on_step=False, on_epoch=True)

    trainer.fit(Steps(said), tiny_loader(2))
    assert kept.of("v") == [(3, 1.0)]


def test_values_keep_no_graph_unless_asked_to():
    kept = []

    class Looks(Callback):
        def on_train_batch_end(self, trainer, *args):
            kept.append({name: value.requires_grad for name, value in trainer.callback_metrics.items()})

    def said(m, batch, i):
        m.log("without", m.loss(batch))
        m.log("with", m.loss(batch), enable_graph=True)

    fit(said, tiny_loader(1), callbacks=[Looks()])
    assert kept == [{"without": False, "with": True}]


def test_the_logged_tensor_is_not_changed_and_may_be_changed_afterwards():
    value = torch.tensor(1.0)

    def said(m, batch, i):
        m.log("v", value)
        assert value == 1.0 + i
        value.add_(1)

    assert validate(said) == [{"v": 1.5}]


# Metric objects.


class Count:
    """A metric that is nobody's subclass: counts samples."""

    def __init__(self):
        self.count, self.resets, self._forward_cache = 0, 0, None

    def update(self, batch):
        self.count += len(batch[0])

    def __call__(self, batch):
        self.update(batch)
        self._forward_cache = torch.tensor(float(len(batch[0])))

    def compute(self):
        return torch.tensor(float(self.count))

    def reset(self):
        self.count, self.resets = 0, self.resets + 1


def test_any_object_with_update_compute_and_reset_is_a_metric():
    metric = Count()

    def said(m, batch, i):
        metric.update(batch)
        m.log("count", metric, on_step=False, on_epoch=True)

    kept = Kept()
    trainer_with(kept, max_epochs=2).fit(Steps(said), tiny_loader(3))
    assert kept.of("count") == [(2, 48.0), (5, 48.0)]
    assert metric.resets == 2


def test_by_step_a_metrics_value_is_that_of_the_batch():
    metric = Count()

    def said(m, batch, i):
        metric(batch)
        m.log("count", metric, on_step=True, on_epoch=True)

    _, kept = fit(said, DataLoader(tiny_data(40), batch_size=16))
    assert kept.of("count_step") == [(0, 16.0), (1, 16.0), (2, 8.0)]
    assert kept.of("count_epoch") == [(2, 40.0)]


def test_by_step_a_metric_that_was_only_updated_is_refused_with_advice():
    metric = Count()

    def said(m, batch, i):
        metric.update(batch)
        m.log("count", metric)

    with pytest.raises(MisconfigurationError, match=r"Call it \(metric\(preds, target\)\)"):
        fit(said)


class Measured(TinyModel):
    """Logs torchmetrics of training by step and epoch, and a collection of them in validation."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(10, average="micro")
        grouped = [MulticlassF1Score(10), MulticlassPrecision(10), MulticlassAccuracy(10)]
        self.collection = MetricCollection(grouped, prefix="val/")
        self.right, self.seen = [], []

    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.right.append((logits.argmax(1) == batch[1]).float().mean().item())
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        return nn.functional.cross_entropy(logits, batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.collection.update(logits, batch[1])
        self.seen.append((logits, batch[1]))
        self.log_dict(self.collection)


def test_torchmetrics_are_computed_and_reset_every_epoch():
    kept, model = Kept(), Measured()
    trainer_with(kept, max_epochs=2, limit_val_batches=0).fit(model, tiny_loader(4))
    batches = model.right
    assert [value for _, value in kept.of("accuracy_step")] == pytest.approx(batches)
    assert [value for _, value in kept.of("accuracy_epoch")] == pytest.approx(
        [sum(batches[:4]) / 4, sum(batches[4:]) / 4]
    )
    assert model.accuracy._update_count == 0


def test_a_collection_is_logged_by_log_dict():
    kept, model = Kept(), Measured()
    trainer_with(kept, max_epochs=2).fit(model, tiny_loader(2), tiny_loader(3, seed=1))
    for epoch in range(2):
        fresh = model.collection.clone()
        for logits, target in model.seen[2 + 3 * epoch :][:3]:  # the first two are the sanity check's
            fresh.update(logits, target)
        logged = {name: kept.of(name)[epoch][1] for name in fresh}
        assert logged == pytest.approx({name: value.item() for name, value in fresh.compute().items()})
    assert sorted(fresh.keys()) == ["val/MulticlassAccuracy", "val/MulticlassF1Score", "val/MulticlassPrecision"]


def test_a_metric_may_be_logged_at_the_end_of_the_epoch_alone():
    class AtTheEnd(TinyModel):
        def __init__(self):
            super().__init__()
            self.accuracy = MulticlassAccuracy(10, average="micro")

        def validation_step(self, batch, batch_idx):
            self.accuracy.update(batch[1], batch[1])

        def on_validation_epoch_end(self):
            self.log("accuracy", self.accuracy)

    assert trainer_with().validate(AtTheEnd(), tiny_loader(2), verbose=False) == [{"accuracy": 1.0}]


def test_a_metric_that_loaders_share_goes_on_counting_and_each_has_its_value_at_the_loaders_end():
    seen = []

    class Shares(TinyModel):
        def __init__(self):
            super().__init__()
            self.count = Count()

        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.count.update(batch)
            self.log("count", self.count)

        def on_validation_epoch_end(self):
            seen.append((self.count.count, {n: float(v) for n, v in self.trainer.callback_metrics.items()}))

    found = trainer_with().validate(Shares(), [tiny_loader(2), tiny_loader(1)], verbose=False)
    assert found == [{"count/dataloader_idx_0": 32.0}, {"count/dataloader_idx_1": 48.0}]
    assert seen == [(48, {"count/dataloader_idx_0": 32.0, "count/dataloader_idx_1": 48.0})]


def test_a_metric_is_not_computed_for_an_epoch_in_which_it_is_not_logged():
    metric, kept = Count(), Kept()

    def said(m, batch, i):
        if m.current_epoch != 1:
            metric.update(batch)
            m.log("count", metric, on_step=False, on_epoch=True)

    trainer_with(kept, max_epochs=3).fit(Steps(said), tiny_loader(2))
    assert kept.of("count") == [(1, 32.0), (5, 32.0)]


@pytest.mark.parametrize(
    ("value", "what"), [(torch.zeros(2, 2), r"a tensor of shape \(2, 2\)"), ({"map": torch.ones(())}, "a dict")]
)
def test_a_metric_that_comes_to_more_than_one_number_is_refused(value, what):
    metric = Count()
    metric.compute = lambda: value

    def said(m, batch, i):
        metric.update(batch)
        m.log("v", metric)

    with pytest.raises(MisconfigurationError, match=rf"self.log\('v', metric\): Count comes to {what}"):
        validate(said)


def test_a_metric_may_come_to_a_python_number():
    metric = Count()
    metric.compute = lambda: metric.count

    def said(m, batch, i):
        metric.update(batch)
        m.log("v", metric)

    assert validate(said) == [{"v": 32.0}]


def test_a_metric_that_is_logged_by_step_alone_is_reset_too():
    metric = Count()

    def said(m, batch, i):
        metric(batch)
        m.log("count", metric)

    fit(said)
    assert metric.resets == 1


# Where values go.


def test_step_values_go_out_every_n_steps_with_the_epoch():
    kept = Kept()
    trainer = trainer_with(kept, max_epochs=2, log_every_n_steps=3)
    trainer.fit(Steps(lambda m, batch, i: m.log("v", float(i))), tiny_loader(4))
    assert kept.sent == [(2, {"v": 2.0, "epoch": 0}), (5, {"v": 1.0, "epoch": 1})]


def test_steps_are_counted_in_batches_that_stepped():
    kept = Kept()
    trainer = trainer_with(kept, accumulate_grad_batches=2)
    trainer.fit(Steps(lambda m, batch, i: m.log("v", float(i))), tiny_loader(4))
    assert kept.of("v") == [(0, 1.0), (1, 3.0)]


def test_zero_sends_no_step_values():
    kept = Kept()
    trainer = trainer_with(kept, log_every_n_steps=0)
    trainer.fit(Steps(lambda m, batch, i: m.log("v", 1.0, on_step=True, on_epoch=True)), tiny_loader(4))
    assert kept.sent == [(3, {"v_epoch": 1.0, "epoch": 0})]


def test_a_value_named_step_is_the_x_axis():
    def said(m, batch, i):
        m.log("v", 1.0)
        m.log("step", 100.0 + i)

    _, kept = fit(said)
    assert [step for step, _ in kept.sent] == [100, 101, 102, 103]
    assert kept.sent[0][1] == {"v": 1.0, "epoch": 0}


def test_a_value_named_epoch_is_the_users():
    _, kept = fit(lambda m, batch, i: m.log("epoch", 0.5), tiny_loader(1))
    assert kept.sent == [(0, {"epoch": 0.5})]


def test_logger_false_is_for_callbacks_and_the_bar_alone():
    def said(m, batch, i):
        m.log("quiet", 1.0, logger=False, prog_bar=True, on_step=True, on_epoch=True)

    trainer, kept = fit(said)
    assert kept.sent == []
    assert float(trainer.callback_metrics["quiet_epoch"]) == 1.0
    assert trainer.progress_bar_metrics == {"quiet_step": 1.0, "quiet_epoch": 1.0}


def test_the_bar_gets_what_is_meant_for_it_and_after_validation_its_values_too():
    seen = []

    class Both(TinyModel):
        def training_step(self, batch, batch_idx):
            self.log("t", float(batch_idx), prog_bar=True)
            self.log("hidden", 1.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.log("v", 5.0, prog_bar=True)

    class Looks(Callback):
        def on_train_batch_end(self, trainer, *args):
            seen.append(trainer.progress_bar_metrics)

        def on_train_epoch_end(self, trainer, pl_module):
            self.log("end", 3.0, prog_bar=True)
            seen.append(trainer.progress_bar_metrics)

    trainer = trainer_with(callbacks=[Looks()], val_check_interval=1)
    trainer.fit(Both(), tiny_loader(2), tiny_loader(1))
    assert seen == [{"t": 0.0}, {"t": 1.0, "v": 5.0}, {"t": 1.0, "v": 5.0, "end": 3.0}]
    assert trainer.progress_bar_metrics == {"t": 1.0, "v": 5.0, "end": 3.0}


def test_logged_metrics_are_what_was_sent():
    trainer, _ = fit(lambda m, batch, i: (m.log("v", float(i)), m.log("quiet", 1.0, logger=False)))
    assert {name: float(value) for name, value in trainer.logged_metrics.items()} == {"v": 3.0}


def test_monitoring_callbacks_see_the_epochs_values_at_its_end():
    seen = {}

    class Model(TinyModel):
        def training_step(self, batch, batch_idx):
            self.log("mean", float(batch_idx), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self):
            self.log("late", 9.0)

        def validation_step(self, batch, batch_idx):
            self.log("v", float(batch_idx))

    class Looks(Callback):
        monitors = True

        def on_train_epoch_end(self, trainer, pl_module):
            seen["training"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

        def on_validation_epoch_end(self, trainer, pl_module):
            seen["validation"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

        def on_validation_end(self, trainer, pl_module):
            seen["end"] = {name: float(value) for name, value in trainer.callback_metrics.items()}

    trainer = trainer_with(callbacks=[Looks()], num_sanity_val_steps=0)
    trainer.fit(Model(), tiny_loader(4), tiny_loader(2))
    assert seen == {
        "validation": {"v": 0.5},
        "end": {"v": 0.5},
        "training": {"mean": 1.5, "late": 9.0, "v": 0.5},
    }


def test_what_the_sanity_check_logged_is_forgotten():
    seen, kept = [], Kept()

    class Sane(TinyModel):
        def validation_step(self, batch, batch_idx):
            self.log("v", -1.0 if self.trainer.sanity_checking else 1.0, on_step=True, on_epoch=True, prog_bar=True)

        def on_train_start(self):
            seen.append((dict(self.trainer.callback_metrics), self.trainer.progress_bar_metrics))

    trainer_with(kept).fit(Sane(), tiny_loader(2), tiny_loader(3))
    assert seen == [({}, {})]
    assert kept.of("v_step") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert kept.of("v_epoch") == [(1, 1.0)]


def test_a_metric_counts_nothing_of_the_sanity_check():
    metric, kept = Count(), Kept()

    class Sane(TinyModel):
        def validation_step(self, batch, batch_idx):
            metric.update(batch)
            self.log("count", metric)

    trainer_with(kept).fit(Sane(), tiny_loader(2), tiny_loader(3))
    assert kept.of("count") == [(1, 48.0)]


# Who may log.


def test_callbacks_log_too():
    class Logs(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.log("seen", float(batch_idx))

        def on_train_epoch_end(self, trainer, pl_module):
            self.log_dict({"a": 1.0, "b": 2.0})

    _, kept = fit(lambda m, batch, i: None, callbacks=[Logs()])
    assert kept.of("seen") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert kept.sent[-1] == (3, {"a": 1.0, "b": 2.0, "epoch": 0})


class Nested(LightningModule):
    """A part that logs by itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, loss):
        self.log("inner", 2.0)
        return loss * self.scale


class Outer(TinyModel):
    def training_step(self, batch, batch_idx):
        return self.inner(super().training_step(batch, batch_idx))


def test_nested_modules_log_into_the_same_run():
    kept, model = Kept(), Outer()
    model.inner = Nested()
    trainer_with(kept).fit(model, tiny_loader(2))
    assert kept.of("inner") == [(0, 2.0), (1, 2.0)]


def test_nested_modules_that_are_made_late_log_too():
    class Late(Outer):
        def configure_model(self):
            self.inner = Nested()

    kept, model = Kept(), Late()
    trainer_with(kept).fit(model, tiny_loader(2))
    assert kept.of("inner") == [(0, 2.0), (1, 2.0)]
    assert model.inner.trainer is model.trainer


def test_without_a_run_logging_warns_once_and_goes_nowhere():
    model = Steps(lambda m, batch, i: m.log("v", 1.0))
    with pytest.warns(LeydenWarning, match="goes nowhere.*LD011") as caught:
        for _ in range(2):
            model.training_step(next(iter(tiny_loader(1))), 0)
    assert len(caught) == 1


def test_barebones_logs_nothing_and_says_so():
    model = Steps(lambda m, batch, i: m.log("v", 1.0))
    trainer = leyden.Trainer(barebones=True, max_epochs=1, accelerator="cpu")
    with pytest.warns(LeydenWarning, match="barebones.*LD011"):
        trainer.fit(model, tiny_loader(1))
    assert trainer.callback_metrics == {}


# What it costs.


class Scalars(TorchDispatchMode):
    """Counts how often one value is fetched from the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


class Lists(TorchFunctionMode):
    """Counts how often many values are fetched together."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.Tensor.tolist
        return func(*args, **kwargs or {})


def test_between_flushes_no_value_leaves_the_device():
    counts = []

    class Logs(Steps):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.log("end", outputs["loss"], on_epoch=True, reduce_fx="max")

    def said(m, batch, i):
        counts.append(scalars.count + lists.count)
        loss = m.loss(batch)
        m.log("mean", loss, prog_bar=True, on_step=True, on_epoch=True)
        m.log("sum", loss, reduce_fx="sum", on_epoch=True)
        m.log("min", loss.half(), reduce_fx="min", on_epoch=True)
        m.log("number", 1.0, on_epoch=True)
        m.log("metric", m.accuracy, on_epoch=True, on_step=False)

    model = Logs(said)
    model.accuracy = MulticlassAccuracy(10)
    model.accuracy.update(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    # The check of the loss reads it where that waits for nothing, as on the CPU; tests/core/test_finite.py.
    trainer = trainer_with(Kept(), log_every_n_steps=4, on_nonfinite_loss="ignore")
    with Scalars() as scalars, Lists() as lists:
        trainer.fit(model, tiny_loader(12))
    flushes = [later - earlier for earlier, later in pairwise(counts)]
    assert [flush > 0 for flush in flushes] == [batch in (3, 7) for batch in range(11)]


def test_without_a_logger_no_value_leaves_the_device_at_all():
    waited = []

    def said(m, batch, i):
        waited.append(scalars.count + lists.count)
        m.log("loss", m.loss(batch), prog_bar=True, on_epoch=True)

    trainer = trainer_with(log_every_n_steps=1, on_nonfinite_loss="ignore")
    with Scalars() as scalars, Lists() as lists:
        trainer.fit(Steps(said), tiny_loader(4))
    assert waited == waited[:1] * 4


class Operators(TorchDispatchMode):
    """Notes which operators of torch run."""

    def __init__(self):
        super().__init__()
        self.ran = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ran.append(func.name())
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("options", "operators"),
    [
        ({}, ["aten::detach"]),
        ({"on_epoch": True}, ["aten::detach", "aten::add_.Tensor"]),
        ({"on_epoch": True, "reduce_fx": "sum"}, ["aten::detach", "aten::add.Tensor"]),
        ({"on_epoch": True, "reduce_fx": "max"}, ["aten::detach", "aten::maximum"]),
    ],
)
def test_after_the_first_time_a_value_costs_one_operator_and_one_more_by_epoch(options, operators):
    ran = []

    def said(m, batch, i):
        loss = m.loss(batch)
        with Operators() as mode:
            m.log("loss", loss, **options)
        ran.append(mode.ran)

    fit(said)
    assert ran[1:] == [operators] * 3


# Across a checkpoint.


class Sums(TinyModel):
    """Logs epoch values of every kind."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.pair = MetricCollection([MulticlassF1Score(10), MulticlassPrecision(10)])

    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log("mean", loss, on_step=True, on_epoch=True)
        self.log("most", loss, reduce_fx=torch.max, on_step=False, on_epoch=True)
        self.log("number", float(batch_idx), reduce_fx="sum", on_step=False, on_epoch=True)
        if batch_idx == 0:
            self.log("early", loss, on_step=False, on_epoch=True)
            self.log("waiting", loss)
        self.accuracy(logits, batch[1])
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.pair.update(logits, batch[1])
        self.log_dict(self.pair, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))


class Saves(Callback):
    """Writes saved.ckpt once: after a step, or after the validation that follows it."""

    def __init__(self, step, hook):
        setattr(self, hook, lambda trainer, *args: self.save(trainer, step))

    def save(self, trainer, step):
        if trainer.global_step == step:
            trainer.request_checkpoint("saved.ckpt")


def sums(path=None, callbacks=()):
    """Train two epochs of 4 batches, from a checkpoint if one is given; returns what was sent."""
    kept = Kept()
    trainer = trainer_with(kept, max_epochs=2, log_every_n_steps=4, callbacks=list(callbacks))
    trainer.fit(Sums(), tiny_loader(4), tiny_loader(1, seed=1), ckpt_path=path)
    return kept.sent


@pytest.mark.parametrize(
    ("step", "hook"), [*((step, "on_train_batch_end") for step in (5, 6, 7, 8)), (8, "on_validation_end")]
)
def test_the_sums_of_an_epoch_go_on_in_a_resumed_run(step, hook):
    straight = sums(callbacks=[Saves(step, hook)])
    later = [(at, metrics) for at, metrics in straight if metrics["epoch"] == 1]
    after_the_steps = [(at, metrics) for at, metrics in later if "mean_step" not in metrics]
    resumed = sums("saved.ckpt")
    assert resumed == (later if step < 8 else after_the_steps[-1:])
    assert set(resumed[-1][1]) == {
        *("mean_epoch", "most", "number", "early", "accuracy", "MulticlassF1Score", "MulticlassPrecision", "epoch")
    }


def test_what_was_monitored_is_known_in_a_resumed_run():
    sums(callbacks=[Saves(5, "on_train_batch_end")])
    seen = []

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.extend(trainer.callback_metrics)

    sums("saved.ckpt", callbacks=[Looks()])
    assert {"mean", "mean_step", "mean_epoch", "most", "val_loss", "accuracy"} <= set(seen)
