"""What the source of a run's classes tells before they run: the names they log, the methods they call."""

# Parsing takes longer than a training step. What the compiled code rules out is not parsed, and what is parsed is kept
# by code, which all the classes have in common that a function makes one after the other.

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator
from dis import opmap
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

# Whose functions named log are not self.log.
_MATHEMATICS = ("math", "np", "numpy", "torch", "F", "jnp", "cmath")


def user_classes(owner: object) -> list[type]:
    """The classes of ``owner`` that are neither torch's nor the framework's."""
    return [cls for cls in type(owner).__mro__ if not _is_framework(cls.__module__)]


@functools.lru_cache(maxsize=1024)
def _is_framework(module: str) -> bool:
    return f"{module}.".startswith(("torch.", "leyden.core.", "leyden.callbacks.", "builtins."))


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
    function = vars(cls)[name] if cls is not None and name not in vars(owner) else None
    if not isinstance(function, FunctionType) or returns_value(function):
        return False
    if (method := tree_of(name, function)) is None:
        return False
    nodes = list(ast.walk(method))
    ends = (ast.Return, ast.Yield, ast.YieldFrom, ast.Raise)
    return any(isinstance(node, ast.Call) for node in nodes) and not any(isinstance(node, ends) for node in nodes)


def log_calls(cls: type, among: Collection[str] | None = None) -> Iterator[tuple[str, bool]]:
    """The methods of ``cls`` that call ``self.log``, and if with ``on_step=True``; where source is missing, none.

    Args:
        cls: A class.
        among: The methods to look at; None for all.
    """
    for name, function in functions(cls).items():
        if (among is None or name in among) and not _LOG_METHODS.isdisjoint(words(function).names):
            method = tree_of(name, function)
            for by_step in _log_calls(method) if method is not None else ():
                yield name, by_step


_LOG_METHODS = frozenset(("log", "log_dict"))


@functools.lru_cache(maxsize=1024)
def _log_calls(method: ast.FunctionDef) -> list[bool]:
    """For every call of ``self.log``, in order: it has ``on_step=True``."""
    found = []
    for call in ast.walk(method):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and _is_self_log(call.func):
            by_step = [k.value for k in call.keywords if k.arg == "on_step"]
            found.append(any(isinstance(value, ast.Constant) and value.value is True for value in by_step))
    return found


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


def functions(cls: type) -> dict[str, FunctionType]:
    """The functions among what ``cls`` itself defines."""
    return {name: value for name, value in vars(cls).items() if isinstance(value, FunctionType)}


def methods(cls: type) -> dict[str, ast.FunctionDef | None]:
    """The methods that ``cls`` itself defines; None for one whose source cannot be had."""
    parsed = {name: tree_of(name, function) for name, function in functions(cls).items()}
    # Special methods without source are generated, such as a dataclass's.
    return {name: tree for name, tree in parsed.items() if tree is not None or not name.startswith("__")}


def tree_of(name: str, function: FunctionType) -> ast.FunctionDef | None:
    """The source of the method ``name``; None where it cannot be had."""
    original = _undecorated(function)
    code = getattr(original, "__code__", None)
    if code is None:
        return None
    file, tree = _TREES.get(code, ("", None))
    if file != code.co_filename:  # codes are equal, wherever they come from
        tree = _parsed(original)
        _TREES[code] = code.co_filename, tree
    # Another name is that of a decorator's inner function.
    return tree if tree is not None and tree.name == name else None


_TREES: WeakKeyDictionary[CodeType, tuple[str, ast.FunctionDef | None]] = WeakKeyDictionary()


def _undecorated(function: FunctionType) -> Any:
    return inspect.unwrap(function) if "__wrapped__" in function.__dict__ else function


def _parsed(function: Callable[..., Any]) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return tree if isinstance(tree, ast.FunctionDef) else None


class Words(NamedTuple):
    """What a function's compiled code mentions, with the functions inside it; more than that its source has not.

    Attributes:
        names: Global names and attributes, read or written.
        strings: Constants, and the keywords of calls.
    """

    names: frozenset[str]
    strings: frozenset[str]


def words(function: FunctionType) -> Words:
    """What ``function``, or the one that it decorates, mentions."""
    code = getattr(_undecorated(function), "__code__", None)
    return _words(code) if code is not None else Words(frozenset(), frozenset())


