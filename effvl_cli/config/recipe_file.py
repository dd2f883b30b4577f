"""Recipe files: a header, and options under their names, every scalar a string."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effvl_cli.config.validate import unknown_option
from effvl_cli.core.errors import UsageError

HEADER = ("effvl", "command", "description", "reference", "config", "run")
DEEPEST = 20  # mappings and lists within one another in a YAML file
SWEEP = ("arms", "baseline", "seeds", "claims", "pictures")


@dataclass(frozen=True)
class Recipe:
    """A recipe file, every scalar a string."""

    path: str
    command: str
    config: Mapping[str, str]
    description: str = ""
    reference: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    arm_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Seeds of the arms that have their own."""
    baseline: str = ""
    """The arm that the others are compared with; the first one where it is empty."""
    claims: tuple[str, ...] = ()
    pictures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def dump_yaml(value: Mapping[str, Any]) -> str:
    """YAML text of plain values, in their order."""
    import yaml

    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=1000)


def dump_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """YAML text of a list of flat rows, lists in them on one line."""
    import yaml

    return yaml.safe_dump(
        [dict(row) for row in rows], sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None
    )


def read_recipe(path: Path) -> Recipe:
    """Read a recipe, a sweep, or the config.yaml of a run.

    Raises:
        UsageError: missing, not YAML, a key given twice, or an unknown header.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or content.get("effvl") != "1":
        raise UsageError(f"{path} is not a recipe", "A recipe starts with the line `effvl: 1`")
    for key in content:
        if key not in HEADER + SWEEP:
            raise unknown_option(key, [*HEADER, *SWEEP], f"key {key!r} in {path}")
    for key in ("config", "reference", "run", "arms", "pictures"):
        if not isinstance(content.get(key) or {}, dict):
            raise UsageError(f"{key} in {path} is not a mapping", f"Write {key}: and below it one option per line")
    if not content.get("command"):
        raise UsageError(f"{path} has no command", "Add e.g. `command: prune-tokens`")
    for key in ("command", "description", "baseline"):
        if not isinstance(content.get(key, ""), str):
            raise UsageError(f"{key} in {path} is not text", f"Write {key}: and words on one line")
    config = _options(content.get("config"), "config", path)
    written_arms = {name: _options(arm, f"arm {name!r}", path) for name, arm in (content.get("arms") or {}).items()}
    arm_seeds = {
        name: _seeds(arm.pop("seeds").split(","), path) for name, arm in written_arms.items() if "seeds" in arm
    }
    arms = {name: _like(name, written_arms, path) for name in written_arms}
    baseline = content.get("baseline") or ""
    if baseline and baseline not in arms:
        raise UsageError(f"baseline in {path} is {baseline!r}, which is not an arm", f"Give one of {', '.join(arms)}")
    pictures = {
        name: _options(words, f"picture {name!r}", path) for name, words in (content.get("pictures") or {}).items()
    }
    return Recipe(
        path=str(path),
        command=content["command"],
        config=config,
        description=content.get("description") or "",
        reference=_reference(content.get("reference") or {}, path),
        run=_run_header(content.get("run") or {}, path),
        arms=arms,
        seeds=_seeds(_listed(content.get("seeds"), "seeds", path), path),
        arm_seeds=arm_seeds,
        baseline=baseline,
        claims=tuple(_listed(content.get("claims"), "claims", path)),
        pictures=pictures,
    )


def _like(name: str, arms: Mapping[str, Mapping[str, str]], path: Path) -> dict[str, str]:
    """Options of an arm: those of the arm that it is `like`, overridden by its own."""
    chain = [name]
    while "like" in arms[chain[-1]]:
        other = arms[chain[-1]]["like"]
        if other not in arms:
            raise UsageError(
                f"arm {name!r} in {path} is like {other!r}, which is not an arm", f"Give one of {_some(arms)}"
            )
        if other in chain:
            raise UsageError(f"arm {name!r} in {path} is like itself", "Write out the options of one of them")
        chain.append(other)
    merged: dict[str, str] = {}
    for arm in reversed(chain):
        merged.update(arms[arm])
    merged.pop("like", None)
    return merged


def _reference(reference: dict[str, Any], path: Path) -> dict[str, Any]:
    """Published figures: rows with a metric, and numbers or nothing beside it."""
    rows = reference.get("expected") or []
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, dict) or not isinstance(row.get("metric"), str):
            raise UsageError(
                f"reference.expected in {path} is not a list of rows", "Write - {metric: top1, value: 0.9}"
            )
        for key in ("value", "tolerance"):
            if row.get(key, "") not in ("", "null") and not _is_number(row[key]):
                raise UsageError(f"{key} of {row['metric']!r} in {path} is not a number", "Give a fraction, or null")
    return reference


def _is_number(text: Any) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False


def _run_header(run: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a run's config.yaml says besides its options."""
    for key in ("inputs", "inherited"):
        if key in run:
            run = {**run, key: _options(run[key], f"run.{key}", path)}
    return run


