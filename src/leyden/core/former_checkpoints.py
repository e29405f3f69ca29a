"""Checkpoints of Lightning 1.x: read without Lightning and without its code, and put into today's words."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from leyden.utils.paths import is_remote

_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.")
# Mappings of Lightning's in which it kept hyper-parameters.
_MAPPINGS = ("AttributeDict",)


def stand_ins(path: Any) -> list[type]:
    """Empty classes for those of Lightning's that the file at ``path`` names, if it names no others.

    Handed to ``torch.serialization.safe_globals`` they let ``torch.load(weights_only=True)`` read the file; nothing of
    it is imported or called. None for remote files, which old ones seldom are.
    """
    if isinstance(path, str | os.PathLike) and is_remote(path):
        return []
    if hasattr(path, "seek"):
        path.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if hasattr(path, "seek"):
        path.seek(0)
    if not all(name.startswith(_PACKAGES) for name in names):
        return []
    return [_stand_in(*name.rsplit(".", 1)) for name in names]


def _stand_in(module: str, name: str) -> type:
    base = dict if name in _MAPPINGS else object
    return type(name, (base,), {"__module__": module})


def in_todays_words(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """``checkpoint`` without stand-ins: callbacks go by their classes' names, hyper-parameters are in a dict."""
    callbacks = checkpoint.get("callbacks")
    if isinstance(callbacks, Mapping):
        checkpoint["callbacks"] = {_name(key): state for key, state in callbacks.items()}
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        if isinstance(checkpoint.get(key), Mapping):
            checkpoint[key] = dict(checkpoint[key])
    return checkpoint


def _name(key: Any) -> str:
    return key.__name__ if isinstance(key, type) else str(key)


def matching_key(key: str, here: Iterable[str]) -> str | None:
    """The one key in ``here`` that differs from ``key`` only in fields that one of them does not have.

    ``EarlyStopping`` alone, as Lightning 1.4 and earlier wrote, fits ``EarlyStopping{'monitor': 'val_loss', ...}``.
    """
    name, fields = _parsed(key)
    found = []
    for other in here:
        other_name, other_fields = _parsed(other)
        if name == other_name and all(other_fields.get(field, value) == value for field, value in fields.items()):
            found.append(other)
    return found[0] if len(found) == 1 else None


def _parsed(key: str) -> tuple[str, dict[str, Any]]:
    name, brace, fields = key.partition("{")
    try:
        return name, ast.literal_eval(brace + fields) if brace else {}
    except (ValueError, SyntaxError):  # a state_key of the user's own making
        return key, {}
