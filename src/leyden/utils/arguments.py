"""Arguments of a constructor as options of argparse, and back."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from leyden.utils.errors import warn


def add_arguments(
    parser: argparse.ArgumentParser,
    defaults: Mapping[str, Any],
    *,
    title: str = "",
    texts: Collection[str] = (),
    shown: bool = True,
) -> argparse.ArgumentParser:
    """Give ``parser`` an option for every name of ``defaults``, such as ``--max_epochs``.

    Words become what they look like: ``3``, ``0.5``, ``true``, ``none``; anything else stays a string. An option whose
    default is None, True or False may stand alone, for True. Options that the parser has already are left as they are.

    Args:
        parser: Who reads the command line.
        defaults: The options and what they are where they are not given.
        title: That of their group in ``--help``; none for no group of their own.
        texts: Options whose words stay strings whatever they look like.
        shown: List them in ``--help``.
    """
    group = parser.add_argument_group(title) if title else parser
    taken = {option for action in parser._actions for option in action.option_strings}
    for name, default in defaults.items():
        if f"--{name}" in taken:
            continue
        alone: dict[str, Any] = {}
        if default is None or isinstance(default, bool):
            alone = {"nargs": "?", "const": True}
        group.add_argument(
            f"--{name}",
            type=str if name in texts else value_of,
            default=default,
            metavar="VALUE",
            help=f"default: {default}" if shown else argparse.SUPPRESS,
            **alone,
        )
    return parser


def parsed(given: Any) -> argparse.Namespace:
    """What was given on the command line: a parser reads it now, a Namespace or a dict has it already."""
    if isinstance(given, argparse.ArgumentParser):
        return given.parse_args()
    return argparse.Namespace(**given) if isinstance(given, Mapping) else given


def chosen(given: Any, names: Iterable[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``names`` that ``given`` has, and ``arguments``, which come first."""
    found = vars(parsed(given))
    return {**{name: found[name] for name in names if name in found}, **arguments}


def named_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of ``function`` that can be given by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each for name, each in inspect.signature(function).parameters.items() if each.kind in kinds}


def add_arguments_of(cls: type, parser: argparse.ArgumentParser, grouped: bool = True) -> argparse.ArgumentParser:
    """Give ``parser`` an option for every argument of ``cls``; see ``add_arguments``."""
    parameters = named_parameters(cls)
    defaults = {name: None if each.default is each.empty else each.default for name, each in parameters.items()}
    texts = [n for n, each in parameters.items() if isinstance(each.default, str) or each.annotation in (str, "str")]
    return add_arguments(parser, defaults, title=cls.__name__ if grouped else "", texts=texts)


def warn_of_former(cls: type) -> None:
    """Say that making a ``cls`` of the command line's options is of Lightning 1.x."""
    warn(
        "LD252",
        f"{cls.__name__}.add_argparse_args() and from_argparse_args() are of Lightning 1.x. Today: have argparse read "
        f"the options that you use, and hand them over: {cls.__name__}(name=args.name).",
        subject=cls.__name__,
    )


def value_of(word: str) -> Any:
    """What ``word`` on a command line stands for.

    >>> [value_of(word) for word in ("3", "0.5", "true", "none", "0,1")]
    [3, 0.5, True, None, '0,1']
    """
    plain = {"true": True, "false": False, "none": None}
    if word.lower() in plain:
        return plain[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    return word
