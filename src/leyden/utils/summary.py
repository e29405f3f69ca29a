"""The summary of a module: its layers, their parameters, the sizes of what goes in and out, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from leyden.utils.errors import warn
from leyden.utils.flops import counting_flops
from leyden.utils.seed import isolate_rng
from leyden.utils.table import draw_table
from leyden.utils.tree import move_data_to_device, tree_map

Calls = dict[str, dict[str, Any]]  # by a layer's name: in_size, out_size and flops of its LayerSummary


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One row: a module inside the summarised one.

    Attributes:
        name: Its path, such as ``"net.0"``.
        kind: Its class.
        parameters: Numbers in its parameters and those of the modules inside it, shared ones counted once; lazy ones,
            which have no size yet, count 0.
        training: It is in train mode.
        in_size: Shapes of its inputs in its first call, such as ``"[2, 32]"``; ``""`` when they are not known.
        out_size: Shapes of its outputs in that call.
        flops: Floating-point operations in all its calls in one forward pass of the example, as ``measure_flops``
            counts them; None when they are not known.
    """

    name: str
    kind: str
    parameters: int
    training: bool
    in_size: str = ""
    out_size: str = ""
    flops: int | None = None


@dataclass(frozen=True, slots=True)
class ModelTable:
    """What ``summarize`` found; ``str`` draws it.

    Attributes:
        layers: The rows. Where the module has parameters that are in none of the modules inside it, the last row is
            for these.
        trainable_parameters: Numbers in all parameters that require gradients, shared ones counted once.
        total_parameters: Numbers in all parameters.
        bytes: Memory of all parameters in their present types.
        modules_in_train_mode: Modules inside the summarised one, at any depth, that are in train mode.
        modules_in_eval_mode: The others.
        has_lazy_parameters: Some parameters have no size yet, and are counted nowhere.
        total_flops: Floating-point operations in one forward pass of the example; None when they are not known.
    """

    layers: tuple[LayerSummary, ...]
    trainable_parameters: int
    total_parameters: int
    bytes: int
    modules_in_train_mode: int
    modules_in_eval_mode: int
    has_lazy_parameters: bool
    total_flops: int | None = None

    @property
    def layer_names(self) -> list[str]:
        """The name in each row."""
        return [layer.name for layer in self.layers]

    @property
    def layer_types(self) -> list[str]:
        """The class in each row."""
        return [layer.kind for layer in self.layers]

    @property
    def param_nums(self) -> list[int]:
        """The parameters in each row."""
        return [layer.parameters for layer in self.layers]

    @property
    def model_size(self) -> float:
        """Memory of all parameters in megabytes, 10**6 bytes."""
        return self.bytes / 1e6

    @property
    def non_trainable_parameters(self) -> int:
        """Numbers in all parameters that require no gradients."""
        return self.total_parameters - self.trainable_parameters

    def __str__(self) -> str:
        train, evaluating = self.modules_in_train_mode, self.modules_in_eval_mode
        lines = [
            f"Parameters: {self.total_parameters:,} ({self.trainable_parameters:,} trainable, "
            f"{self.non_trainable_parameters:,} frozen), {_megabytes(self.bytes)}",
            f"Modules: {train + evaluating:,} ({train:,} in train mode, {evaluating:,} in eval mode)",
        ]
        if self.total_flops is not None:
            lines.append(f"FLOPs: {self.total_flops:,} in one forward pass of the example")
        if self.has_lazy_parameters:
            lines.append("Lazy layers count no parameters: they get them in their first forward pass.")
        if self.layers:
            lines.insert(0, self._table())
        return "\n".join(lines)

    def _table(self) -> str:
        heads = ["name", "type", "parameters", "mode"]
        rows = [
            [layer.name, layer.kind, f"{layer.parameters:,}", "train" if layer.training else "eval"]
            for layer in self.layers
        ]
        if any(layer.flops is not None for layer in self.layers):
            heads += ["FLOPs", "in", "out"]
            rows = [
                [*row, "" if layer.flops is None else f"{layer.flops:,}", layer.in_size, layer.out_size]
                for row, layer in zip(rows, self.layers, strict=True)
            ]
        return draw_table(heads, rows)


class ModelSummary(ModelTable):
    """The summary of ``model``, as ``summarize`` makes it, under Lightning's name; printing it draws the table.

    Args:
        model: What to summarise.
        max_depth: Levels of modules inside it to list: 1 for its own attributes, -1 for all, 0 for the totals alone.

    Raises:
        TypeError: ``max_depth`` is not a whole number.
        ValueError: ``max_depth`` is less than -1.
    """

    def __init__(self, model: nn.Module, max_depth: int = 1) -> None:
        found = summarize(model, max_depth)
        super().__init__(**{field.name: getattr(found, field.name) for field in fields(found)})

    def __repr__(self) -> str:
        return str(self)  # what a notebook shows


