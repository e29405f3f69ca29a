"""What a training batch does to gradients, weights and counters where the plain way is left."""

from __future__ import annotations

import copy

import pytest
import torch

from leyden import Callback
from leyden.utils.errors import MisconfigurationError
from models import TinyModel, tiny_loader
from recording import bare


def test_a_window_that_is_cut_short_keeps_its_gradients():
    class Cutting(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                trainer.accumulate_grad_batches = 1

    batches = list(tiny_loader(3))
    model = TinyModel("sgd", 0.1)
    expected = copy.deepcopy(model)
    bare(max_epochs=1, accumulate_grad_batches=3, callbacks=[Cutting()]).fit(model, batches)

    optimizer = expected.configure_optimizers()
    for index, batch in enumerate(batches):
        (expected.training_step(batch, index) / (1 if index == 2 else 3)).backward()
    optimizer.step()
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


@pytest.mark.parametrize("whole", ["tensor", "dict"])
def test_a_skipped_batch_leaves_the_weights_and_the_step_count(whole):
    class Skipping(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 20 else loss if whole == "tensor" else {"loss": loss}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append((batch_idx, self.trainer.global_step, self.net[0].weight.detach().clone()))

    seen = []
    trainer = bare(max_epochs=1, warnings={"LD033": "ignore"})
    trainer.fit(Skipping(), list(tiny_loader(22)))
    assert [step for _, step, _ in seen[18:]] == [19, 20, 20, 21]
    assert torch.equal(seen[20][2], seen[19][2])
    assert not torch.equal(seen[21][2], seen[20][2])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("nonfinite", ["stop", "ignore"])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda loss: loss.detach(), "a loss without grad"),
        (lambda loss: loss * torch.ones(3), r"a loss of shape \(3,\); it must have one element"),
        (lambda loss: (loss * torch.ones(3)).detach(), "a loss without grad"),
    ],
)
def test_what_is_no_loss_is_refused_in_whichever_step_it_comes(spoil, says, nonfinite, late):
    class Spoiling(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return spoil(loss) if batch_idx == (20 if late else 0) else loss

    with pytest.raises(MisconfigurationError, match=says) as caught:
        bare(on_nonfinite_loss=nonfinite).fit(Spoiling(), list(tiny_loader(22)))
    assert caught.value.__cause__ is None and (caught.value.__context__ is None or caught.value.__suppress_context__)


@pytest.mark.parametrize("index", [0, 20])
def test_an_error_in_the_backward_pass_stays_as_it_is(index):
    class Failing(TinyModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if batch_idx == index:
                loss.register_hook(fail)
            return loss

    def fail(gradient):
        raise RuntimeError("the cause")

    with pytest.raises(RuntimeError, match="the cause"):
        bare().fit(Failing(), list(tiny_loader(22)))


def test_a_loss_with_one_element_in_a_row_trains_as_a_number_does():
    class InARow(TinyModel):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).reshape(1)

    trained, expected = InARow(), TinyModel()
    for model in (trained, expected):
        bare().fit(model, list(tiny_loader(22)))
    assert all(map(torch.equal, trained.parameters(), expected.parameters()))


def test_a_hook_before_the_step_fires_in_every_step():
    class Hooked(TinyModel):
        def on_before_optimizer_step(self, optimizer):
            fired.append(self.trainer.global_step)

    fired: list[int] = []
    bare().fit(Hooked(), list(tiny_loader(20)))
    assert fired == list(range(20))


def test_optimizers_that_are_replaced_in_mid_epoch_step_from_then_on():
    class Replacing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            weights.append(pl_module.net[0].weight.detach().clone())
            if batch_idx == 18:
                trainer.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.0)]

    weights: list[torch.Tensor] = []
    bare(callbacks=[Replacing()]).fit(TinyModel(), list(tiny_loader(22)))
    assert not torch.equal(weights[17], weights[18])
    assert torch.equal(weights[18], weights[21])
