"""Trainer(compile=): the same training, compiled; and as it is wherever that does not work."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import leyden
from leyden.core import compiling
from leyden.utils.errors import LeydenWarning, NonFiniteLossError
from models import TinyModel, tiny_data


@pytest.fixture(autouse=True, scope="module")
def one_process_compiles():
    with torch._inductor.config.patch(compile_threads=1):
        yield


class Model(TinyModel):
    """TinyModel with a configured optimizer, a schedule by step, and values logged in a training step."""

    def __init__(self, make=torch.optim.SGD, **options):
        super().__init__()
        self.make, self.options = make, options

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"double": loss * 2, "constant": 3.0}, on_step=False, on_epoch=True)
        return {"loss": loss, "twice": loss * 2}

    def configure_optimizers(self):
        optimizer = self.make(self.parameters(), **{"lr": 0.01, **self.options})
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Noisy(Model):
    """With what a step changes besides weights: running statistics and random numbers."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.BatchNorm1d(32))
        self.net.append(nn.Dropout(0.2))


def fitted(model, compile, *, data=None, val=None, epochs=3, ckpt_path=None, **options):
    torch.manual_seed(5)
    trainer = leyden.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        compile=compile,
        **options,
    )
    loader = DataLoader(tiny_data(64), 16, shuffle=True) if data is None else data
    trainer.fit(model, loader, val, ckpt_path=ckpt_path)
    return trainer


def assert_close(one, other, tolerance=1e-5):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=tolerance), name


def assert_same(one, other):
    assert_close(one, other, tolerance=0)


def assert_trains_alike(model, compile, **options):
    plain = copy.deepcopy(model)
    expected, trainer = fitted(plain, None, **options), fitted(model, compile, **options)
    assert_close(model, plain)
    assert trainer.global_step == expected.global_step
    assert trainer.callback_metrics.keys() == expected.callback_metrics.keys()
    for name, value in expected.callback_metrics.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(float(value), abs=1e-5), name
    return trainer, expected


@pytest.fixture
def compilations(monkeypatch):
    """One entry for each graph that is compiled."""
    seen = []
    backend = compiling.Compiling._backend

    def noting(self, graph, inputs):
        seen.append(self.mode)
        return backend(self, graph, inputs)

    monkeypatch.setattr(compiling.Compiling, "_backend", noting)
    return seen


@pytest.mark.parametrize("clip", [{}, {"gradient_clip_val": 0.3}], ids=["", "clipped"])
@pytest.mark.parametrize("mode", ["model", "step"])
def test_a_compiled_step_trains_and_logs_as_the_step_does(mode, clip, compilations):
    assert_trains_alike(Model(torch.optim.Adam), mode, **clip)
    assert compilations == [mode]


@pytest.mark.parametrize(
    "model",
    [
        Model(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True),
        Model(torch.optim.Adam, amsgrad=True, weight_decay=0.1),
        Model(torch.optim.AdamW, weight_decay=0.1),
    ],
    ids=lambda model: model.make.__name__,
)
@pytest.mark.slow
def test_the_options_of_an_optimizer_hold_in_the_graph(model, compilations):
    trainer, expected = assert_trains_alike(model, "step", gradient_clip_val=0.01, gradient_clip_algorithm="value")
    assert compilations == ["step"]
    of_ours, of_torch = trainer.optimizers[0].state_dict(), expected.optimizers[0].state_dict()
    assert of_ours["param_groups"] == of_torch["param_groups"]
    for key, state in of_torch["state"].items():
        for name, tensor in state.items():
            assert torch.allclose(of_ours["state"][key][name], tensor, atol=1e-5), name


def test_running_statistics_and_dropout_are_those_of_the_step(compilations):
    model = Noisy()
    assert_trains_alike(model, "step")
    assert compilations == ["step"]