def summarize(module: nn.Module, max_depth: int = 1) -> ModelTable:
    """Summarise ``module``, which stays as it is.

    Where it has an ``example_input_array`` (a tensor, a tuple of arguments or a dict of keyword arguments), it is
    called with that once, in eval mode and without gradients, to find sizes and FLOPs. Not while it has lazy
    parameters, which the call would create.

    Args:
        module: What to summarise.
        max_depth: Levels of modules inside it to list: 1 for its own attributes, -1 for all, 0 for the totals alone.

    Raises:
        TypeError: ``max_depth`` is not a whole number.
        ValueError: ``max_depth`` is less than -1.
    """
    check_max_depth(max_depth)
    parameters = list(module.parameters())
    has_lazy = any(is_lazy(parameter) for parameter in parameters)
    inside = {name: child for name, child in module.named_modules() if name}
    listed = {name: child for name, child in inside.items() if max_depth == -1 or name.count(".") < max_depth}
    calls, flops = ({}, None) if has_lazy or not listed else _try_example(module, listed)
    layers = [
        LayerSummary(name, type(child).__name__, _count(child.parameters()), child.training, **calls.get(name, {}))
        for name, child in listed.items()
    ]
    in_children = {id(parameter) for child in module.children() for parameter in child.parameters()}
    if max_depth and (own := [parameter for parameter in parameters if id(parameter) not in in_children]):
        layers.append(LayerSummary("(its own)", type(module).__name__, _count(own), module.training))
    return ModelTable(
        layers=tuple(layers),
        trainable_parameters=_count(parameter for parameter in parameters if parameter.requires_grad),
        total_parameters=_count(parameters),
        bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters if not is_lazy(parameter)),
        modules_in_train_mode=sum(child.training for child in inside.values()),
        modules_in_eval_mode=sum(not child.training for child in inside.values()),
        has_lazy_parameters=has_lazy,
        total_flops=flops,
    )


def check_max_depth(max_depth: object) -> None:
    """Raise what ``summarize`` raises."""
    if isinstance(max_depth, bool) or not isinstance(max_depth, int):
        raise TypeError(f"max_depth={max_depth!r} is not a whole number. -1 lists all levels, 0 the totals alone.")
    if max_depth < -1:
        raise ValueError(f"max_depth={max_depth} is less than -1, which lists all levels. 0 lists the totals alone.")


def _try_example(module: nn.Module, listed: Mapping[str, nn.Module]) -> tuple[Calls, int | None]:
    """The calls of each of ``listed``, and the FLOPs of all; None, and no or few calls, without one that works."""
    calls: Calls = {}
    if (example := getattr(module, "example_input_array", None)) is None:
        return calls, None
    handles: list[Any] = []
    try:
        with isolate_rng(), torch.no_grad(), _in_eval_mode(module), _uncompiled(module), counting_flops() as counter:
            for name, child in listed.items():
                if not isinstance(child, torch.jit.ScriptModule):  # which takes no hooks
                    handles.extend(_watch(name, child, calls, counter.get_total_flops))
            _call(module, _like_parameters(example, module))
        return calls, counter.get_total_flops()
    except Exception as error:  # whatever forward raises; training has not failed yet
        warn(
            "LD120",
            f"The model summary lacks sizes: {type(module).__name__} could not be called with its "
            f"example_input_array. {type(error).__name__}: {error}",
        )
        return calls, None
    finally:
        for handle in handles:
            handle.remove()


def _watch(name: str, child: nn.Module, calls: Calls, flops_so_far: Callable[[], int]) -> Iterator[Any]:
    """Note the calls of ``child`` in ``calls``; yields the handles of the hooks that do it."""
    begun: list[int] = []

    def before(_: nn.Module, __: Any) -> None:
        begun.append(flops_so_far())

    def after(_: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if name not in calls:
            sizes = {"in_size": _described((*args, *kwargs.values())), "out_size": _described(output)}
            calls[name] = {**sizes, "flops": 0}
        before_call = begun.pop()
        if not begun:  # a module that calls itself counts once
            calls[name]["flops"] += flops_so_far() - before_call

    yield child.register_forward_pre_hook(before)
    yield child.register_forward_hook(after, with_kwargs=True)


def _call(module: nn.Module, example: Any) -> None:
    if isinstance(example, Mapping):
        module(**example)
    elif isinstance(example, tuple):
        module(*example)
    else:
        module(example)


def _like_parameters(example: Any, module: nn.Module) -> Any:
    """``example`` on the device of the parameters, and in their floating-point type if all have the same."""
    tensors = [*module.parameters(), *module.buffers()]
    if tensors:
        example = move_data_to_device(example, tensors[0].device)
    types = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if len(types) == 1:
        dtype = types.pop()
        example = tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, example)
    return example


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    # The flags themselves are set: train() may be overridden, and would not give every module its own mode back.
    modes = [(child, child.training) for child in module.modules()]
    try:
        for child, _ in modes:
            child.training = False
        yield
    finally:
        for child, training in modes:
            child.training = training


def _uncompiled(module: nn.Module) -> AbstractContextManager[None]:
    """A context in which nothing is compiled for one small example, in a mode that training does not use."""
    if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in module.modules()):
        eagerly: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
        return eagerly
    return nullcontext()


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters if not is_lazy(parameter))


def _described(value: Any) -> str:
    """The shapes of the tensors in ``value``, nested as they are there.

    >>> _described((torch.zeros(2, 3),)), _described([torch.zeros(2), [torch.zeros(()), 1]])
    ('[2, 3]', '[[2], []]')
    """
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return ""
    shapes = [shape for item in value if (shape := _described(item))]
    return shapes[0] if len(shapes) == 1 else f"[{', '.join(shapes)}]" if shapes else ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.{3 if size < 1e7 else 1}f} MB"
