"""Imports point one way, and files and functions stay short."""

import ast
import dataclasses
import inspect
import itertools
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from effvl_cli.cli import commands, flags
from tests import cpu_times

PACKAGE = Path(__file__).parents[1] / "effvl_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
ALLOWED = {
    "cli": {"cli", "config", "core.errors"},
    "engines": {"engines", "data", "models", "techniques", "core", "config"},
    "data": {"data", "models", "techniques", "core", "config"},
    "models": {"data", "models", "techniques", "core", "config"},
    "techniques": {"techniques"},  # each its own
    "core": {"core", "config"},
    "config": {"config", "core.errors"},
}
# At module level the command line may not import what takes long.
LIGHT = {"cli", "config"}
HEAVY = {"torch", "numpy", "yaml", "pydantic", "matplotlib", "sklearn", "open_clip", "rich", "PIL"}


# Where each technique has a file of the same name: its job and verbs, and the rooms that a reader looks for.
ROOMS = {"job", "context", "tables", "pictures", "preview"}
COMMON = {"common", "inference"}  # of the engines


def _imports(tree: ast.AST, *, nested: bool, package: str = "") -> list[str]:
    """Full names of what a module imports; relative imports are resolved against its package."""
    nodes = ast.walk(tree) if nested else ast.iter_child_nodes(tree)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def _package(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).parts[:-1])


def _foreign(name: str, path: Path) -> str:
    """The other engine or technique that an import reaches into, if it does."""
    layer, *rest = path.relative_to(PACKAGE).parts
    target = name.removeprefix("effvl_cli.").split(".")
    if layer not in {"engines", "techniques"} or target[0] != layer or len(target) < 2:
        return ""
    return "" if target[1] == rest[0].removesuffix(".py") or target[1] in COMMON else target[1]


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
    for name in _imports(tree, nested=layer not in LIGHT, package=_package(path)):
        assert not _foreign(name, path), f"{path} imports {name}"
        if name.startswith("effvl_cli.") and name != "effvl_cli.__version__":
            target = name.removeprefix("effvl_cli.")
            allowed = ALLOWED[layer] | ({"core.table"} if layer == "cli" else set())
            assert any(target == a or target.startswith(f"{a}.") for a in allowed), f"{layer} imports {name}"
        if layer == "techniques" and not name.startswith("effvl_cli.techniques."):
            top = name.split(".")[0]
            assert top in {"torch", "torchvision", *sys.stdlib_module_names}, name


def test_relative_imports_are_seen_and_neighbours_are_foreign():
    here = PACKAGE / "engines" / "prune_tokens" / "job.py"
    tree = ast.parse("from ..pretrain import job\nfrom . import tables\nfrom ...cli.app import main")
    found = _imports(tree, nested=True, package=_package(here))
    assert found == [
        "effvl_cli.engines.pretrain.job",
        "effvl_cli.engines.prune_tokens.tables",
        "effvl_cli.cli.app.main",
    ]
    assert [_foreign(name, here) for name in found] == ["pretrain", "", ""]
    unit = PACKAGE / "techniques" / "prune_blocks" / "unit.py"
    assert _foreign("effvl_cli.techniques.prune_tokens.tower.Selector", unit) == "prune_tokens"
    assert not _foreign("effvl_cli.engines.inference.over_images", here)


def test_a_file_name_stands_once_in_a_layer():
    """But for the rooms that every technique has, and its verbs."""
    verbs = {command.verb for command in commands.COMMANDS}
    places = defaultdict(list)
    for path in FILES:
        if path.stem != "__init__" and path.stem not in ROOMS | verbs:
            places[_layer(path), path.name].append(str(path.relative_to(PACKAGE)))
    assert not [found for found in places.values() if len(found) > 1]


def test_options_are_typed_where_they_are_read():
    """No engine takes options of any type, or a default for an option that may not be there."""
    for path in (path for path in FILES if _layer(path) == "engines"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) == 3:
                assert not ast.unparse(node.args[0]).endswith("config"), f"{path}:{node.lineno}"
            if isinstance(node, ast.arg | ast.AnnAssign):
                name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)
                kind = ast.unparse(node.annotation) if node.annotation else ""
                assert not (name == "config" and kind in {"Any", "object"}), f"{path}:{node.lineno}"


def test_a_report_is_written_and_not_read_back():
    """What one step of an engine tells another is an argument; `report.technique` is for the reader of the report."""
    for path in (path for path in FILES if _layer(path) == "engines"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                assert not ast.unparse(node.value).endswith("run.report.technique"), f"{path}:{node.lineno}"


def test_an_option_has_one_meaning():
    """Two groups that a command takes do not define the same name, one hiding the other without a word."""
    for command in commands.COMMANDS:
        config = flags.config_class(command.config)
        for field in dataclasses.fields(config):
            owners = [base for base in config.__mro__ if field.name in inspect.get_annotations(base)]
            for lower, upper in itertools.pairwise(owners):
                assert issubclass(lower, upper), f"{command.title}: {field.name} of {lower} and of {upper}"


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


def test_the_tests_of_each_technique_are_counted():
    names = {path.name for path in (PACKAGE / "techniques").iterdir() if (path / "__init__.py").exists()}
    assert names - {"common"} == {name for name in cpu_times.CEILINGS if name}
    for file, name in {
        "tests/engines/test_cpr_windows.py": "cpr_mine",
        "tests/data/test_box_readers.py": "detect",
        "tests/engines/test_coco_eval.py": "detect",
        "tests/engines/test_continual_job.py": "continual",
        "tests/models/test_openclip_text.py": "",
    }.items():
        assert cpu_times.technique_of(file) == name