def test_validation_logs_and_checkpoints_see_an_ordinary_module(tmp_path):
    class Validated(Model):
        def validation_step(self, batch, batch_idx):
            assert not torch.compiler.is_compiling()
            self.log("val_loss", self.loss(batch))

    model = Validated(torch.optim.Adam)
    loader = DataLoader(tiny_data(64), 16)
    trainer = fitted(model, "step", data=loader, val=loader, epochs=2, num_sanity_val_steps=0)
    trainer.validate(model, loader, verbose=False)
    path = tmp_path / "step.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert list(saved["state_dict"]) == list(copy.deepcopy(model).state_dict())
    assert [float(state["step"]) for state in saved["optimizer_states"][0]["state"].values()] == [8.0] * 4
    resumed, whole = Validated(torch.optim.Adam), Validated(torch.optim.Adam)
    fitted(resumed, "step", data=loader, val=loader, epochs=4, ckpt_path=path)
    fitted(whole, None, data=loader, val=loader, epochs=4)
    assert_close(resumed, whole)


def test_a_smaller_last_batch_takes_the_step_as_it_is(compilations):
    assert_trains_alike(Model(torch.optim.Adam), "step", data=DataLoader(tiny_data(40), 16))
    assert compilations == ["step"]


def test_a_changing_shape_is_compiled_and_reported():
    sizes = [16] * 3 + [5, 7, 9, 11, 13] * 3
    batches = [(torch.randn(size, 32), torch.randint(10, (size,))) for size in sizes]
    with pytest.warns(LeydenWarning, match=r"tensor 0 changed from \(16, 32\) to \(11, 32\).*LD311"):
        assert_trains_alike(Model(), "model", data=batches, epochs=1)


def test_a_log_that_depends_on_data_falls_back_with_one_line(compilations):
    class Depends(Model):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            if loss > 2.3:
                self.log("high", loss, on_epoch=True)
            return loss

    model = Depends(torch.optim.Adam)
    plain = copy.deepcopy(model)
    fitted(plain, None)
    with pytest.warns(LeydenWarning, match=r"^compile='step': the step runs as it is, because torch .*LD310") as said:
        fitted(model, "step")
    assert len(said) == 1 and "\n" not in str(said[0].message)
    assert_same(model, plain)
    assert compilations == []


@pytest.mark.parametrize("mode", ["model", "step"])
def test_a_machine_without_a_compiler_trains_on_from_the_same_state(mode):
    model = Noisy()
    plain = copy.deepcopy(model)
    fitted(plain, None)
    without = {"cpp.cxx": (None, "no-such-compiler"), "fx_graph_cache": False}
    with (
        torch._inductor.config.patch(without),
        torch._functorch.config.patch(enable_autograd_cache=False),
        pytest.warns(LeydenWarning, match="LD310"),
    ):
        fitted(model, mode)
    assert_same(model, plain)


class Listens(leyden.Callback):
    def on_after_backward(self, trainer, module):
        assert module.net[0].weight.grad is not None


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (Model(), {"callbacks": [Listens()]}, "on_after_backward"),
        (Model(), {"accumulate_grad_batches": 2}, "accumulate_grad_batches=2"),
        (Model(torch.optim.RMSprop), {}, "RMSprop is not"),
        (Model(), {"profiler": "simple"}, "a profiler measures"),
        (Model(torch.optim.Adam, lr=torch.tensor(0.01)), {}, "lr is a tensor"),
    ],
    ids=["hook", "accumulation", "optimizer", "profiler", "tensor"],
)
def test_what_cannot_be_one_graph_has_its_model_compiled(model, options, reason, compilations):
    with pytest.warns(LeydenWarning, match=f"compile='model' is used, because .*{reason}.*LD310"):
        fitted(model, "step", epochs=2, **options)
    assert compilations == ["model"]


def test_manual_optimization_runs_as_it_is(compilations):
    class Manual(TinyModel):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(self.loss(batch))
            self.optimizers().step()

    with pytest.warns(LeydenWarning, match="as it is, because in manual optimization.*LD310"):
        fitted(Manual(), "model")
    assert compilations == []


