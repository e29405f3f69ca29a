"""A callback, a module and a datamodule that write down every call of a hook, and a run of the three."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from leyden import Callback, LightningDataModule, LightningModule, Trainer

_PREFIXES = ("on_", "configure_", "transfer_", "optimizer_", "lr_scheduler_", "prepare_data", "setup", "teardown")
_NAMES = ("backward", "clip_gradients", "state_dict", "load_state_dict")
_NO_HOOKS = ("on_gpu", "configure_callbacks", "prepare_data_per_node", "configure_sharded_model")


class Plain(LightningModule):
    """One linear layer 4-1, with all four steps, and a scheduler of each interval."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        pass

    def predict_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self.layer(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        by_epoch, by_step = (torch.optim.lr_scheduler.StepLR(optimizer, 1) for _ in range(2))
        return [optimizer], [by_epoch, {"scheduler": by_step, "interval": "step"}]


class Manual(Plain):
    """The same in manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = self.layer(batch).mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def bare(**options: Any) -> Trainer:
    """A Trainer of one epoch with nothing attached but ``options``."""
    nothing = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
    }
    return Trainer(**nothing | options)


def ones(batches: int) -> DataLoader[Any]:
    """``batches`` batches of shape (2, 4)."""
    return DataLoader([torch.ones(2, 4)] * batches, batch_size=None)


def hooks_of(base: type) -> list[str]:
    """The names of all hooks and steps that ``base`` offers."""
    return [
        name
        for name in dir(base)
        if (name.startswith(_PREFIXES) or name.endswith(("_step", "_dataloader")) or name in _NAMES)
        and name not in _NO_HOOKS
        and callable(getattr(base, name))
    ]


def recording(cls: type, letter: str, events: list[str], names: list[str]) -> type:
    """A subclass of ``cls`` that appends to ``events`` whenever one of ``names`` is called, then does as ``cls``.

    An event is ``letter``, the name, and the indices or the stage that came with it: ``"M on_train_batch_end 0"``.
    """

    def recorded(name: str) -> Any:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            told = [str(argument) for argument in args if type(argument) is int]
            if name in ("setup", "teardown"):
                told = [str(getattr(kwargs["stage"], "value", kwargs["stage"]))]
            events.append(" ".join([letter, name, *told]))
            return getattr(super(made, self), name)(*args, **kwargs)

        return hook

    made = type(f"Recording{cls.__name__}", (cls,), {name: recorded(name) for name in names})
    return made


def record(
    method: str = "fit",
    *,
    model: type[LightningModule] = Plain,
    batches: int = 2,
    validation: tuple[int, ...] = (1,),
    only_events: bool = False,
    callbacks: Sequence[Callback] = (),
    events: list[str] | None = None,
    raises: type[BaseException] | None = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> list[str]:
    """Every call of a hook in one run: ``C`` of the callback, ``M`` of the module, ``D`` of the datamodule.

    Args:
        method: The Trainer's method.
        model: The module's class.
        batches: Training batches.
        validation: Batches of every loader for validation, test and prediction.
        only_events: The module overrides its ``on_`` hooks and steps alone, none that does part of the work.
        callbacks: Further ones.
        events: The list to record into.
        raises: What the run is expected to raise.
        ckpt_path: The checkpoint to go on from.
        options: The Trainer's; without them it has nothing attached and does no sanity check.
    """
    events = [] if events is None else events

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return ones(batches)

        def val_dataloader(self) -> Any:
            return ones(validation[0]) if len(validation) == 1 else [ones(count) for count in validation]

        test_dataloader = predict_dataloader = val_dataloader

    names = [name for name in hooks_of(LightningModule) if not name.endswith("_dataloader") and name != "state_dict"]
    if only_events:
        steps = ("training_step", "validation_step", "test_step", "predict_step")
        names = [name for name in names if name in steps or (name.startswith("on_") and "transfer" not in name)]
    callback = recording(Callback, "C", events, hooks_of(Callback))()
    trainer = bare(callbacks=[callback, *callbacks], **options)
    module = recording(model, "M", events, names)()
    data = recording(Data, "D", events, hooks_of(LightningDataModule))()
    try:
        getattr(trainer, method)(module, datamodule=data, ckpt_path=ckpt_path)
    except BaseException as error:
        if raises is None or not isinstance(error, raises):
            raise
        events.append(f"raises {type(error).__name__}")
    return events


def written_out(*texts: str) -> list[str]:
    """The events that ``texts`` stand for: the line ``C M on_fit_end`` is the callback's, then the module's."""
    events = []
    for line in "\n".join(texts).splitlines():
        words = line.split()
        letters = [word for word in words if len(word) == 1 and word.isupper()]
        rest = " ".join(words[len(letters) :])
        events += [f"{letter} {rest}" for letter in letters] if letters else [rest] if rest else []
    return events
