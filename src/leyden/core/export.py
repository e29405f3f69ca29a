"""A module as a file that other programs run: ONNX, TorchScript, torch.export."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from leyden.utils.errors import MisconfigurationError, nearest, warn
from leyden.utils.optional import require
from leyden.utils.paths import atomic_write, is_remote, join, make_dirs
from leyden.utils.seed import isolate_rng
from leyden.utils.tree import move_data_to_device

_METHODS = ("script", "trace")
_NO_TRAINER = object()


def to_onnx(module: Any, file_path: Any, input_sample: Any, options: Mapping[str, Any]) -> Any:
    """See ``LightningModule.to_onnx``."""
    args, kwargs = _inputs(module, input_sample, "to_onnx", "input_sample")
    for package in ("onnx", "onnxscript") if options.get("dynamo", True) else ("onnx",):
        require(package, f"{type(module).__name__}.to_onnx", pip="onnx onnxscript")
    options = {"verbose": False, **options}
    with _as_in_use(module), tempfile.TemporaryDirectory() as staging, warnings.catch_warnings():
        # torch warns of its own exporter's code.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        if file_path is None:
            return torch.onnx.export(module, args, kwargs=kwargs, **options)
        in_memory = hasattr(file_path, "write")
        if in_memory:
            options.setdefault("external_data", False)
        name = "model.onnx" if in_memory else os.path.basename(os.fspath(file_path))
        program = torch.onnx.export(module, args, os.path.join(staging, name), kwargs=kwargs, **options)
        # Weights in a file of their own go first, so that whoever sees the model finds them.
        for part in sorted(os.listdir(staging), key=lambda part: part == name):
            with open(os.path.join(staging, part), "rb") as source:
                if in_memory:
                    shutil.copyfileobj(source, file_path)
                else:
                    with _target(join(_folder(file_path), part)) as target:
                        shutil.copyfileobj(source, target)
        return program


def to_torchscript(module: Any, file_path: Any, method: str, example_inputs: Any, options: Mapping[str, Any]) -> Any:
    """See ``LightningModule.to_torchscript``."""
    if method not in _METHODS:
        raise ValueError(
            f"to_torchscript(method={method!r}) is unknown. Choose 'script' or 'trace'.{nearest(method, _METHODS)}"
        )
    if method == "script" and example_inputs is not None:
        raise MisconfigurationError(
            "to_torchscript(method='script') reads the code and needs no example_inputs. Leave them out, or pass "
            "method='trace'."
        )
    warn("LD214", "TorchScript is deprecated in torch. Use to_exported_program, which torch.export.load reads.")
    with _as_in_use(module), _looks_attached(module), warnings.catch_warnings():
        # Said above, in words that name what to use here. What else tracing warns of is about the model.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        if method == "script":
            script = torch.jit.script(module, **options)
        else:
            args, kwargs = _inputs(module, example_inputs, "to_torchscript", "example_inputs")
            given = {"example_kwarg_inputs": kwargs} if kwargs else {"example_inputs": args}
            script = torch.jit.trace(module, **given, **options)
        if file_path is not None:
            with _target(file_path) as file:
                torch.jit.save(script, file)
    return script


def to_exported_program(module: Any, file_path: Any, example_inputs: Any, dynamic_shapes: Any) -> Any:
    """See ``LightningModule.to_exported_program``."""
    args, kwargs = _inputs(module, example_inputs, "to_exported_program", "example_inputs")
    with _as_in_use(module):
        program = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes)
        if file_path is not None:
            with _target(file_path) as file:
                torch.export.save(program, file)
    return program


def _inputs(module: Any, given: Any, method: str, argument: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of ``forward``, on the module's device."""
    inputs = module.example_input_array if given is None else given
    if inputs is None:
        name = type(module).__name__
        raise ValueError(
            f"{name}.{method} needs an input for forward. Pass {argument}=, or set {name}.example_input_array: "
            "a tensor, a tuple of arguments, or a dict of keyword arguments."
        )
    inputs = move_data_to_device(inputs, module.device)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple) else (inputs,)), {}


@contextmanager
def _as_in_use(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards every submodule's mode and the random generators are as before."""
    modes = [(part, part.training) for part in module.modules()]
    with isolate_rng(), torch.no_grad():
        try:
            module.eval()
            yield
        finally:
            for part, training in modes:
                part.training = training


@contextmanager
def _looks_attached(module: nn.Module) -> Iterator[None]:
    """TorchScript reads every property, of which ``trainer`` raises where there is none, and leaves marks behind."""
    before = [(part, dict(vars(part))) for part in module.modules()]
    for part, _ in before:
        if getattr(part, "_trainer", _NO_TRAINER) is None:
            vars(part)["_trainer"] = _NO_TRAINER
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)


@contextmanager
def _target(path: Any) -> Iterator[Any]:
    """A file, or a path to one that appears when it is whole; its folder is made."""
    if hasattr(path, "write"):
        yield path
        return
    if folder := _folder(path):
        make_dirs(folder)
    with atomic_write(path) as file:
        yield file


def _folder(path: Any) -> str:
    text: str = os.fspath(path)
    return text.rpartition("/")[0] if is_remote(text) else os.path.dirname(text)
