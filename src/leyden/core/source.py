"""What the source of a run's classes tells before they run: the names they log, the methods they call."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

# Whose functions named log are not self.log.
_MATHEMATICS = ("math", "np", "numpy", "torch", "F", "jnp", "cmath")


def user_classes(owner: object) -> list[type]:
    """The classes of ``owner`` that are neither torch's nor the framework's."""
    framework = ("torch.", "leyden.core.", "leyden.callbacks.", "builtins.")
    return [cls for cls in type(owner).__mro__ if not f"{cls.__module__}.".startswith(framework)]


def called_names(classes: Iterable[type], besides: Collection[str] = ()) -> set[str]:
    """Names of the methods that the methods of ``classes``, but ``besides``, call or hand on.

    Where source is missing, none.
    """
    return {
        node.attr
        for node in _nodes(classes, besides)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and not _is_super(node.value)
    }


def mentions(classes: Iterable[type], word: str) -> bool:
    """True when ``word`` may be the name of an argument in a call that the methods of ``classes`` make."""
    return any(
        isinstance(node, ast.keyword) and node.arg in (word, None)  # None stands for **options
        for node in _nodes(classes)
    )


def uses_any(classes: Iterable[type], names: Collection[str]) -> bool:
    """True when the methods of ``classes`` read an attribute of ``names``, or may: by ``getattr``, elsewhere, unread.

    They may do so elsewhere where a module is handed to a function, and unread where source is missing.
    """
    classes = list(classes)
    if any(method is None for cls in classes for method in methods(cls).values()):
        return True
    for node in _nodes(classes):
        if isinstance(node, ast.Attribute) and node.attr in names:
            return True
        given = (*node.args, *(keyword.value for keyword in node.keywords)) if isinstance(node, ast.Call) else ()
        if any(map(_is_module, given)) and not _is_super(node):
            return True
    return False


def forgets_return(owner: object, name: str) -> bool:
    """True when the method ``name`` of ``owner`` does something, and can return nothing but None; by its source."""
    cls = next((cls for cls in user_classes(owner) if name in vars(cls)), None)
    method = methods(cls).get(name) if cls is not None and name not in vars(owner) else None
    if method is None:
        return False
    nodes = list(ast.walk(method))
    ends = (ast.Return, ast.Yield, ast.YieldFrom, ast.Raise)
    return any(isinstance(node, ast.Call) for node in nodes) and not any(isinstance(node, ends) for node in nodes)


def log_calls(cls: type) -> Iterator[tuple[str, bool]]:
    """The methods of ``cls`` that call ``self.log``, and if with ``on_step=True``; where source is missing, none."""
    for name, method in methods(cls).items():
        for call in ast.walk(method) if method is not None else ():
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and _is_self_log(call.func):
                by_step = [k.value for k in call.keywords if k.arg == "on_step"]
                yield name, any(isinstance(value, ast.Constant) and value.value is True for value in by_step)


def logged_names(classes: Iterable[type], silent: Collection[str] = ()) -> set[str] | None:
    """Regular expressions for all names that ``classes`` log; None when their source cannot tell.

    It cannot where it is missing, a name is computed, or the module is handed to a function, which may log too.

    Args:
        classes: The classes of modules and callbacks.
        silent: Methods that do not run.
    """
    found: set[str] = set()
    for name, method in (item for cls in set(classes) for item in methods(cls).items()):
        if name in silent:
            continue
        if method is None or (patterns := _logged_in(method)) is None:
            return None
        found |= patterns
    return found


_METHODS: WeakKeyDictionary[type, dict[str, ast.FunctionDef | None]] = WeakKeyDictionary()


def methods(cls: type) -> dict[str, ast.FunctionDef | None]:
    """The methods that ``cls`` itself defines; None for one whose source cannot be had."""
    if cls not in _METHODS:
        parsed = {name: _parsed(name, value) for name, value in vars(cls).items() if inspect.isfunction(value)}
        # Special methods without source are generated, such as a dataclass's.
        _METHODS[cls] = {name: tree for name, tree in parsed.items() if tree is not None or not name.startswith("__")}
    return _METHODS[cls]


def _parsed(name: str, function: Callable[..., Any]) -> ast.FunctionDef | None:
    try:
        source = inspect.getsource(inspect.unwrap(function))
        tree = ast.parse(textwrap.dedent(source)).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    # Another name is that of a decorator's inner function.
    return tree if isinstance(tree, ast.FunctionDef) and tree.name == name else None


def _nodes(classes: Iterable[type], besides: Collection[str] = ()) -> Iterator[ast.AST]:
    for name, method in (item for cls in set(classes) for item in methods(cls).items()):
        if method is not None and name not in besides:
            yield from ast.walk(method)


def _is_self_log(function: ast.Attribute) -> bool:
    return function.attr in ("log", "log_dict") and _is_module(function.value)


def _logged_in(tree: ast.AST) -> set[str] | None:
    found: set[str] = set()
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _may_log(node) and id(node) not in called:
            return None  # handed on, to be called elsewhere
        if not isinstance(node, ast.Call):
            continue
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        if any(_is_module(argument) for argument in arguments) and not _is_super(node):
            return None
        if isinstance(node.func, ast.Attribute) and _may_log(node.func) and arguments:
            if (patterns := _patterns_of_call(node, node.func)) is None:
                return None
            found |= patterns
    return found


def _may_log(function: ast.Attribute) -> bool:
    """True for ``self.log`` and its kind, of whatever object, and for what makes metrics without it."""
    if function.attr == "add_callback_metrics":
        return True
    is_mathematics = isinstance(function.value, ast.Name) and function.value.id in _MATHEMATICS
    return function.attr in ("log", "log_dict") and not is_mathematics


def _patterns_of_call(call: ast.Call, function: ast.Attribute) -> set[str] | None:
    given = [k.value for k in call.keywords if k.arg in ("name", "dictionary", "values")]
    first = call.args[0] if call.args else next(iter(given), None)
    if isinstance(first, ast.Dict) and function.attr == "log":
        return set()  # of another kind, such as wandb.log({...})
    names = first.keys if isinstance(first, ast.Dict) else [first]
    patterns = {pattern for name in names if (pattern := _pattern(name)) is not None}
    return patterns if len(patterns) == len(names) else None


def _pattern(node: ast.AST | None) -> str | None:
    """A regular expression for the names that ``node`` may stand for; None when it may be anything."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [_pattern(part) if isinstance(part, ast.Constant) else ".*" for part in node.values]
        return "".join(part or ".*" for part in parts)
    return None


def readable(pattern: str) -> str:
    """``pattern`` for people: ``*`` stands for what is computed."""
    return pattern.replace(".*", "*").replace("\\", "")


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "pl_module", "module")


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
