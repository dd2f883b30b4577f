"""Each file of a technique says where its mathematics is from."""

import ast
import re
from pathlib import Path

import pytest

import effvl_cli.techniques

FILES = [p for p in Path(effvl_cli.techniques.__path__[0]).rglob("*.py") if p.name != "__init__.py"]
SOURCE = re.compile(r"arXiv\s\d{4}\.\d{4,5}|\bet al\.|\b(19|20)\d\d\b|\bOurs\b|\bours\b")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_technique_names_its_source(path):
    """In the docstring of the file, or of a function or class in it; what is no one else's says so."""
    tree = ast.parse(path.read_text())
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    assert any(SOURCE.search(ast.get_docstring(node) or "") for node in documented)
