"""A module or a datamodule made from a checkpoint file."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import IO, TYPE_CHECKING, Any

import torch

from leyden.fabric.checkpoint_io import CheckpointIO
from leyden.utils.errors import CheckpointError, MisconfigurationError, warn
from leyden.utils.hparams import AttributeDict, from_csv, from_yaml, init_arguments, missing_arguments
from leyden.utils.lazy import LazyModule

_former = LazyModule("leyden.core.former_checkpoints")

if TYPE_CHECKING:
    class_only = classmethod
else:

    class class_only(classmethod):
        """A classmethod that refuses to be called on an instance, which it would not change."""

        def __get__(self, instance: Any, owner: Any = None) -> Any:
            method = super().__get__(instance, owner)
            if instance is None:
                return method

            def refuse(*args: Any, **kwargs: Any) -> None:
                name, owned = method.__name__, type(instance).__name__
                raise TypeError(
                    f"{name} was called on an instance, which it would not change: it returns a new {owned}. "
                    f"Write model = {owned}.{name}(path)."
                )

            return refuse


def read_checkpoint(
    path: Any, map_location: Any, weights_only: bool | None, io: CheckpointIO | None = None
) -> dict[str, Any]:
    """The contents of the file at ``path``, or of an open file.

    Args:
        path: Local, remote, or a file opened for reading bytes.
        map_location: As in ``torch.load``.
        weights_only: None means True.
        io: Who reads the file; None is a CheckpointIO.

    Raises:
        CheckpointError: The file is damaged, or holds what ``weights_only`` refuses.
    """
    safe, reader = weights_only is None or weights_only, CheckpointIO() if io is None else io
    try:
        checkpoint = reader.load_checkpoint(path, map_location=map_location, weights_only=safe)
    except CheckpointError as error:
        if not isinstance(error.__cause__, UnpicklingError) or not (classes := _former.stand_ins(path)):
            raise
        with torch.serialization.safe_globals(classes):
            checkpoint = _former.in_todays_words(reader.load_checkpoint(path, map_location=map_location))
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path} is not a checkpoint of a Trainer: it has no 'state_dict'. "
            "To load bare weights use model.load_state_dict(torch.load(path))."
        )
    return checkpoint


def load_module(
    cls: Any,
    path: str | Path | IO[bytes],
    map_location: Any,
    hparams_file: str | Path | None,
    strict: bool | None,
    weights_only: bool | None,
    overrides: dict[str, Any],
) -> Any:
    """A ``cls`` with the hyper-parameters and weights of a checkpoint; see LightningModule.load_from_checkpoint."""
    checkpoint = read_checkpoint(path, map_location or _where_it_was, weights_only)
    if hparams_file is not None:
        checkpoint["hyper_parameters"] = _read_hparams(str(hparams_file))
    module = _make(cls, path, checkpoint.get("hyper_parameters", {}), checkpoint.get("hparams_name"), overrides)
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    if strict is None:
        strict = module.strict_loading
    load_weights(module, checkpoint["state_dict"], strict, str(path))
    first = next((value for value in checkpoint["state_dict"].values() if isinstance(value, torch.Tensor)), None)
    return module if first is None else module.to(first.device)


def load_datamodule(
    cls: Any,
    path: str | Path | IO[bytes],
    map_location: Any,
    hparams_file: str | Path | None,
    weights_only: bool | None,
    overrides: dict[str, Any],
) -> Any:
    """A ``cls`` with the hyper-parameters and state of a checkpoint; see LightningDataModule.load_from_checkpoint."""
    checkpoint = read_checkpoint(path, map_location or _where_it_was, weights_only)
    params = checkpoint.get("datamodule_hyper_parameters", {})
    if hparams_file is not None:
        params = _read_hparams(str(hparams_file))
    datamodule = _make(cls, path, params, checkpoint.get("datamodule_hparams_name"), overrides)
    if state := datamodule.state_in(checkpoint):
        datamodule.load_state_dict(state)
    return datamodule


def load_weights(module: Any, state: dict[str, Any], strict: bool, path: str) -> None:
    """Load ``state`` into ``module``.

    Raises:
        CheckpointError: The weights do not fit; the message names those that do not.
    """
    try:
        missing, unexpected = module.load_state_dict(_renamed(module, state), strict=strict)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {path} do not fit {type(module).__name__}: {error}") from error
    if missing or unexpected:
        warn(
            "LD042",
            f"The weights in {path} do not match {type(module).__name__} one to one; "
            f"missing: {missing}, unexpected: {unexpected}.",
        )


def _renamed(module: Any, state: dict[str, Any]) -> dict[str, Any]:
    """``state`` under the names of ``module``, where either has parts that torch.compile has wrapped."""
    shell = "_orig_mod."
    if not any(shell in name for name in state) and not any("_orig_mod" in part._modules for part in module.modules()):
        return state
    own = {name.replace(shell, ""): name for name in module.state_dict()}
    return {own.get(name.replace(shell, ""), name): value for name, value in state.items()}


def _where_it_was(storage: Any, location: str) -> Any:
    """``storage``, which is on the CPU, on the device that it was saved from, if that is here."""
    try:
        return torch.serialization.default_restore_location(storage, location)
    except RuntimeError:
        return storage


def _make(cls: Any, path: Any, params: dict[str, Any], name: str | None, overrides: dict[str, Any]) -> Any:
    """Call ``cls`` with saved hyper-parameters and the caller's own."""
    arguments = init_arguments(cls, overrides, {})
    if name not in (None, "", "kwargs") and init_arguments(cls, {str(name): None}, {}):
        # They were one object, which __init__ takes whole, and which overrides of its items go into.
        whole = AttributeDict({**params, **{key: value for key, value in overrides.items() if key in params}})
        others = {key: value for key, value in overrides.items() if key in arguments or key not in params}
        given = init_arguments(cls, {str(name): whole}, others)
    else:
        given = init_arguments(cls, dict(params), overrides)
    if missing := missing_arguments(cls, given):
        example = ", ".join(f"{argument}=..." for argument in missing)
        raise TypeError(
            f"{cls.__name__}.__init__ needs {', '.join(missing)}, which {path} does not hold. "
            f"Pass it: {cls.__name__}.load_from_checkpoint(path, {example}); or call self.save_hyperparameters() in "
            "__init__ before training, to have it saved."
        )
    return cls(**given)


def _read_hparams(path: str) -> dict[str, Any]:
    suffix = path.rpartition(".")[2].lower()
    if suffix in ("yaml", "yml"):
        return dict(from_yaml(path))
    if suffix == "csv":
        return dict(from_csv(path))
    raise MisconfigurationError(f"hparams_file={path!r} must end in .yaml, .yml or .csv.")
