"""Who may import whom, checked over the syntax tree so that imports inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NETWORK = frozenset({"aiohttp", "grpc", "http.client", "httpx", "requests", "socket", "urllib.request", "websockets"})
FORBIDDEN = {
    "modaltune": frozenset({"server", "client", "simulation", "flwr", "ray"}) | NETWORK,
    "server": frozenset({"client", "simulation"}),
    "client": frozenset({"server", "simulation"}),
    "simulation": frozenset[str](),
}


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import; ``from a import b`` counts as a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and called_name(node) in {"import_module", "__import__"}:
            names = (name.value for name in node.args[:1] if isinstance(name, ast.Constant))
            yield from ((node.lineno, name) for name in names if isinstance(name, str))


def called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def forbidden_imports(source: str, forbidden: frozenset[str]) -> list[str]:
    return [
        f"line {line}: {name}"
        for line, name in imported_names(ast.parse(source))
        if any(name == module or name.startswith(f"{module}.") for module in forbidden)
    ]


def prints(source: str) -> list[int]:
    nodes = ast.walk(ast.parse(source))
    return [
        node.lineno
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def sources(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ has no Python file: the rule would hold for nothing"
    return files


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    found = {
        str(path.relative_to(ROOT)): wrong
        for path in sources(package)
        if (wrong := forbidden_imports(path.read_text(encoding="utf-8"), FORBIDDEN[package]))
    }
    assert not found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_prints(package: str) -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for path in sources(package)
        if (lines := prints(path.read_text(encoding="utf-8")))
    }
    assert not found


@pytest.mark.parametrize(
    "statement",
    [
        "import flwr",
        "import numpy, flwr.app",
        "from flwr.app import Message",
        "from server import app",
        "from http import client",
        "import socket as plug",
        "def late():\n    import simulation.demo",
        "import importlib\nimportlib.import_module('client.app')",
        "__import__('requests')",
    ],
)
def test_the_rule_catches_every_way_to_import(statement: str) -> None:
    assert forbidden_imports(statement, FORBIDDEN["modaltune"])


@pytest.mark.parametrize("statement", ["import http", "from . import server", "import clients", "x = 'import flwr'"])
def test_the_rule_leaves_innocent_lines_alone(statement: str) -> None:
    assert not forbidden_imports(statement, FORBIDDEN["modaltune"])


def test_the_print_rule_catches_a_call_and_nothing_else() -> None:
    assert prints("import rich\nprint('x')\nrich.print('x')\nconsole.print('x')\n'print(1)'") == [2]
