"""The recipes that come with effvl, by name: `prune-tokens/vit-b16-dtd`, or `vit-b16-dtd` if only one ends so."""

import difflib
from pathlib import Path

from effvl_cli.core.errors import UsageError

_PACKAGE = Path(__file__).parents[1]
_NEAR = 3


def folder() -> Path:
    """Folder of the recipes: in the installed package, or beside it in a checkout."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def names() -> dict[str, Path]:
    """Each recipe by its name."""
    found = sorted(folder().rglob("*.yaml"))
    return {path.relative_to(folder()).with_suffix("").as_posix(): path for path in found}


def find(given: str) -> Path:
    """The file that is meant: an existing one, or a recipe of effvl by its name or by its path in a checkout.

    Raises:
        UsageError: several recipes have that name, or none.
    """
    path = Path(given)
    try:
        if path.exists():
            return path
    except OSError:  # longer than a path can be
        return path
    known = names()
    name = given.removesuffix(".yaml").removeprefix("recipes/")
    if name in known:
        return known[name]
    ends = [key for key in known if key.rpartition("/")[2] == name]
    if len(ends) == 1:
        return known[ends[0]]
    if ends:
        raise UsageError(f"{len(ends)} recipes are called {given!r}", f"Give {' or '.join(ends)}")
    near = difflib.get_close_matches(name, [*known, *(key.rpartition("/")[2] for key in known)], n=_NEAR)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "`effvl list recipes` shows them all"
    raise UsageError(f"no recipe at {given}, and none has that name", hint)
