"""A run's weights equal the hand-written loop's, to the last bit."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import leyden
from models import TinyModel

EPOCHS = 3


def loader(batch_size=16, samples=160):
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(samples, 32, generator=generator)
    y = torch.randint(0, 10, (samples,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=True)


def by_hand(model, data, optimizer, *, accumulate=1, clip=None, scheduler=None, per_step=False):
    torch.manual_seed(5)
    batches = len(data)
    for _ in range(EPOCHS):
        for index, (x, y) in enumerate(data):
            tail = batches // accumulate * accumulate
            window = accumulate if index < tail else batches - tail
            if index % accumulate == 0:
                optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model.net(x), y)
            (loss if window == 1 else loss / window).backward()
            if (index + 1) % accumulate == 0 or index + 1 == batches:
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                if scheduler is not None and per_step:
                    scheduler.step()
        if scheduler is not None and not per_step:
            scheduler.step()


class Configured(TinyModel):
    """TinyModel with whatever optimizer and scheduler a test wants."""

    def __init__(self, configure):
        super().__init__()
        self.net.append(nn.Dropout(0.1))  # draws random numbers, so the streams must agree too
        self.configure = configure

    def configure_optimizers(self):
        return self.configure(self)


def adam(module):
    return torch.optim.Adam(module.parameters(), lr=1e-2)


def fitted(model, data, **options):
    torch.manual_seed(5)
    trainer = leyden.Trainer(
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, data)
    return trainer


def assert_same(one, other):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulation_and_clipping_change_no_bit(accumulate, clip):
    torch.manual_seed(0)
    ours = Configured(adam)
    theirs = copy.deepcopy(ours)
    by_hand(theirs, loader(), adam(theirs), accumulate=accumulate, clip=clip)
    trainer = fitted(ours, loader(), accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert_same(ours, theirs)
    assert trainer.global_step == EPOCHS * math.ceil(10 / accumulate)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_scheduler_changes_no_bit(interval):
    torch.manual_seed(0)

    def configure(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    ours = Configured(configure)
    theirs = copy.deepcopy(ours)
    configured = configure(theirs)
    scheduler = configured["lr_scheduler"]["scheduler"]
    by_hand(theirs, loader(), configured["optimizer"], scheduler=scheduler, per_step=interval == "step")
    trainer = fitted(ours, loader())
    assert_same(ours, theirs)
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == scheduler.get_last_lr()


def test_logging_the_bar_checkpoints_and_validation_change_no_bit(tmp_path):
    class Logs(Configured):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log("val_loss", nn.functional.cross_entropy(self.net(x), y))

    torch.manual_seed(0)
    ours = Logs(adam)
    theirs = copy.deepcopy(ours)
    by_hand(theirs, loader(), adam(theirs))
    torch.manual_seed(5)
    trainer = leyden.Trainer(max_epochs=EPOCHS, default_root_dir=tmp_path, num_sanity_val_steps=2, log_every_n_steps=3)
    # The validation loader has its own generator: by hand there is no validation that would draw from torch's.
    validation = DataLoader(TensorDataset(torch.randn(32, 32), torch.zeros(32).long()), 16, generator=torch.Generator())
    torch.manual_seed(5)
    trainer.fit(ours, loader(), validation)
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, weight_decay=0.1),
        lambda p: torch.optim.RMSprop(p),
        lambda p: torch.optim.Adam(p, foreach=True),
        lambda p: torch.optim.Adam(p, fused=True),
    ],
    ids=["AdamW", "RMSprop", "foreach", "fused"],
)
def test_every_optimizer_of_torch_steps_as_by_hand(make):
    torch.manual_seed(0)
    ours = Configured(lambda module: make(module.parameters()))
    theirs = copy.deepcopy(ours)
    by_hand(theirs, loader(), make(theirs.parameters()))
    fitted(ours, loader())
    assert_same(ours, theirs)


def test_a_loader_with_a_generator_of_its_own_is_read_as_by_hand():
    def own_generator():
        data = loader().dataset
        return DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(3))

    torch.manual_seed(0)
    ours = Configured(adam)
    theirs = copy.deepcopy(ours)
    by_hand(theirs, own_generator(), adam(theirs))
    fitted(ours, own_generator())
    assert_same(ours, theirs)


def test_lbfgs_calls_the_closure_as_by_hand():
    torch.manual_seed(0)

    def lbfgs(module):
        return torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3)

    ours = Configured(lbfgs)
    ours.net[-1] = nn.Identity()
    theirs = copy.deepcopy(ours)
    optimizer = lbfgs(theirs)
    torch.manual_seed(5)
    for _ in range(EPOCHS):
        for x, y in loader():

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(theirs.net(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    fitted(ours, loader())
    assert_same(ours, theirs)


def test_an_overridden_optimizer_step_gives_the_same_bits():
    class Overrides(Configured):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step(closure=optimizer_closure)

    torch.manual_seed(0)
    ours = Overrides(adam)
    theirs = copy.deepcopy(ours)
    by_hand(theirs, loader(), adam(theirs), clip=0.05)
    fitted(ours, loader(), gradient_clip_val=0.05)
    assert_same(ours, theirs)


def test_manual_optimization_gives_the_same_bits():
    class Manual(Configured):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            x, y = batch
            optimizer = self.optimizers()
            loss = nn.functional.cross_entropy(self.net(x), y)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    torch.manual_seed(0)
    ours = Manual(adam)
    theirs = copy.deepcopy(ours)
    by_hand(theirs, loader(), adam(theirs))
    trainer = fitted(ours, loader())
    assert_same(ours, theirs)
    assert trainer.global_step == 30


def test_the_tail_window_of_a_loader_without_length_is_a_mean_too():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(loader(samples=160).dataset)

    def sgd(module):
        return torch.optim.SGD(module.parameters(), lr=0.1)

    torch.manual_seed(0)
    ours = Configured(sgd)
    ours.net[-1] = nn.Identity()
    theirs = copy.deepcopy(ours)
    by_hand(theirs, DataLoader(loader().dataset, 16), sgd(theirs), accumulate=4)
    fitted(ours, DataLoader(Stream(), 16), accumulate_grad_batches=4)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-7), name  # scaled after the sum instead of before it
