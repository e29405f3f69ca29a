"""The public names of each package: what a type checker is told, and what is there when asked for."""

from __future__ import annotations

import ast
import importlib

import pytest

from import_graph import SOURCE, packages


def names_for_the_type_checker(tree: ast.Module) -> dict[str, str]:
    """Public name to defining module, of the imports under TYPE_CHECKING."""
    return {
        alias.asname: node.module or ""
        for block in tree.body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }


def names_at_run_time(tree: ast.Module) -> dict[str, str]:
    """Public name to defining module, of the table given to ``lazy_names``; modules themselves left out."""
    tables = [
        ast.literal_eval(node.args[1])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy_names"
    ]
    return {name: module for table in tables for name, module in table.items() if module.rpartition(".")[2] != name}


def source_of(package: str) -> ast.Module:
    return ast.parse(SOURCE.parent.joinpath(*package.split("."), "__init__.py").read_text("utf-8"))


WITH_PUBLIC_NAMES = sorted(package for package in packages(SOURCE) if names_at_run_time(source_of(package)))


def test_the_root_has_public_names():
    assert "leyden" in WITH_PUBLIC_NAMES


@pytest.mark.parametrize("package", WITH_PUBLIC_NAMES)
def test_the_type_checker_is_told_the_names_that_are_there(package):
    tree = source_of(package)
    assert names_for_the_type_checker(tree) == names_at_run_time(tree)


@pytest.mark.parametrize("package", WITH_PUBLIC_NAMES)
def test_every_public_name_can_be_had(package):
    module = importlib.import_module(package)
    missing = []
    for name in dir(module):
        try:
            getattr(module, name)
        except (AttributeError, ImportError) as error:
            missing.append(f"{package}.{name}: {error}")
    assert missing == []
    assert dir(module)