def test_a_step_for_several_optimizers_runs_as_it_is(compilations):
    class Two(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            return {"first": loss, "second": loss * 2}

        def configure_optimizers(self):
            weights = list(self.parameters())
            return {"first": torch.optim.SGD(weights[:2], lr=0.1), "second": torch.optim.SGD(weights[2:], lr=0.1)}

    with pytest.warns(LeydenWarning, match="losses of several optimizers.*LD310"):
        fitted(Two(), "step")
    assert compilations == []


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    batches = [(torch.randn(16, 32), torch.randint(10, (16,))) for _ in range(4)]
    batches[3][0][0, 0] = float("nan")
    model, plain = Model(torch.optim.Adam), Model(torch.optim.Adam)
    fitted(plain, "step", data=batches[:3], epochs=1)
    with pytest.raises(NonFiniteLossError, match="The loss is nan in epoch 0, batch 3"):
        fitted(model, "step", data=batches, epochs=1)
    assert_same(model, plain)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16-mixed", 2e-3), ("64-true", 1e-9), ("bf16-true", 2e-2)])
def test_precisions_hold_in_the_graph(precision, tolerance, compilations):
    model = Model(torch.optim.Adam)
    plain = copy.deepcopy(model)
    fitted(plain, None, precision=precision)
    fitted(model, "step", precision=precision)
    assert_close(model, plain, tolerance=tolerance)
    assert compilations == ["step"]
    assert {p.dtype for p in model.parameters()} == {p.dtype for p in plain.parameters()}


def test_layers_that_are_frozen_or_thawed_in_mid_epoch_train_as_by_the_step():
    class Thaws(leyden.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            module.net[0].requires_grad_(trainer.global_step < 3 or trainer.global_step >= 7)

    model, plain = Model(torch.optim.Adam), Model(torch.optim.Adam)
    with pytest.warns(LeydenWarning, match="LD310"):
        trainer = fitted(model, "step", callbacks=[Thaws()])
    expected = fitted(plain, None, callbacks=[Thaws()])
    assert_close(model, plain)
    steps = [[float(s["step"]) for s in t.optimizers[0].state.values()] for t in (trainer, expected)]
    assert steps[0] == steps[1] == [8.0, 8.0, 12.0, 12.0]


def test_auto_takes_what_is_faster_and_says_what_it_measured(capsys, compilations):
    model = Noisy()
    assert_trains_alike(model, "auto")
    assert "compile='auto': microseconds a step: eager " in capsys.readouterr().err
    assert compilations == ["step"]


def test_steps_taken_to_measure_leave_everything_as_it_was():
    class Remembers(Noisy):
        def __init__(self):
            super().__init__()
            self.count, self.history, self.total = 0, [], torch.zeros(())

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.count += 1
            self.history.append(self.count)
            self.total += loss.detach()
            self.last = loss.detach()
            return loss

    class Measures(leyden.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            run, optimizer = trainer._running, trainer.optimizers[0]
            parts = (module.state_dict(), optimizer.state_dict(), module.count, module.history, module.total)
            before, history, last = copy.deepcopy(parts), module.history, module.last
            rng, gradient = torch.get_rng_state(), module.net[0].weight.grad
            with compiling.unchanged(run):
                for _ in range(3):
                    optimizer.zero_grad()
                    module.training_step(batch, batch_idx).backward()
                    optimizer.step()
                assert len(module.history) == len(before[3]) + 3
                assert not torch.equal(module.net[0].weight, before[0]["net.0.weight"])
            after = (module.state_dict(), optimizer.state_dict(), module.count, module.history, module.total)
            assert str(after) == str(before)
            assert module.history is history and module.last is last
            assert module.net[0].weight.grad is gradient
            assert torch.equal(torch.get_rng_state(), rng)

    model, plain = Remembers(), Remembers()
    fitted(model, None, callbacks=[Measures()])
    fitted(plain, None)
    assert_same(model, plain)


def test_what_changes_at_each_step_is_given_up_in_the_end():
    class Counts(Model):
        count, label = 0, ""

        def training_step(self, batch, batch_idx):
            self.count += 1  # two compilations: one for a number, one for any
            self.label += "."  # torch compiles for one text
            return self.loss(batch)

    model, plain = Counts(), Counts()
    with (
        torch._dynamo.config.patch(recompile_limit=3),
        pytest.warns(LeydenWarning, match=r"compiled 3 times, torch says .*(count|label).*LD310"),
    ):
        fitted(model, "model")
    fitted(plain, None)
    assert_close(model, plain)
    assert (model.count, model.label) == (12, "." * 12)


def test_false_compiles_nothing():
    assert leyden.Trainer(compile=False, logger=False).options.compile is None
