"""Hyper-parameters: the arguments of a constructor, collected, made plain, written to files and matched to a class."""

from __future__ import annotations

import ast
import copy
import csv
import dataclasses
import inspect
import math
import textwrap
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from enum import Enum
from pathlib import PurePath
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from leyden.utils.errors import MisconfigurationError, nearest, warn
from leyden.utils.optional import require
from leyden.utils.paths import AnyPath, atomic_write, open_file


class AttributeDict(dict[str, Any]):
    """A dict whose items are attributes too: ``params.lr`` is ``params["lr"]``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = [key for key in self if isinstance(key, str)]
            hint = nearest(name, known) or (f" There are: {', '.join(known)}." if known else " None are saved.")
            raise AttributeError(f"There is no hyper-parameter {name!r}.{hint}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"There is no hyper-parameter {name!r}.{nearest(name, self)}")
        del self[name]

    def __repr__(self) -> str:
        items = (f"{key}={value!r}" for key, value in self.items())
        return f"{type(self).__name__}({', '.join(items)})"

    def __deepcopy__(self, memo: dict[int, Any]) -> AttributeDict:
        copied = memo[id(self)] = type(self)()
        for key, value in self.items():
            try:
                copied[key] = copy.deepcopy(value, memo)
            except Exception:  # a lock, a generator, a tensor with a graph: what cannot be copied is shared
                copied[key] = value
        return copied

    def deep_copy(self) -> AttributeDict:
        """A copy that later changes of the values do not reach; modules are shared, as they may be large."""
        return copy.deepcopy(self, {id(value): value for value in self.values() if isinstance(value, nn.Module)})


def collect_hyperparameters(
    owner: object,
    args: tuple[Any, ...],
    ignore: str | Iterable[str] | None,
    frame: FrameType | None,
    base_classes: tuple[type, ...],
) -> tuple[AttributeDict, str | None]:
    """What ``owner.save_hyperparameters(*args, ignore=ignore)`` saves.

    Without ``args``, these are the arguments that ``__init__`` of the class and of its parents, as far as they are
    running, were called with: defaults and ``**kwargs`` included, ``*args`` not, at the values that they have now.
    Where a child and its parent have an argument of the same name, the child's counts, as it is what the class is
    made with again. Values are not copied.

    Args:
        owner: The object whose ``__init__`` is running.
        args: Names of arguments; or one object that holds them: a mapping, a Namespace, a dataclass instance.
        ignore: Names to leave out.
        frame: A frame inside ``__init__``, however deep; None for the caller's.
        base_classes: Classes of the framework, whose own ``__init__`` adds nothing.

    Returns:
        The hyper-parameters, and the argument's name when ``args`` was one object that the class was made with.

    Raises:
        MisconfigurationError: ``args`` are something else, name no argument, or ``__init__`` is not running.
    """
    ignored = _names_to_ignore(ignore)
    frames = list(_init_calls(owner, frame or inspect.currentframe(), base_classes))
    calls = [_arguments(call, owner) for call in reversed(frames)]  # the child's first
    received: dict[str, Any] = {}
    for call in calls:
        received |= {key: value for key, value in call.items() if key not in received}
    name = None
    if not args or all(isinstance(arg, str) for arg in args):
        if not calls:
            raise MisconfigurationError(
                f"save_hyperparameters({', '.join(map(repr, args))}) finds no __init__ of {type(owner).__name__} that "
                "is running. Call it inside __init__, or pass a dict: save_hyperparameters({'lr': 0.1})."
            )
        params = _chosen(received, args, type(owner).__name__) if args else received
    elif len(args) == 1:
        params = _items_of(args[0])
        # Only the child's own name for it serves: it is the child that is made again.
        name = next((name for name, value in calls[0].items() if value is args[0]), None) if calls else None
    else:
        raise MisconfigurationError(
            f"save_hyperparameters takes names of arguments, or one object that holds them, not {_kinds(args)}."
        )
    _warn_of_misspelt(ignored, params)
    kept = AttributeDict({key: value for key, value in params.items() if key not in ignored})
    _warn_of_modules(kept, type(owner).__name__)
    return kept, name


def _names_to_ignore(ignore: str | Iterable[str] | None) -> list[str]:
    names = [ignore] if isinstance(ignore, str) else list(ignore or ())
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise MisconfigurationError(f"ignore={wrong[0]!r} is not a name. Give names: ignore=['model'].")
    return names


def _init_calls(owner: object, frame: FrameType | None, base_classes: tuple[type, ...]) -> Iterator[FrameType]:
    """The frames of ``owner.__init__`` and of its parents' that are running, the parents' first."""
    ours = {vars(kind)["__init__"].__code__ for base in base_classes for kind in base.__mro__ if _has_python_init(kind)}
    while frame is not None:
        code = frame.f_code
        # Decorators and helper methods stand between the frames, so the whole stack is looked through.
        is_init = code.co_name == "__init__" and code.co_argcount > 0 and code not in ours
        if is_init and frame.f_locals.get(code.co_varnames[0]) is owner:
            yield frame
        frame = frame.f_back


def _has_python_init(kind: type) -> bool:
    return hasattr(vars(kind).get("__init__"), "__code__")


def _arguments(frame: FrameType, owner: object) -> dict[str, Any]:
    """The arguments of one ``__init__`` call but ``self`` and ``*args``, at their values now."""
    names, _, kwargs, values = inspect.getargvalues(frame)
    arguments = {name: values[name] for name in names[1:] if name in values}
    for name, value in arguments.items():
        if type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":  # a dataclass's mark for "call default_factory"
            arguments[name] = getattr(owner, name)
    return {**arguments, **(values.get(kwargs) or {} if kwargs else {})}


def _chosen(received: dict[str, Any], names: tuple[str, ...], owner: str) -> dict[str, Any]:
    for name in names:
        if name not in received:
            raise MisconfigurationError(
                f"save_hyperparameters({name!r}) names no argument of {owner}.__init__, which has: "
                f"{', '.join(received) or 'none'}.{nearest(name, received)}"
            )
    return {name: received[name] for name in names}


def _items_of(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):  # OmegaConf's too
        return dict(value.items())
    if isinstance(value, Namespace | SimpleNamespace):
        return dict(vars(value))
    if _is_dataclass_instance(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise MisconfigurationError(
        f"save_hyperparameters({value!r}) is not understood. Give names of arguments, such as "
        "save_hyperparameters('lr', 'layers'), or one dict, Namespace or dataclass instance; nothing for all arguments."
    )


def _is_dataclass_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _kinds(args: tuple[Any, ...]) -> str:
    return " and ".join(repr(arg) if isinstance(arg, str) else f"a {type(arg).__name__}" for arg in args)


def _warn_of_misspelt(ignored: list[str], params: Mapping[str, Any]) -> None:
    # A name that is nowhere near an argument is left alone: a parent may ignore what only some children have.
    for name in ignored:
        if name not in params and (hint := nearest(name, (key for key in params if isinstance(key, str)))):
            warn("LD161", f"save_hyperparameters(ignore={name!r}) names nothing that is saved.{hint}", subject=name)


def _warn_of_modules(params: Mapping[str, Any], owner: str) -> None:
    for name, value in params.items():
        if isinstance(value, nn.Module):
            warn(
                "LD160",
                f"Argument {name!r} of {owner} is a module. It stays in .hparams, but checkpoints leave it out, since "
                "its weights are in the state_dict already, so load_from_checkpoint has to be given it. "
                f"Leave it out here too: save_hyperparameters(ignore=[{name!r}]).",
                subject=f"{owner}.{name}",
            )


# Made plain, for checkpoints.


class _NotPlainError(Exception):
    """There is no plain value that stands for this one."""


def plain_hyperparameters(params: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy of ``params`` in types that ``torch.load(weights_only=True)`` reads.

    Mappings, Namespaces and dataclass instances become dicts; other containers lists, tuples and sets; paths become
    strings, members of an Enum their values, NumPy scalars and arrays Python numbers and lists. Tensors, dtypes and
    devices stay.

    Returns:
        The copy, and the names of what has no plain form at any depth, such as functions, classes and modules, and so
        is not in it.
    """
    plain: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in params.items():
        try:
            plain[name] = _plain(value, ())
        except _NotPlainError:
            left_out.append(name)
    return plain, left_out