@functools.lru_cache(maxsize=4096)
def _words(code: CodeType) -> Words:
    names, strings = set(code.co_names), set()
    waiting = list(code.co_consts)
    while waiting:
        constant = waiting.pop()
        if isinstance(constant, str):
            strings.add(constant)
        elif isinstance(constant, tuple | frozenset):
            waiting.extend(constant)
        elif isinstance(constant, CodeType):
            names.update(constant.co_names)
            waiting.extend(constant.co_consts)
    return Words(frozenset(names), frozenset(strings))


def returns_value(function: FunctionType) -> bool:
    """True when ``function`` surely has a ``return`` with more than a constant."""
    code = getattr(_undecorated(function), "__code__", None)
    return code is not None and _returns_value(code)


_RETURN_VALUE, _LOAD_CONST = opmap["RETURN_VALUE"], opmap["LOAD_CONST"]


@functools.lru_cache(maxsize=4096)
def _returns_value(code: CodeType) -> bool:
    # What Python returns at the end of a function without a return is a constant, None.
    pairs = itertools.pairwise(code.co_code[::2])
    return any(instruction == _RETURN_VALUE and before != _LOAD_CONST for before, instruction in pairs)


class Parameters(NamedTuple):
    """What a function can be called with, after the object that a method belongs to.

    Attributes:
        names: All of them, in order, as in ``inspect.signature``.
        positional: How many of them can be given by position.
        by_position: How many of those cannot be given by keyword.
        required: How many of those have no default.
        keywords: Which can be given by keyword alone.
        required_keywords: Which of those have no default.
        takes_more: It has ``*args``.
        takes_any: It has ``**kwargs``.
    """

    names: list[str]
    positional: int
    by_position: int
    required: int
    keywords: tuple[str, ...]
    required_keywords: list[str]
    takes_more: bool
    takes_any: bool

    def take(self, arguments: int, by_keyword: Collection[str] = ()) -> bool:
        """True for a call with that many positional arguments, and those ``by_keyword``."""
        if arguments > self.positional and not self.takes_more:
            return False
        open_names = self.names[max(arguments, self.by_position) : self.positional]
        missing = self.names[arguments : self.required]
        if self.by_position > arguments and self.required > arguments:
            return False
        known = {*open_names, *self.keywords}
        taken = self.names[self.by_position : min(arguments, self.positional)]
        return all(name in by_keyword for name in (*missing, *self.required_keywords)) and all(
            name in known or (self.takes_any and name not in taken) for name in by_keyword
        )


def parameters(function: Any) -> Parameters | None:
    """The parameters of a plain function or method; None where only ``inspect.signature`` knows, which is slow."""
    bound = 0
    if type(function) is MethodType:
        function, bound = function.__func__, 1
    if type(function) is not FunctionType or function.__dict__:  # which may have __wrapped__ or __signature__
        return None
    code = function.__code__
    count, flags = code.co_argcount, code.co_flags
    if bound > count:
        return None
    end = count + code.co_kwonlyargcount
    names, keywords = list(code.co_varnames[bound:count]), code.co_varnames[count:end]
    if flags & inspect.CO_VARARGS:
        names.append(code.co_varnames[end])
        end += 1
    names += keywords
    if flags & inspect.CO_VARKEYWORDS:
        names.append(code.co_varnames[end])
    given = function.__kwdefaults__ or ()
    return Parameters(
        names,
        count - bound,
        max(0, code.co_posonlyargcount - bound),
        max(0, count - bound - len(function.__defaults__ or ())),
        keywords,
        [name for name in keywords if name not in given],
        bool(flags & inspect.CO_VARARGS),
        bool(flags & inspect.CO_VARKEYWORDS),
    )


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """The names of all parameters, in order."""
    plain = parameters(function)
    return plain.names if plain is not None else list(inspect.signature(function).parameters)


def _nodes(classes: Iterable[type], besides: Collection[str] = ()) -> Iterator[ast.AST]:
    for name, method in (item for cls in set(classes) for item in methods(cls).items()):
        if method is not None and name not in besides:
            yield from ast.walk(method)


def _is_self_log(function: ast.Attribute) -> bool:
    return function.attr in ("log", "log_dict") and _is_module(function.value)


@functools.lru_cache(maxsize=1024)
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
