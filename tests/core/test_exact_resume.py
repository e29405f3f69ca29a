"""The resume matrix: from the middle and from the end of an epoch, a run goes on as if it had never stopped."""

from __future__ import annotations

import copy
import random
from functools import partial

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Subset, WeightedRandomSampler

import leyden
from leyden.core.callback import Callback
from leyden.core.checkpoint import capture
from leyden.core.combined import CombinedLoader
from models import FEATURES, ValidatedModel, tiny_data, tiny_loader

BATCHES = 5
PLAIN = partial(tiny_data, 72)
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


# Data.


class Augmented(Dataset):
    """tiny_data with noise from all three generators, drawn whenever a sample is read."""

    def __init__(self, samples=72):
        self.data = tiny_data(samples)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + torch.randn(FEATURES) * random.random() + numpy.random.randn(), y


class Together(Augmented):
    """The same, read a batch at a time."""

    def __getitems__(self, indices):
        noise = torch.randn(len(indices))
        return [(self.data[index][0] + noise[i], self.data[index][1]) for i, index in enumerate(indices)]


class Stream(IterableDataset):
    """Augmented samples in order; with a state, they go on where they were."""

    def __iter__(self):
        data = Augmented()
        return (data[index] for index in range(len(data)))


class StatefulStream(IterableDataset):
    position = 0

    def __iter__(self):
        data = Augmented()
        while self.position < len(data):
            self.position += 1
            yield data[self.position - 1]
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class DrawsAsItGoes:
    """A sampler that draws each index when it is asked for it."""

    def __iter__(self):
        return (random.randrange(72) for _ in range(72))

    def __len__(self):
        return 72


class Buckets:
    """A batch sampler that shuffles by Python's generator when its pass begins, and flips coins on the way."""

    def __iter__(self):
        order = list(range(72))
        random.shuffle(order)
        for start in range(0, 72, 16):
            batch = order[start : start + 16]
            yield batch[::-1] if numpy.random.rand() < 0.5 else batch

    def __len__(self):
        return BATCHES


class HandWritten:
    """An iterable that is no DataLoader: it draws when it begins, and as it goes."""

    def __iter__(self):
        data = Augmented()
        for indices in torch.randperm(72).split(16):
            samples = [data[index] for index in indices.tolist()]
            yield torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


class HandMade(DataLoader):
    """A DataLoader with an __iter__ of its own."""

    def __iter__(self):
        return iter(super().__iter__())


def mixed_up(samples):
    x, y = torch.utils.data.default_collate(samples)
    share = numpy.random.beta(0.2, 0.2)
    return x * share + x.flip(0) * (1 - share), y


def loader_of(dataset=Augmented, batch_size=16, **options):
    return DataLoader(dataset(), batch_size=batch_size, **options)


def combined(mode):
    return CombinedLoader({"a": loader_of(shuffle=True), "b": loader_of(partial(Augmented, 40), shuffle=True)}, mode)


def weighted(**options):
    return loader_of(sampler=WeightedRandomSampler(torch.arange(1.0, 73), 72), **options)


def own_generator():
    return loader_of(shuffle=True, generator=torch.Generator().manual_seed(5))


shuffled = partial(loader_of, shuffle=True)
in_workers = partial(shuffled, num_workers=2)
persistent = partial(in_workers, persistent_workers=True)


# Models.


class Model(ValidatedModel):
    """Dropout, batch norm, momentum, a scheduler by step, and a step that draws from every generator."""

    def __init__(self):
        super().__init__()
        self.net.insert(1, nn.Dropout(0.2))
        self.net.insert(1, nn.BatchNorm1d(32))
        self.seen, self.logged = [], []

    def training_step(self, batch, batch_idx):
        if isinstance(batch, dict):
            batch = (
                batch["a"]
                if batch["b"] is None
                else [torch.cat(part) for part in zip(batch["a"], batch["b"], strict=True)]
            )
        self.seen.append((self.current_epoch, batch_idx, batch[0].sum().item()))
        noise = random.random() + torch.rand(()) + abs(numpy.random.randn())
        return super().training_step(batch, batch_idx) * noise

    def on_train_epoch_end(self):
        self.logged.append({name: value.item() for name, value in self.trainer.callback_metrics.items()})

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Watching(Model):
    """Its learning rate falls when validation does not improve."""

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Averaged(Model):
    """Keeps an exponential moving average of its weights."""

    def __init__(self):
        super().__init__()
        self.average = torch.optim.swa_utils.AveragedModel(
            self.net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.average.update_parameters(self.net)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=0.01)


class Manual(Model):
    """Accumulates by hand, over three batches."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 3)
        if (batch_idx + 1) % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Alternating(Model):
    """Two optimizers; the second takes its turn in every other batch."""

    def training_step_first(self, batch, batch_idx):
        return Model.training_step(self, batch, batch_idx)

    def training_step_second(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        first = torch.optim.Adam(self.net[0].parameters(), lr=0.01)
        second = torch.optim.Adam(self.net[1:].parameters(), lr=0.01)
        return {"first": first, "second": {"optimizer": second, "every": 2}}


class Searching(Model):
    """LBFGS, which calls its closure several times."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.01, max_iter=3)


# The matrix. A case may resume with another loader than it began with.

