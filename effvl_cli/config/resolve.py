"""Options of a run from defaults, an earlier run, a recipe and flags, in rising precedence, through one validation."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effvl_cli.config import recipes
from effvl_cli.config.identity import to_yaml_mapping
from effvl_cli.config.recipe_file import Recipe, read_recipe
from effvl_cli.config.schema import Option, options, written
from effvl_cli.config.validate import unknown_option, validate
from effvl_cli.core.errors import UsageError


@dataclass(frozen=True)
class Invocation:
    """How a command was called; no part of what it computes."""

    recipe: str | None = None
    dry_run: bool = False
    fresh: bool = False
    quiet: bool = False
    json: bool = False
    debug: bool = False
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Resolved:
    """Validated options and where each value comes from."""

    config: Any
    origins: Mapping[str, str]
    recipe: Recipe | None = None
    inherited: Mapping[str, str] = field(default_factory=dict)
    """Options of the earlier run that this command does not have, for commands that start from this one's run."""


def resolve(
    config: type,
    typed: Mapping[str, Any],
    *,
    command: str,
    recipe: str | None = None,
    base: Recipe | None = None,
) -> Resolved:
    """Default < earlier run < recipe < flag.

    Args:
        config: option dataclass.
        typed: flags by field name, as typed.
        command: e.g. "prune-tokens eval".
        recipe: file.
        base: config.yaml of the run that a verb works on; options that the verb does not have are ignored.

    Raises:
        UsageError: an unknown key, or a value that is out of range; one line that names it.
    """
    known = options(config)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")

    def take(found: Mapping[str, Any], origin: str) -> None:
        for name in (*_displaced(_alternatives(config), found), *outdated(config, values, found)):
            values.pop(name, None)
            origins[name] = "default"
        values.update(found)
        origins.update(dict.fromkeys(found, origin))

    inherited: dict[str, str] = {}
    if base is not None:
        stored = {**(base.run.get("inherited") or {}), **base.config}
        earlier = {key.replace("-", "_"): value for key, value in stored.items()}
        inherited = {key: value for key, value in stored.items() if key.replace("-", "_") not in known}
        left = {"out", "name", "run", *getattr(config, "own", ())}
        off = getattr(config, "off_in_run", {})
        kept = {name: earlier[name] for name in earlier if name in known and name not in left}
        kept = {name: value for name, value in kept.items() if off.get(name) != value}
        take(kept, f"run {Path(base.path).parent}")
    found = None
    if recipe is not None:
        found = read_recipe(recipes.find(recipe))
        _check_recipe(found, command, known)
        take({key.replace("-", "_"): value for key, value in found.config.items()}, f"recipe {recipe}")
    _refuse_both(config, typed)
    take(typed, "flag")
    if base is not None and "run" in known:  # however it was named, as a checkpoint file or not at all
        values["run"] = str(Path(base.path).parent)
        origins["run"] = "newest run" if origins["run"] == "default" else origins["run"]
    built = validate(config, values, origins)
    origins |= getattr(built, "derived", {})
    return Resolved(built, origins, found, inherited)


def as_recipe(command: str, resolved: Resolved, folder: Path) -> Recipe:
    """The config.yaml that a run of these options would leave in `folder`."""
    config = {key: str(value) for key, value in to_yaml_mapping(resolved.config).items()}
    return Recipe(str(folder / "config.yaml"), command, config, run={"inherited": dict(resolved.inherited)})


def _alternatives(config: type) -> list[list[str]]:
    """Options that set the same thing, of all groups: each way as its options, joined by "+"."""
    groups = (group.__dict__.get("alternatives", ()) for group in config.__mro__)
    return [list(group) for group in groups if group]


def _displaced(groups: Sequence[Sequence[str]], found: Mapping[str, Any]) -> list[str]:
    """Options that a source overrides by setting, in another way, what they set."""
    displaced: list[str] = []
    for ways in groups:
        given = [way for way in ways if any(name in found for name in way.split("+"))]
        displaced += [name for way in ways if given and way not in given for name in way.split("+")]
    return displaced


def outdated(config: type, earlier: Mapping[str, Any], later: Mapping[str, Any]) -> list[str]:
    """Options of an earlier source that do not go with what a later one gives for the option that they follow from.

    Which follow from which, and when two values go together, is said by the `follows` of the option dataclasses.
    """
    found: list[str] = []
    for group in config.__mro__:
        for name, (leader, together) in group.__dict__.get("follows", {}).items():
            given = leader in later and name not in later and earlier.get(name) is not None
            if given and not together(earlier[name], later[leader]):
                found.append(name)
    return found


def _refuse_both(config: type, typed: Mapping[str, Any]) -> None:
    for ways in _alternatives(config):
        given = [[name for name in way.split("+") if name in typed] for way in ways]
        flags = [" and ".join(f"--{name.replace('_', '-')}" for name in names) for names in given if names]
        if len(flags) > 1:
            raise UsageError(f"{' and '.join(flags)} set the same thing", "Give one of them")


def _check_recipe(recipe: Recipe, command: str, known: Mapping[str, Option]) -> None:
    if recipe.arms:
        raise UsageError(f"{recipe.path} is a sweep", f"Run it with: effvl sweep {recipe.path}")
    if recipe.command != command:
        raise UsageError(f"{recipe.path} is a recipe for `effvl {recipe.command}`", f"This is `effvl {command}`")
    for key in recipe.config:
        if key.replace("-", "_") not in known:
            raise unknown_option(key, [option.key for option in known.values()], f"key {key!r} in {recipe.path}")


def dry_run_text(command: str, resolved: Resolved) -> str:
    """The resolved options as a recipe, the origin of each value beside it."""
    lines = ["effvl: 1", f"command: {command}", "config:"]
    for name, option in options(type(resolved.config)).items():
        value = getattr(resolved.config, name)
        text = "" if value is None else json.dumps(written(value))
        lines.append(f"  {option.key + ': ' + text:<44} # {resolved.origins[name]}")
    return "\n".join(lines)
