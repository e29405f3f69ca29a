"""Clipping, accumulation and toggling in manual optimization, against the loop written by hand."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import leyden
from leyden.utils.errors import LeydenWarning
from models import TinyModel, tiny_data, tiny_loader
from recording import bare


def assert_same(one, other):
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


class Manual(TinyModel):
    """Steps by hand; ``order`` says when the gradients are cleared: before the backward pass or after the step."""

    automatic_optimization = False

    def __init__(self, order="before", optimizer="adam"):
        super().__init__(optimizer)
        self.order, self.steps, self.grads = order, [], []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        if self.order == "before":
            optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        if self.order == "after":
            optimizer.zero_grad()
        self.steps.append(self.global_step)


def by_hand(model, batches, epochs=2, accumulate=1, clip=None, algorithm="norm"):
    optimizer = model.configure_optimizers()
    tail = len(batches) // accumulate * accumulate
    for _ in range(epochs):
        for index, batch in enumerate(batches):
            window = accumulate if index < tail else len(batches) - tail
            if index % accumulate == 0:
                optimizer.zero_grad()
            (model.loss(batch) / window).backward()
            if (index + 1) % accumulate == 0 or index + 1 == len(batches):
                if clip is not None and algorithm == "norm":
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                elif clip is not None:
                    nn.utils.clip_grad_value_(model.parameters(), clip)
                optimizer.step()


# One optimizer.


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("accumulate", [2, 3, 5, 9])
def test_accumulation_gives_the_same_bits_as_by_hand(accumulate, order):
    ours = Manual(order)
    theirs = copy.deepcopy(ours)
    by_hand(theirs, list(tiny_loader(7)), accumulate=accumulate)
    trainer = bare(max_epochs=2, accumulate_grad_batches=accumulate)
    trainer.fit(ours, tiny_loader(7))
    assert_same(ours, theirs)
    assert trainer.global_step == 2 * -(-7 // accumulate)


def test_only_real_steps_count():
    model = Manual()
    trainer = bare(accumulate_grad_batches=3)
    trainer.fit(model, tiny_loader(7))
    assert model.steps == [0, 0, 1, 1, 1, 2, 3]  # the last window has one batch
    assert trainer.state.position.stepped_batches == 3
    assert trainer.estimated_stepping_batches == 3


@pytest.mark.parametrize(("clip", "algorithm"), [(0.05, "norm"), (0.01, "value")])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_clipping_gives_the_same_bits_as_by_hand(clip, algorithm, accumulate):
    ours = Manual()
    theirs = copy.deepcopy(ours)
    by_hand(theirs, list(tiny_loader(7)), accumulate=accumulate, clip=clip, algorithm=algorithm)
    options = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm, "accumulate_grad_batches": accumulate}
    bare(max_epochs=2, **options).fit(ours, tiny_loader(7))
    assert_same(ours, theirs)


def test_an_overridden_configure_gradient_clipping_clips_at_every_step():
    class Own(Manual):
        calls = ()

        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.calls += ((type(optimizer), gradient_clip_val, gradient_clip_algorithm),)
            self.clip_gradients(optimizer, gradient_clip_val / 2, gradient_clip_algorithm)

    ours = Own()
    theirs = copy.deepcopy(ours)
    by_hand(theirs, list(tiny_loader(4)), epochs=1, accumulate=2, clip=0.05)
    bare(gradient_clip_val=0.1, accumulate_grad_batches=2).fit(ours, tiny_loader(4))
    assert_same(ours, theirs)
    assert ours.calls == ((torch.optim.Adam, 0.1, "norm"),) * 2


def test_hooks_before_the_step_see_the_whole_gradient_unclipped():
    class Looks(Manual):
        seen = ()

        def on_before_optimizer_step(self, optimizer):
            self.seen += (torch.cat([p.grad.flatten() for p in self.parameters()]),)

    model = Looks()
    twin = copy.deepcopy(model)
    batches = list(tiny_loader(2))
    (sum(twin.loss(batch) for batch in batches) / 2).backward()
    bare(gradient_clip_val=1e-3, accumulate_grad_batches=2).fit(model, batches)
    [seen] = model.seen
    assert torch.allclose(seen, torch.cat([p.grad.flatten() for p in twin.parameters()]), atol=1e-7)


def test_a_closure_runs_in_every_batch_and_its_gradients_accumulate():
    class Closure(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()

            def closure():
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            assert optimizer.step(closure).numel() == 1

    ours = Closure()
    theirs = copy.deepcopy(ours)
    by_hand(theirs, list(tiny_loader(5)), accumulate=2)
    bare(max_epochs=2, accumulate_grad_batches=2).fit(ours, tiny_loader(5))
    assert_same(ours, theirs)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(tiny_data(7 * 4))


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_the_tail_window_of_a_loader_without_length_is_a_mean_too(accumulate):
    ours = Manual(optimizer="sgd")
    theirs = copy.deepcopy(ours)
    by_hand(theirs, list(DataLoader(Stream(), 4)), accumulate=accumulate)
    bare(max_epochs=2, accumulate_grad_batches=accumulate).fit(ours, DataLoader(Stream(), 4))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_validation_in_the_middle_of_a_window_leaves_its_gradients_alone():
    class Validated(Manual):
        def validation_step(self, batch, batch_idx):
            self.log("v", self.loss(batch))

    ours = Validated()
    theirs = copy.deepcopy(ours)
    by_hand(theirs, list(tiny_loader(4)), epochs=1, accumulate=4)
    bare(accumulate_grad_batches=4, val_check_interval=1).fit(ours, tiny_loader(4), tiny_loader(1))
    assert_same(ours, theirs)


def test_max_steps_counts_real_steps():
    model = Manual()
    trainer = bare(max_epochs=-1, max_steps=3, accumulate_grad_batches=2)
    trainer.fit(model, tiny_loader(4))
    assert (trainer.global_step, trainer.state.position.batch_total) == (3, 6)


def test_a_run_resumed_in_mid_epoch_ends_with_the_same_bits(tmp_path):
    whole, first, second = Manual(), Manual(), Manual()
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    bare(**options).fit(whole, tiny_loader(7))
    trainer = bare(**options, max_steps=2)
    trainer.fit(first, tiny_loader(7))
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    bare(**options).fit(second, tiny_loader(7), ckpt_path=tmp_path / "part.ckpt")
    assert_same(whole, second)


def test_a_step_in_the_wrong_batches_is_told():
    class Seldom(Manual):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))
            if batch_idx % 2 == 0:
                self.optimizers().step()

    with pytest.warns(LeydenWarning) as told:
        bare(accumulate_grad_batches=2).fit(Seldom(), tiny_loader(4))
    messages = [str(warning.message) for warning in told]
    assert any(re.search(r"Adam\.step\(\) was called .*accumulate_grad_batches=2 call.*LD206", m) for m in messages)


def test_without_the_trainers_clipping_an_overridden_one_is_not_called():
    class Own(Manual):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            raise AssertionError

    trainer = bare()
    trainer.fit(Own(), tiny_loader(2))
    assert trainer.global_step == 2


# Several optimizers.


class Gan(leyden.LightningModule):
    """Two players; the generator's loss reaches the critic's parameters, which clear their gradients afterwards."""

    automatic_optimization = False

    def __init__(self, toggling="none"):
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.critic = nn.Linear(2, 2), nn.Linear(2, 1)
        self.toggling = toggling

    def generator_loss(self, batch):
        return -self.critic(self.generator(batch)).mean()

    def critic_loss(self, batch):
        return (self.critic(self.generator(batch).detach()) - self.critic(batch)).square().mean()

    def players(self):
        return ((self.generator, self.generator_loss), (self.critic, self.critic_loss))

    def configure_optimizers(self):
        return [torch.optim.Adam(player.parameters(), lr=0.01) for player, _ in self.players()]

    def training_step(self, batch, batch_idx):
        for optimizer, (player, loss) in zip(self.optimizers(), self.players(), strict=True):
            if self.toggling == "toggle_model":
                with optimizer.toggle_model(sync_grad=True):
                    self.turn(optimizer, loss, batch)
            elif self.toggling == "toggle_optimizer":
                self.toggle_optimizer(optimizer)
                self.turn(optimizer, loss, batch)
                self.check(player)
                self.untoggle_optimizer(optimizer)
            else:
                self.turn(optimizer, loss, batch)
        assert all(parameter.requires_grad for parameter in self.parameters())

    def turn(self, optimizer, loss, batch):
        optimizer.zero_grad()
        self.manual_backward(loss(batch))
        optimizer.step()

    def check(self, player):
        own = {id(parameter) for parameter in player.parameters()}
        assert all(p.requires_grad == (id(p) in own) for p in self.parameters())


def gan_by_hand(model, batches, accumulate, clip):
    """The gradients of one player at a time, kept by hand from batch to batch."""
    optimizers = model.configure_optimizers()
    sums = [{}, {}]
    tail = len(batches) // accumulate * accumulate
    for index, batch in enumerate(batches):
        window = accumulate if index < tail else len(batches) - tail
        steps = (index + 1) % accumulate == 0 or index + 1 == len(batches)
        for (player, loss), optimizer, held in zip(model.players(), optimizers, sums, strict=True):
            parameters = list(player.parameters())
            gradients = torch.autograd.grad(loss(batch) / window, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                held[parameter] = held[parameter] + gradient if parameter in held else gradient
            if steps:
                for parameter in parameters:
                    parameter.grad = held.pop(parameter)
                nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()


@pytest.mark.parametrize("toggling", ["none", "toggle_model", "toggle_optimizer"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_two_optimizers_accumulate_and_clip_as_by_hand(accumulate, toggling):
    ours = Gan(toggling)
    theirs = copy.deepcopy(ours)
    batches = list(DataLoader(torch.randn(28, 2, generator=torch.Generator().manual_seed(1)), 4))
    gan_by_hand(theirs, batches, accumulate, clip=0.1)
    trainer = bare(accumulate_grad_batches=accumulate, gradient_clip_val=0.1)
    trainer.fit(ours, batches)
    assert_same(ours, theirs)
    assert trainer.global_step == 2 * -(-7 // accumulate)


@pytest.mark.filterwarnings("ignore:.*LD296")
def test_toggle_model_freezes_what_only_other_optimizers_hold_and_gives_it_back_after_an_error():
    seen = []

    class Toggles(Gan):
        def training_step(self, batch, batch_idx):
            _, critic = self.optimizers()
            self.generator.bias.requires_grad = False
            with pytest.raises(ZeroDivisionError), critic.toggle_model():
                seen.extend(parameter.requires_grad for parameter in self.parameters())
                raise ZeroDivisionError
            seen.extend(parameter.requires_grad for parameter in self.parameters())
            critic.step()

    bare().fit(Toggles(), [torch.ones(1, 2)])
    assert seen == [False, False, True, True, True, False, True, True]
