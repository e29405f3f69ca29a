"""What a training batch does to gradients, weights and counters where the plain way is left."""

from __future__ import annotations

import copy

import pytest
import torch

from leyden import Callback
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
