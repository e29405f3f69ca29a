"""Who imports whom in a package, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import leyden

SOURCE = Path(leyden.__file__).parent


@dataclass(frozen=True)
class Import:
    """One import of one of our modules by another, under TYPE_CHECKING and in functions too.

    Attributes:
        importer: Module that imports, such as ``leyden.core.fit``.
        imported: Module or package that it names.
        line: Where.
        deferred: It stands in a function.
    """

    importer: str
    imported: str
    line: int
    deferred: bool

    def __str__(self) -> str:
        return f"{self.importer} (line {self.line}) imports {self.imported}"


def modules(root: Path) -> dict[str, Path]:
    """Files of the package in folder ``root`` by module name; a package's name stands for its ``__init__``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> list[Import]:
    """Every import of a module of the package in folder ``root`` by another of its modules."""
    ours = root.name
    return [
        Import(importer, imported, line, deferred)
        for importer, path in modules(root).items()
        for imported, line, deferred in _named_in(path, importer)
        if imported == ours or imported.startswith(f"{ours}.")
    ]


def packages(root: Path) -> set[str]:
    """Names of ``root`` and the packages below it."""
    return {name for name, path in modules(root).items() if path.name == "__init__.py"}


def _named_in(path: Path, importer: str) -> Iterator[tuple[str, int, bool]]:
    """Module, line and whether it is in a function, for every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    in_functions = {id(inner) for function in functions for inner in ast.walk(function)}
    package = importer.split(".") if path.name == "__init__.py" else importer.split(".")[:-1]
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=module, level=0):
                names = [module or ""]
            case ast.ImportFrom(module=module, level=level):
                names = [".".join((*package[: len(package) - level + 1], *filter(None, [module])))]
            case ast.Import(names=aliases):
                names = [alias.name for alias in aliases]
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__" | "LazyModule"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names = [name]
            case _:
                continue
        yield from ((name, node.lineno, id(node) in in_functions) for name in names)
