"""Several optimizers in automatic optimization, and batches that weigh differently."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leyden
from leyden.utils.errors import MisconfigurationError
from models import TinyModel


def bare(**options):
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return leyden.Trainer(**{"max_epochs": 1, **off, **options})


class WGAN(leyden.LightningModule):
    """Two players on two numbers; remembers what each step changed."""

    def __init__(self, n_critic=5):
        super().__init__()
        self.generator, self.critic = nn.Linear(2, 2), nn.Linear(2, 1)
        self.n_critic = n_critic
        self.steps = {"generator": 0, "critic": 0}
        self.leaks = []

    def training_step_critic(self, batch, batch_idx):
        fake = self.generator(torch.randn_like(batch[0]))
        return self.critic(fake).mean() - self.critic(batch[0]).mean()

    def training_step_generator(self, batch, batch_idx):
        return -self.critic(self.generator(torch.randn_like(batch[0]))).mean()

    def on_before_optimizer_step(self, optimizer):
        name = "generator" if optimizer.param_groups[0]["params"][0] is self.generator.weight else "critic"
        self.steps[name] += 1
        other = self.critic if name == "generator" else self.generator
        if any(parameter.requires_grad for parameter in other.parameters()):
            self.leaks.append(name)

    def on_after_backward(self):
        for player in (self.generator, self.critic):
            frozen = not player.weight.requires_grad
            if frozen and player.weight.grad is not None and not torch.equal(player.weight.grad, player.seen):
                self.leaks.append("a frozen player's gradient changed")
            player.seen = None if player.weight.grad is None else player.weight.grad.clone()

    def configure_optimizers(self):
        return {
            "critic": torch.optim.SGD(self.critic.parameters(), lr=0.1),
            "generator": {"optimizer": torch.optim.SGD(self.generator.parameters(), lr=0.1), "every": self.n_critic},
        }


def pairs(samples=80):
    return TensorDataset(torch.randn(samples, 2, generator=torch.Generator().manual_seed(0)) + 3)


def test_a_wgan_steps_its_critic_in_every_batch_and_its_generator_in_every_fifth():
    model = WGAN(n_critic=5)
    trainer = bare(max_epochs=2)
    trainer.fit(model, DataLoader(pairs(), 4))
    assert model.steps == {"critic": 40, "generator": 8}
    assert model.leaks == []
    assert trainer.global_step == 40
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_wgan_equals_the_loop_written_by_hand():
    ours = WGAN(n_critic=2)
    theirs = copy.deepcopy(ours)
    critic = torch.optim.SGD(theirs.critic.parameters(), lr=0.1)
    generator = torch.optim.SGD(theirs.generator.parameters(), lr=0.1)
    torch.manual_seed(3)
    for index, batch in enumerate(DataLoader(pairs(), 4)):
        loss = theirs.training_step_critic(batch, index)
        critic.zero_grad()
        loss.backward()
        critic.step()
        if index % 2:
            loss = theirs.training_step_generator(batch, index)
            generator.zero_grad()
            loss.backward()
            generator.step()
    torch.manual_seed(3)
    bare().fit(ours, DataLoader(pairs(), 4))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


class TwoHeads(TinyModel):
    """One step, a loss for each half of the model; each loss depends on the weights of both."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return {"first": loss, "second": 2 * loss, "seen": batch_idx}

    def configure_optimizers(self):
        first = torch.optim.SGD(self.net[0].parameters(), lr=0.1)
        return {
            "first": {"optimizer": first, "lr_scheduler": torch.optim.lr_scheduler.StepLR(first, 1, gamma=0.5)},
            "second": torch.optim.Adam(self.net[2].parameters(), lr=0.01),
        }


def tiny_data(samples=32):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(samples, 32, generator=generator), torch.randint(0, 10, (samples,), generator=generator)
    )


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_losses_by_name_reach_the_parameters_of_their_own_optimizer_alone(accumulate):
    ours = TwoHeads()
    theirs = copy.deepcopy(ours)
    first = torch.optim.SGD(theirs.net[0].parameters(), lr=0.1)
    second = torch.optim.Adam(theirs.net[2].parameters(), lr=0.01)
    batches = list(DataLoader(tiny_data(), 4))
    for epoch in range(2):
        first.param_groups[0]["lr"] = 0.1 * 0.5**epoch
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            first.zero_grad(), second.zero_grad()
            for batch in window:
                loss = theirs.loss(batch)
                share = len(window)
                (2 * loss / share).backward(inputs=list(theirs.net[2].parameters()), retain_graph=True)
                (loss / share).backward(inputs=list(theirs.net[0].parameters()))
            first.step(), second.step()
    bare(max_epochs=2, accumulate_grad_batches=accumulate).fit(ours, DataLoader(tiny_data(), 4))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_hooks_see_the_losses_detached_and_what_else_the_step_returned():
    class Sees(TwoHeads):
        seen = []

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.seen.append({name: getattr(value, "requires_grad", value) for name, value in outputs.items()})

    bare(max_steps=1).fit(Sees(), DataLoader(tiny_data(), 4))
    assert Sees.seen == [{"first": False, "second": False, "seen": 0}]


