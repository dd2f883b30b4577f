"""Imports point one way, and files and functions stay short."""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "effvl_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
ALLOWED = {
    "cli": {"cli", "config", "core.errors"},
    "engines": {"engines", "data", "models", "techniques", "core", "config"},
    "data": {"data", "models", "techniques", "core", "config"},
    "models": {"data", "models", "techniques", "core", "config"},
    "techniques": set(),
    "core": {"core", "config"},
    "config": {"config", "core.errors"},
}
# At module level the command line may not import what takes long.
LIGHT = {"cli", "config"}
HEAVY = {"torch", "numpy", "yaml", "pydantic", "matplotlib", "sklearn", "open_clip", "rich", "PIL"}


def _imports(tree: ast.AST, *, nested: bool) -> list[str]:
    nodes = ast.walk(tree) if nested else ast.iter_child_nodes(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def _layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    layer = _layer(path)
    if not layer:
        return
    tree = ast.parse(path.read_text())
    # The command line reaches the engines and the registries lazily, inside functions.
    for name in _imports(tree, nested=layer not in LIGHT):
        if name.startswith("effvl_cli.") and name != "effvl_cli.__version__":
            target = name.removeprefix("effvl_cli.")
            allowed = ALLOWED[layer] | ({"core.table"} if layer == "cli" else set())
            assert any(target == a or target.startswith(f"{a}.") for a in allowed), f"{layer} imports {name}"
        if layer == "techniques":
            top = name.split(".")[0]
            assert top in {"torch", "torchvision", *sys.stdlib_module_names}, name


@pytest.mark.parametrize("path", [p for p in FILES if _layer(p) in LIGHT], ids=lambda p: p.name)
def test_the_command_line_imports_nothing_heavy(path):
    tops = {name.split(".")[0] for name in _imports(ast.parse(path.read_text()), nested=False)}
    assert not tops & HEAVY


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 80, f"{node.name} is long"