def _plain(value: Any, inside: tuple[int, ...]) -> Any:
    if value is None or type(value) in (bool, str, float, complex, torch.dtype, torch.device):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, inside)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain_of_numpy(value, inside)
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter):
            raise _NotPlainError
        return value.detach()
    if isinstance(value, PurePath):
        return str(value)
    if (simple := _plain_subclass(value)) is not None:
        return simple
    if isinstance(value, type | nn.Module) or id(value) in inside:
        raise _NotPlainError
    return _plain_container(value, (*inside, id(value)))


def _plain_of_numpy(value: Any, inside: tuple[int, ...]) -> Any:
    listed = value.tolist()
    if type(listed) is type(value):  # longdouble has no Python number
        raise _NotPlainError
    return _plain(listed, inside)


def _plain_subclass(value: Any) -> Any:
    """``value`` as the str, int, float, complex or bytes that its class extends; None when it extends none of them."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return complex(value.real, value.imag)
    # weights_only reads neither longer whole numbers nor empty bytes.
    if isinstance(value, int) and value.bit_length() < 2000:
        return int.__int__(value)
    if isinstance(value, bytes) and value:
        return bytes(value)
    return bytearray(value) if isinstance(value, bytearray) else None


def _plain_container(value: Any, inside: tuple[int, ...]) -> Any:
    if isinstance(value, Mapping):
        return {_plain_key(key, inside): _plain(item, inside) for key, item in value.items()}
    if isinstance(value, Namespace | SimpleNamespace):
        return {name: _plain(item, inside) for name, item in vars(value).items()}
    if _is_dataclass_instance(value):
        return {field.name: _plain(getattr(value, field.name), inside) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return tuple(_plain(item, inside) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, int | bytes):
        return [_plain(item, inside) for item in value]
    if isinstance(value, Set):
        return {_plain_key(item, inside) for item in value}
    raise _NotPlainError


def _plain_key(value: Any, inside: tuple[int, ...]) -> Any:
    key = _plain(value, inside)
    try:
        hash(key)
    except TypeError as error:  # a frozenset has become a set
        raise _NotPlainError from error
    return key


# Matched to a class, for loading.


@dataclasses.dataclass
class _Accepted:
    """What ``cls(...)`` takes by name.

    Attributes:
        required: By name, whether it must be given.
        taken: Names that a child passes to its parent itself, and that therefore nobody else may give.
        anything: Other names may be given too.
    """

    required: dict[str, bool]
    taken: set[str]
    anything: bool = False

    def accepts(self, name: str) -> bool:
        return name in self.required or (self.anything and name not in self.taken)


@dataclasses.dataclass
class _KwargsUse:
    """How an ``__init__`` passes its ``**kwargs`` up.

    Attributes:
        positional: How many arguments the parent gets by position.
        named: Those it gets by name beside the kwargs.
        own: Names that are looked up in the kwargs on the way.
    """

    positional: int
    named: set[str]
    own: set[str]


def init_arguments(cls: type, params: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments to make a ``cls`` again: those of ``params`` that its ``__init__`` takes, and all of ``extra``.

    An ``__init__`` with ``**kwargs`` takes what the parent takes, where all it does with them is to pass them up, and
    anything where it uses them in another way.

    Args:
        cls: The class.
        params: Saved hyper-parameters; those that ``cls`` does not take are passed over.
        extra: Given by the caller; each wins over the saved one.

    Raises:
        TypeError: ``cls`` does not take something in ``extra``.
    """
    accepted = _accepted(cls)
    for name in extra:
        if not accepted.accepts(name):
            raise TypeError(
                f"{cls.__name__}.__init__ takes no argument {name!r}. It takes: "
                f"{', '.join(accepted.required) or 'none'}.{nearest(name, accepted.required)}"
            )
    return {**{name: value for name, value in params.items() if accepted.accepts(name)}, **extra}