def test_clipping_works_for_each_optimizer():
    class Norms(TwoHeads):
        norms = []

        def on_train_batch_end(self, outputs, batch, batch_idx):
            for layer in (self.net[0], self.net[2]):
                grads = [parameter.grad for parameter in layer.parameters()]
                self.norms.append(float(torch.nn.utils.get_total_norm(grads)))

    bare(gradient_clip_val=0.01).fit(Norms(), DataLoader(tiny_data(), 4))
    assert len(Norms.norms) == 16
    assert Norms.norms == pytest.approx([0.01] * 16, rel=1e-3)


def test_a_scheduler_by_step_steps_with_its_own_optimizer():
    class Scheduled(WGAN):
        def configure_optimizers(self):
            found = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.StepLR(found["generator"]["optimizer"], 1, gamma=0.5)
            found["generator"]["lr_scheduler"] = {"scheduler": scheduler, "interval": "step"}
            return found

    trainer = bare()
    trainer.fit(Scheduled(n_critic=5), DataLoader(pairs(), 4))
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [0.1 * 0.5**4]


def test_a_run_with_two_players_goes_on_from_a_checkpoint_to_the_last_bit(tmp_path):
    straight = WGAN(n_critic=2)
    resumed = copy.deepcopy(straight)
    torch.manual_seed(1)
    bare(max_epochs=2).fit(straight, DataLoader(pairs(), 4, shuffle=True))
    torch.manual_seed(1)
    trainer = bare(max_steps=7)
    trainer.fit(resumed, DataLoader(pairs(), 4, shuffle=True))
    trainer.save_checkpoint(tmp_path / "seven.ckpt")
    again = WGAN(n_critic=2)
    bare(max_epochs=2).fit(again, DataLoader(pairs(), 4, shuffle=True), ckpt_path=tmp_path / "seven.ckpt")
    for one, other in zip(again.parameters(), straight.parameters(), strict=True):
        assert torch.equal(one, other)


def test_optimizers_without_names_are_refused_with_both_ways_out():
    class Unnamed(TinyModel):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[0].parameters()), torch.optim.SGD(self.net[2].parameters())]

    with pytest.raises(MisconfigurationError, match=r"2 optimizers without names.*automatic_optimization = F"):
        bare().fit(Unnamed(), DataLoader(tiny_data(), 4))


def test_a_step_for_one_name_alone_is_refused():
    class Half(TwoHeads):
        def training_step_first(self, batch, batch_idx):
            return self.loss(batch)

    with pytest.raises(MisconfigurationError, match=r"training_step_second"):
        bare().fit(Half(), DataLoader(tiny_data(), 4))


def test_a_loss_under_none_of_the_names_is_refused():
    class Wrong(TwoHeads):
        def training_step(self, batch, batch_idx):
            return self.loss(batch)

    with pytest.raises(MisconfigurationError, match=r"losses by the names of the optimizers, first, second"):
        bare().fit(Wrong(), DataLoader(tiny_data(), 4))


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "2"])
def test_every_must_be_a_whole_number(every):
    class Every(TwoHeads):
        def configure_optimizers(self):
            found = super().configure_optimizers()
            return {**found, "first": {**found["first"], "every": every}}

    with pytest.raises(MisconfigurationError, match=re.escape(f"every={every!r}")):
        bare().fit(Every(), DataLoader(tiny_data(), 4))


class Ragged(TinyModel):
    """The mean loss over the samples of a batch that are not padding, and how many these are."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        keep = y >= 0
        loss = nn.functional.cross_entropy(self(x)[keep], y[keep])
        return {"loss": loss, "weight": keep.sum()}


def padded():
    x, y = tiny_data(24).tensors
    y = y.clone()
    y[[1, 2, 3, 5, 8, 9, 10, 17]] = -1
    return TensorDataset(x, y)


def test_weighted_batches_accumulate_to_the_gradient_of_one_large_batch():
    weights = {}
    for batch_size, accumulate in ((8, 1), (4, 2), (1, 8)):
        torch.manual_seed(0)
        model = Ragged()
        data = padded()
        if batch_size == 1:  # a batch of nothing but padding has no mean
            data.tensors[1][data.tensors[1] < 0] = -1
            model.training_step = lambda batch, index, model=model: one_sample(model, batch)
        bare(max_epochs=2, accumulate_grad_batches=accumulate).fit(model, DataLoader(data, batch_size))
        weights[batch_size] = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert torch.allclose(weights[8], weights[4], atol=1e-6, rtol=0)
    assert torch.allclose(weights[8], weights[1], atol=1e-6, rtol=0)


def one_sample(model, batch):
    x, y = batch
    keep = (y >= 0).float()
    losses = nn.functional.cross_entropy(model(x), y.clamp(min=0), reduction="none")
    return {"loss": (losses * keep).sum(), "weight": keep.sum()}


def test_a_tail_window_of_weighted_batches_is_exact_too():
    weights = []
    for batch_size, accumulate in ((24, 1), (5, 7)):
        model = Ragged()
        bare(accumulate_grad_batches=accumulate).fit(model, DataLoader(padded(), batch_size))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.allclose(*weights, atol=1e-6, rtol=0)