CASES = {
    "plain": {"loader": partial(loader_of, PLAIN)},
    "shuffled": {"loader": partial(shuffled, PLAIN)},
    "part of the data": {
        "loader": partial(shuffled, lambda: Subset(Augmented(100), range(0, 100, 2))),
        "steps": (6, 8),
    },
    "with replacement": {"loader": lambda: loader_of(sampler=RandomSampler(range(72), replacement=True))},
    "augmented": {"loader": shuffled},
    "augmented together": {"loader": partial(shuffled, Together)},
    "augmented when collated": {"loader": partial(shuffled, PLAIN, collate_fn=mixed_up)},
    "the last batch dropped": {"loader": partial(shuffled, drop_last=True), "steps": (6, 8)},
    "one by one": {"loader": lambda: DataLoader(Ready(), batch_size=None, shuffle=True)},
    "a generator of its own": {"loader": own_generator},
    "weighted": {"loader": weighted},
    "a sampler that draws as it goes": {"loader": lambda: loader_of(sampler=DrawsAsItGoes())},
    "a batch sampler": {"loader": lambda: DataLoader(Augmented(), batch_sampler=Buckets())},
    "workers": {"loader": in_workers},
    "persistent workers": {"loader": persistent},
    "workers, one by one": {"loader": lambda: DataLoader(Ready(), batch_size=None, shuffle=True, num_workers=2)},
    "workers before": {"loader": in_workers, "resumed": shuffled},
    "workers after": {"loader": shuffled, "resumed": persistent},
    "workers, a batch sampler": {"loader": lambda: DataLoader(Augmented(), batch_sampler=Buckets(), num_workers=2)},
    "a stream": {"loader": partial(loader_of, Stream)},
    "a stream in workers": {"loader": partial(loader_of, Stream, num_workers=1)},
    "a stream with a state": {"loader": partial(loader_of, StatefulStream)},
    "by hand": {"loader": HandWritten},
    "a DataLoader of another kind": {"loader": lambda: HandMade(Augmented(), batch_size=16, shuffle=True)},
    "combined, shortest": {"loader": partial(combined, "min_size"), "steps": (4, 6)},
    "combined, longest": {"loader": partial(combined, "max_size")},
    "combined, in cycles": {"loader": partial(combined, "max_size_cycle")},
    "limited": {"limit_train_batches": 4, "steps": (6, 8)},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.5},
    "validated in mid-epoch": {"val_check_interval": 2},
    "validated by a metric": {"make": Watching, "val_check_interval": 2},
    "averaged": {"make": Averaged},
    "in bfloat16": {"precision": "bf16-mixed"},
    "by hand, accumulated": {"make": Manual},
    "two optimizers": {"make": Alternating},
    "LBFGS": {"make": Searching},
}


class Ready(Augmented):
    """Augmented batches that are ready when they are read."""

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        samples = [super(Ready, self).__getitem__(i) for i in range(index * 14, index * 14 + 14)]
        return torch.utils.data.default_collate(samples)


class Saves(Callback):
    """Asks for mid.ckpt behind one batch of the run, and for end.ckpt at the end of the epoch that another one ends."""

    def __init__(self, middle=0, end=0):
        self.middle, self.end = middle, end

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.state.position.batch_total == self.middle:
            trainer.request_checkpoint("mid.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.state.position.batch_total == self.end:
            trainer.request_checkpoint("end.ckpt")


def fitted(loader, *callbacks, make=Model, seed=1, path=None, val_batches=2, **options):
    """Train with all generators seeded; returns the model and all that a checkpoint of its end holds."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    model = make()
    defaults = {"max_epochs": 3, "enable_checkpointing": False, "callbacks": list(callbacks), **QUIET}
    trainer = leyden.Trainer(**defaults | options)
    trainer.fit(model, loader(), tiny_loader(val_batches, seed=1), ckpt_path=path)
    return model, copy.deepcopy(capture(trainer._run))


def differences(one, other, place=""):
    """Where two nested values differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [place]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{place}[{key!r}]")]
    if isinstance(one, list | tuple) and type(one) is type(other) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{place}[{i}]")]
    return [] if one == other else [place]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_run_that_was_never_stopped(case):
    options = {"loader": shuffled, **CASES[case]}
    loader, middle_and_end = options.pop("loader"), options.pop("steps", (7, 10))
    resumed_loader = options.pop("resumed", loader)
    whole, end = fitted(loader, Saves(*middle_and_end), **options)
    for path in ("mid.ckpt", "end.ckpt"):
        resumed, other_end = fitted(resumed_loader, seed=99, path=path, **options)
        assert 0 < len(resumed.seen) < len(whole.seen)
        assert resumed.seen == whole.seen[-len(resumed.seen) :], path
        assert resumed.logged == whole.logged[-len(resumed.logged) :], path
        assert differences(end, other_end) == [], path


@pytest.mark.parametrize("dataset", [Augmented, Together])
def test_the_number_of_workers_changes_nothing(dataset):
    runs = [
        fitted(partial(shuffled, dataset, **options))
        for options in ({}, {"num_workers": 1}, {"num_workers": 2, "persistent_workers": True})
    ]
    for model, end in runs[1:]:
        assert model.seen == runs[0][0].seen
        assert model.logged == runs[0][0].logged
        assert differences(runs[0][1], end) == []