def missing_arguments(cls: type, given: Iterable[str]) -> list[str]:
    """Arguments without which ``cls`` cannot be made and that are not in ``given``."""
    there = set(given)
    return [name for name, required in _accepted(cls).required.items() if required and name not in there]


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _accepted(cls: type) -> _Accepted:
    accepted = _Accepted({}, set())
    positional = 0
    for init in _inits(cls):
        parameters = list(inspect.signature(init).parameters.values())[1:]
        accepted.taken |= {parameter.name for parameter in parameters[:positional]}
        for parameter in parameters[positional:]:
            if parameter.kind not in _MANY and parameter.name not in accepted.taken:
                accepted.required.setdefault(parameter.name, parameter.default is parameter.empty)
        kwargs = next((parameter.name for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD), None)
        if kwargs is None:
            return accepted
        use = _passed_up(init, kwargs)
        if use is None:
            accepted.anything = True
            return accepted
        accepted.required |= {name: False for name in use.own if name not in accepted.required}
        accepted.taken |= use.named
        positional = use.positional
    return accepted


def _inits(cls: type) -> Iterator[Any]:
    """Every ``__init__`` of the class chain, the child's first, up to the one that takes nothing."""
    for kind in cls.__mro__:
        if kind in (nn.Module, object):  # whose signatures say otherwise
            return
        if "__init__" in vars(kind):
            yield vars(kind)["__init__"]