def _some(names: Iterable[str], count: int = 8) -> str:
    """The first few names of many."""
    listed = list(names)
    return ", ".join(listed[:count]) + (f" and {len(listed) - count} more" if len(listed) > count else "")


def _seeds(words: list[str], path: Path) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in words)
    except ValueError as error:
        raise UsageError(f"seeds in {path} are {', '.join(words)}", "Write e.g. seeds: [0, 1, 2]") from error


def _options(mapping: Any, called: str, path: Path) -> dict[str, str]:
    """Option names with dashes, and each value as one text."""
    if not isinstance(mapping or {}, dict):
        raise UsageError(f"{called} in {path} is not a mapping", "Write one option per line, e.g. keep: 0.5")
    values: dict[str, str] = {}
    for key, value in (mapping or {}).items():
        name = key.replace("_", "-")
        if name in values:
            raise UsageError(f"{called} in {path} gives {name!r} a second time", "Remove one")
        values[name] = ",".join(_listed(value, key, path))
    return values


def _listed(value: Any, key: str, path: Path) -> list[str]:
    """A text as a list of one. Only texts in it: a YAML alias can stand for a tree that never ends."""
    items = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(item, str) for item in items):
        raise UsageError(f"{key} in {path} is nested", "Recipes are flat: one option per line, lists as a,b")
    return items


def _short(path: object) -> str:
    """A path that a message can hold."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-20:]} ({len(text)} characters)"


def read_yaml(path: Path) -> Any:
    """YAML with every scalar a string, so that `1e-3` and `off` mean what the option says; no key twice."""
    import yaml

    class Loader(yaml.BaseLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if tag := getattr(event, "tag", None):  # a BaseLoader would read on as if it were not there
                short = tag.replace("tag:yaml.org,2002:", "!!")
                raise UsageError(f"{path} line {event.start_mark.line + 1} has the tag {short}", "Write it without")
            self.depth += 1
            if self.depth > DEEPEST:  # far below the limit of recursion, and before all of it is read
                raise UsageError(f"{path} is nested more than {DEEPEST} deep", "Recipes are flat: one option per line")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    def mapping(loader: Any, node: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = f"{path} line {key_node.start_mark.line + 1}"
            if not isinstance(key, str):
                raise UsageError(f"{line} has a key that is not a word", "Write one option per line, e.g. keep: 0.5")
            if key in seen:
                raise UsageError(f"{line} gives {key!r} a second time", "Remove one")
            seen[key] = loader.construct_object(value_node, deep=True)
        return seen

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    text = _read_text(path)
    try:
        return yaml.load(text, Loader)  # a BaseLoader makes strings, never objects
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{place} is not YAML: {getattr(error, 'problem', error)}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"no recipe at {path}", "`effvl list recipes` shows them all") from error
    except OSError as error:
        raise UsageError(f"{_short(path)} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, or a path with a null byte
        raise UsageError(f"{_short(path)} cannot be read: {error}") from error
