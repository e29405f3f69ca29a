"""LightningDataModule: the data of a run, apart from the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from leyden.core.loading import class_only, load_datamodule
from leyden.utils.errors import MisconfigurationError
from leyden.utils.hparams import AttributeDict, collect_hyperparameters
from leyden.utils.lazy import LazyModule
from leyden.utils.tree import move_data_to_device

if TYPE_CHECKING:
    import argparse

    from leyden.core.types import Trainer

Self = TypeVar("Self", bound="LightningDataModule")

_arguments = LazyModule("leyden.utils.arguments")
# Arguments of __init__ in Lightning 1.x.
_FORMER_ARGUMENTS = ("train_transforms", "val_transforms", "test_transforms", "dims")


class LightningDataModule:
    """Everything about the data: fetch it, split it, make loaders of it.

    Override ``setup`` and the ``*_dataloader`` methods that apply. ``Trainer.fit(model, datamodule)`` calls
    ``prepare_data`` on one process, then ``setup(stage)`` on every process, then the loader methods when it needs them.

    Attributes:
        trainer: The Trainer of the run; None before the first.
        name: For people to read.
    """

    name: str | None = None
    trainer: Trainer | None = None
    prepare_data_per_node: bool = True
    allow_zero_length_dataloader_with_multiple_devices: bool = False
    # These hold before, or without, a call of __init__.
    _hparams: AttributeDict | None = None
    _hparams_initial: AttributeDict | None = None
    _hparams_name: str | None = None
    _log_hyperparams: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in _FORMER_ARGUMENTS:
            if kwargs.pop(name, None) is not None:
                raise TypeError(
                    f"LightningDataModule({name}=...) was an argument in Lightning 1.x, which nobody used. Make it an "
                    f"attribute of yours: self.{name} = {name}."
                )
        super().__init__(*args, **kwargs)

    def __str__(self) -> str:
        """The sizes of its loaders, which are made for it; call ``setup`` before."""
        kinds = [kind for kind in ("train", "val", "test", "predict") if self._has(f"{kind}_dataloader")]
        lines = [f"    {kind}: {self._size_of(f'{kind}_dataloader')}" for kind in kinds]
        return "\n".join([f"{type(self).__name__}:", *(lines or ["    no loaders"])])

    def _has(self, loader: str) -> bool:
        return loader in vars(self) or getattr(type(self), loader) is not getattr(LightningDataModule, loader)

    def _size_of(self, loader: str) -> str:
        try:
            return _shown_size(getattr(self, loader)())
        except Exception as error:  # most often because setup() was not called yet
            return f"not to be had yet ({type(error).__name__}: {error})"

    # Data.

    def prepare_data(self) -> None:
        """Fetch or convert what ``setup`` reads; called on one process, so set no state here."""

    def setup(self, stage: str) -> None:
        """Make the datasets; called on every process before every run.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    def teardown(self, stage: str) -> None:
        """Let go of what ``setup`` made; called after every run."""

    def train_dataloader(self) -> Any:
        """The training loader."""
        raise self._missing("train_dataloader")

    def val_dataloader(self) -> Any:
        """The validation loader, or a list of them."""
        raise self._missing("val_dataloader")

    def test_dataloader(self) -> Any:
        """The test loader, or a list of them."""
        raise self._missing("test_dataloader")

    def predict_dataloader(self) -> Any:
        """The loader for predictions, or a list of them."""
        raise self._missing("predict_dataloader")

    def _missing(self, method: str) -> MisconfigurationError:
        return MisconfigurationError(
            f"{type(self).__name__} has no {method}(). Define it, or give the Trainer loaders."
        )

    # A batch on its way.

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change ``batch`` before it goes to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move ``batch`` to ``device``; by default every tensor in nested containers."""
        return move_data_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Change ``batch`` on the device."""
        return batch

    # Other events.

    def on_exception(self, exception: BaseException) -> None:
        """The run is ended by ``exception``."""

    @property
    def state_key(self) -> str:
        """The name under which checkpoints keep this datamodule's state: by default that of the class.

        A class that says ``state_key = "data"`` can be renamed: its state is found in new checkpoints, and in those
        that were written under the class's name.
        """
        return type(self).__qualname__

    def state_in(self, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state of this datamodule in ``checkpoint``; None where it has none."""
        return next((checkpoint[key] for key in (self.state_key, type(self).__qualname__) if key in checkpoint), None)

    def state_dict(self) -> dict[str, Any]:
        """What must be remembered in checkpoints, under ``state_key``."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned when the checkpoint was written."""

    # Hyper-parameters.

    @property
    def hparams(self) -> AttributeDict:
        """What ``save_hyperparameters`` saved; may be changed. Setting it saves the items of a dict or Namespace."""
        if self._hparams is None:
            self._hparams = AttributeDict()
        return self._hparams

    @hparams.setter
    def hparams(self, hparams: Any) -> None:
        self._hparams = None
        self.save_hyperparameters(hparams, frame=inspect.currentframe())

    @property
    def hparams_initial(self) -> AttributeDict:
        """What ``save_hyperparameters`` saved, as it was then."""
        return AttributeDict(self._hparams_initial or {})

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Iterable[str] | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of ``__init__`` in ``hparams``, checkpoints and loggers; see LightningModule."""
        if frame is None and (here := inspect.currentframe()) is not None:
            frame = here.f_back
        params, self._hparams_name = collect_hyperparameters(self, args, ignore, frame, (LightningDataModule,))
        self.hparams.update(params)
        self._hparams_initial = self.hparams.deep_copy()
        self._log_hyperparams = logger

    @class_only
    def load_from_checkpoint(
        cls: type[Self],
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """A datamodule with the hyper-parameters and state of a checkpoint; arguments as for LightningModule's."""
        datamodule: Self = load_datamodule(cls, checkpoint_path, map_location, hparams_file, weights_only, kwargs)
        return datamodule

    # Arguments from the command line, as in Lightning 1.x.

    @classmethod
    def add_argparse_args(
        cls, parent_parser: argparse.ArgumentParser, use_argument_group: bool = True
    ) -> argparse.ArgumentParser:
        """Give ``parent_parser`` an option for every argument of ``__init__``."""
        _arguments.warn_of_former(cls)
        parser: argparse.ArgumentParser = _arguments.add_arguments_of(cls, parent_parser, use_argument_group)
        return parser

    @classmethod
    def from_argparse_args(cls: type[Self], args: Any, **arguments: Any) -> Self:
        """A datamodule with what was given on the command line; ``arguments`` come first."""
        _arguments.warn_of_former(cls)
        return cls(**_arguments.chosen(args, _arguments.named_parameters(cls), arguments))

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> LightningDataModule:
        """A datamodule around ready datasets.

        Args:
            train_dataset: A Dataset; shuffled unless it is iterable.
            val_dataset: A Dataset, or a list of them.
            test_dataset: A Dataset, or a list of them.
            predict_dataset: A Dataset, or a list of them.
            batch_size: Samples in a batch.
            num_workers: Worker processes of each loader.
            datamodule_kwargs: For the datamodule's ``__init__``.
        """
        pinned = torch.cuda.is_available()

        def loader(dataset: Any, shuffle: bool = False) -> Any:
            if isinstance(dataset, Mapping):
                return {name: loader(one, shuffle) for name, one in dataset.items()}
            if isinstance(dataset, list | tuple):
                return [loader(one, shuffle) for one in dataset]
            shuffle = shuffle and not isinstance(dataset, IterableDataset)
            return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=num_workers, pin_memory=pinned)

        datamodule = cls(**datamodule_kwargs)
        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        for kind, dataset in given.items():
            if dataset is not None:
                setattr(datamodule, f"{kind}_dataloader", lambda d=dataset, s=kind == "train": loader(d, s))
        return datamodule


def _shown_size(loader: Any) -> str:
    """Samples and batches of a loader, or of each of several."""
    loader = getattr(loader, "iterables", loader)
    if isinstance(loader, Mapping):
        return "{" + ", ".join(f"{name!r}: {_shown_size(each)}" for name, each in loader.items()) + "}"
    if isinstance(loader, list | tuple):
        return "[" + ", ".join(map(_shown_size, loader)) + "]"
    dataset = getattr(loader, "dataset", None)
    samples = f"{_length(dataset)} samples in " if dataset is not None else ""
    return f"{samples}{_length(loader)} batches"


def _length(sized: Any) -> str:
    try:
        return str(len(sized)) if isinstance(sized, Sized) else "unknown"
    except TypeError:  # as the len() of a DataLoader whose dataset has none
        return "unknown"