def _passed_up(init: Any, kwargs: str) -> _KwargsUse | None:
    """How ``init`` passes ``**kwargs`` to its parent, by its source; None when it does more with them, or less."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(init))))
    except (OSError, TypeError, SyntaxError):  # typed into a prompt, generated, or compiled
        return None
    calls: list[ast.Call] = []
    own: set[str] = set()
    understood = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "__init__" and any(k.arg is None and _is_name(k.value, kwargs) for k in node.keywords):
                calls.append(node)
                understood += 1
            elif node.func.attr in ("pop", "get") and _is_name(node.func.value, kwargs) and node.args:
                understood += _add_constant(node.args[0], own)
        elif isinstance(node, ast.Subscript) and _is_name(node.value, kwargs):
            understood += _add_constant(node.slice, own)
        elif isinstance(node, ast.Compare) and _is_name(node.comparators[0], kwargs):
            understood += _add_constant(node.left, own)
    if len(calls) != 1 or understood != sum(_is_name(node, kwargs) for node in ast.walk(tree)):
        return None
    call = calls[0]
    assert isinstance(call.func, ast.Attribute)
    by_super = isinstance(call.func.value, ast.Call)  # super().__init__(x) has no self in its arguments
    positional = sum(not isinstance(arg, ast.Starred) for arg in call.args) - (not by_super)
    return _KwargsUse(positional, {k.arg for k in call.keywords if k.arg is not None}, own)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _add_constant(node: ast.AST, names: set[str]) -> int:
    """1, and the string is added, when ``node`` is a string constant; otherwise 0."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        names.add(node.value)
        return 1
    return 0


# Files.


def to_yaml(params: Mapping[str, Any], path: AnyPath) -> None:
    """Write ``params``, made plain, as YAML; a comment names what has no plain form."""
    plain, left_out = plain_hyperparameters(params)
    text = require("yaml", "Writing hyper-parameters", pip="pyyaml").safe_dump(_for_yaml(plain), sort_keys=False)
    if left_out:
        text += f"# Not written, having no plain form: {', '.join(left_out)}\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def _for_yaml(value: Any) -> Any:
    """A plain value in the fewer types that YAML has."""
    if isinstance(value, dict):
        return {_for_yaml(key): _for_yaml(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_for_yaml(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, complex | torch.dtype | torch.device):
        return str(value)
    return value


def from_yaml(path: AnyPath) -> dict[str, Any]:
    """Read hyper-parameters from a YAML file; no object is made of what it says.

    Raises:
        MisconfigurationError: The file is not YAML, has tags of Python objects, or is not a mapping.
    """
    yaml = require("yaml", "Reading hyper-parameters", pip="pyyaml")
    # The safe loader, and the tuples that Lightning writes.
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("tag:yaml.org,2002:python/tuple", lambda self, node: tuple(self.construct_sequence(node)))
    with open_file(path, "r") as file:
        try:
            params = yaml.load(file, loader)
        except yaml.YAMLError as error:
            raise MisconfigurationError(f"{path} cannot be read as YAML of plain values: {error}") from error
    if not isinstance(params, dict | None):
        raise MisconfigurationError(f"{path} holds a {type(params).__name__}, not names with values such as 'lr: 0.1'.")
    return params or {}


def from_csv(path: AnyPath) -> dict[str, Any]:
    """Read hyper-parameters from a CSV file with the columns ``key`` and ``value``; numbers and lists become such.

    Raises:
        MisconfigurationError: The file has no such columns.
    """
    with open_file(path, "r", newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames is None or not {"key", "value"} <= set(rows.fieldnames):
            raise MisconfigurationError(f"{path} has the columns {rows.fieldnames}; expected 'key' and 'value'.")
        return {row["key"]: _literal(row["value"]) for row in rows}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        try:
            number = float(text)  # inf and nan are no Python literals
        except ValueError:
            return text
        return text if math.isfinite(number) else number
