"""Adam and AdamW by their fused kernels, which torch has on CPUs too: there it is tried, and on a GPU where one is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from leyden import Callback
from leyden.core import finite, run
from leyden.utils.errors import NonFiniteLossError
from models import TinyModel, tiny_loader
from recording import bare


@pytest.fixture
def fused(monkeypatch):
    monkeypatch.setattr(run, "FUSED_ON", ("cpu", "cuda"))


class Model(TinyModel):
    """Its optimizer is made by ``make``."""

    def __init__(self, make=lambda parameters: Adam(parameters, lr=0.01)):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


def steps_of(optimizer) -> list[Tensor]:
    return [state["step"] for state in optimizer.state.values()]


def equal(one, other) -> bool:
    return all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_an_optimizer_that_was_not_told_how_steps_as_with_fused_true(kind):
    ours, torchs = Model(kind), Model(lambda parameters: kind(parameters, fused=True))
    for model in (ours, torchs):
        trainer = bare()
        trainer.fit(model, list(tiny_loader(20)))
        assert all(group["fused"] for group in trainer.optimizers[0].param_groups)
        assert all(step.item() == 20 for step in steps_of(trainer.optimizers[0]))
    assert equal(ours, torchs)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: Adam(parameters, foreach=True),
        lambda parameters: Adam(parameters, fused=False),
        lambda parameters: Adam(parameters, lr=torch.tensor(0.01)),
        lambda parameters: SGD(parameters, lr=0.1),
        type("Own", (Adam,), {}),
    ],
)
def test_other_optimizers_keep_their_way(make):
    trainer = bare(max_steps=2, warnings={"LD053": "ignore"})
    before = make(TinyModel().parameters()).param_groups[0].get("fused")
    trainer.fit(Model(make), list(tiny_loader(4)))
    assert trainer.optimizers[0].param_groups[0].get("fused") is before


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("options", [{"fast_paths": False}, {"compile": "model"}])
def test_the_run_may_rule_it_out(options):
    if "compile" in options:
        options = options | {"warnings": {"LD310": "ignore"}}
    trainer = bare(**options)
    trainer.fit(Model(), list(tiny_loader(2)))
    assert trainer.optimizers[0].param_groups[0]["fused"] is None


def test_on_a_cpu_nothing_is_fused_by_itself():
    trainer = bare(max_steps=1)
    trainer.fit(Model(), list(tiny_loader(2)))
    assert trainer.optimizers[0].param_groups[0]["fused"] is None


@pytest.mark.usefixtures("fused")
def test_checkpoints_are_as_without_it_and_resume_to_the_bit(tmp_path):
    whole = Model()
    bare(max_epochs=2).fit(whole, list(tiny_loader(8)))
    trainer = bare(max_epochs=1)
    trainer.fit(Model(), list(tiny_loader(8)))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    (saved,) = torch.load(tmp_path / "one.ckpt", weights_only=True)["optimizer_states"]
    assert [group["fused"] for group in saved["param_groups"]] == [None]
    resumed = Model()
    bare(max_epochs=2).fit(resumed, list(tiny_loader(8)), ckpt_path=tmp_path / "one.ckpt")
    assert equal(resumed, whole)


def test_a_run_goes_on_by_fused_kernels_where_it_began_by_others_and_back(tmp_path, monkeypatch):
    def fit(epochs, path=None):
        trainer, model = bare(max_epochs=epochs), Model()
        trainer.fit(model, list(tiny_loader(8)), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return trainer.optimizers[0], model

    _, plain = fit(3)
    fit(1)
    monkeypatch.setattr(run, "FUSED_ON", ("cpu",))
    optimizer, _ = fit(2, tmp_path / "1.ckpt")
    assert optimizer.param_groups[0]["fused"] and {step.item() for step in steps_of(optimizer)} == {16}
    monkeypatch.setattr(run, "FUSED_ON", ("cuda",))
    optimizer, model = fit(3, tmp_path / "2.ckpt")
    assert optimizer.param_groups[0]["fused"] is None and {step.item() for step in steps_of(optimizer)} == {24}
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("fused")
def test_groups_that_are_added_later_step_too():
    class Adding(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                trainer.optimizers[0].add_param_group({"params": [pl_module.net[2].weight]})

    model = Model(lambda parameters: Adam([parameter for parameter in parameters if parameter.shape != (10, 32)]))
    before = model.net[2].weight.detach().clone()
    with pytest.warns(match="LD280"):
        bare(callbacks=[Adding()]).fit(model, list(tiny_loader(6)))
    assert not torch.equal(model.net[2].weight, before)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("at", [3, 25])
def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were(at, monkeypatch):
    monkeypatch.setattr(finite, "_LATE", ("cpu",))

    class Breaking(Model):
        def training_step(self, batch, batch_idx):
            if batch_idx == at:
                kept.extend(parameter.detach().clone() for parameter in self.parameters())
            loss = super().training_step(batch, batch_idx)
            return loss * torch.nan if batch_idx == at else loss

    kept: list[Tensor] = []
    model = Breaking()
    with pytest.raises(NonFiniteLossError, match="The weights are as they were before this step"):
        bare().fit(model, list(tiny_loader(30)))
    assert all(map(torch.equal, model.parameters(), kept))


@pytest.mark.gpu
def test_on_a_gpu_adam_is_fused_and_resumes_to_the_bit(tmp_path):
    whole = Model()
    bare(max_epochs=2, accelerator="gpu").fit(whole, list(tiny_loader(8)))
    trainer = bare(max_epochs=1, accelerator="gpu")
    trainer.fit(Model(), list(tiny_loader(8)))
    assert trainer.optimizers[0].param_groups[0]["fused"]
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = Model()
    bare(max_epochs=2, accelerator="gpu").fit(resumed, list(tiny_loader(8)), ckpt_path=tmp_path / "one.ckpt")
    assert equal(resumed, whole)
