"""Options of a run from defaults, an earlier run, a recipe and flags, in rising precedence, through one validation."""

import difflib
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effvl_cli.config import recipes
from effvl_cli.config.schema import Option, options, written
from effvl_cli.core.errors import UsageError

# Words that people bring from other tools.
ALIASES = {
    "learning-rate": "lr",
    "batch": "batch-size",
    "bs": "batch-size",
    "wd": "weight-decay",
    "dataset": "data",
    "output": "out",
    "output-dir": "out",
    "checkpoint": "weights",
    "pretrained": "weights",
    "arch": "model",
    "num-workers": "workers",
    "keep-rate": "keep",
    "keep-ratio": "keep",
    "amp": "precision",
    "num-epochs": "epochs",
    "max-steps": "steps",
    "gpu": "device",
}
HEADER = ("effvl", "command", "description", "reference", "config", "run")
DEEPEST = 20  # mappings and lists within one another in a YAML file
SWEEP = ("arms", "baseline", "seeds", "claims", "pictures")


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
        for name in _displaced(getattr(config, "alternatives", ()), found):
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
        kept = {name: earlier[name] for name in earlier if name in known and name not in left}
        take(kept, f"run {Path(base.path).parent}")
    found = None
    if recipe is not None:
        found = read_recipe(recipes.find(recipe))
        _check_recipe(found, command, known)
        take({key.replace("-", "_"): value for key, value in found.config.items()}, f"recipe {recipe}")
    _refuse_both(getattr(config, "alternatives", ()), typed)
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


def _displaced(alternatives: tuple[str, ...], found: Mapping[str, Any]) -> list[str]:
    """Of alternative options, those that a source overrides by setting another one of them."""
    return [name for name in alternatives if name not in found and any(other in found for other in alternatives)]


def _refuse_both(alternatives: tuple[str, ...], typed: Mapping[str, Any]) -> None:
    flags = [f"--{name.replace('_', '-')}" for name in alternatives if name in typed]
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


def unknown_option(name: str, known: list[str], called: str) -> UsageError:
    """The error for a word that is not an option, with the nearest ones."""
    plain = name.lstrip("-").replace("_", "-")
    if plain in known:
        return UsageError(f"unknown {called}", f"Did you mean {plain!r}?")
    if ALIASES.get(plain) in known:
        return UsageError(f"unknown {called}", f"Did you mean {ALIASES[plain]!r}?")
    near = difflib.get_close_matches(plain, known, n=2, cutoff=0.6)
    near = near or [key for key in known if plain and (key.endswith(f"-{plain}") or key.startswith(f"{plain}-"))][:3]
    hint = f"Did you mean {' or '.join(repr(key) for key in near)}?" if near else "See --help for the options"
    return UsageError(f"unknown {called}", hint)


def validate(config: type, values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Any:
    """Build the dataclass from strings.

    Raises:
        UsageError: a value does not fit.
    """
    from pydantic import ValidationError

    known = options(config)
    parsed = {}
    for name, value in values.items():
        if isinstance(value, str) and not _is_text(value):
            raise UsageError(_is(known[name], ascii(value), origins or {}), "It holds bytes that are not UTF-8 text")
        parsed[name] = _parse(known[name], value)
        if parsed[name] == () and known[name].default:
            raise UsageError(_is(known[name], "", origins or {}), "Give one value, or several separated by commas")
    try:
        return _adapter(config).validate_python(parsed)
    except ValidationError as error:
        raise _readable(error.errors()[0], known, values, origins or {}) from None


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:  # half a character, as Python reads a byte that is not UTF-8
        return False


@functools.cache
def _adapter(config: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(config)


def _parse(option: Option, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if option.is_list:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not option.optional:
        return value
    free_text = option.kind is str and not option.choices  # in which "none" is a word like any other
    words = {"", "null"} if free_text or "none" in option.choices else {"", "null", "none"}
    return None if value.lower() in words else value


def _is(option: Option, value: Any, origins: Mapping[str, str]) -> str:
    """An option as the user wrote it, its value, and where: "--keep is 2", "keep is 2 in recipe r.yaml"."""
    source = origins.get(option.name, "flag")
    said = "empty" if value == "" else value
    return f"{option.flag} is {said}" if source == "flag" else f"{option.key} is {said} in {source}"


def _readable(
    error: Mapping[str, Any], known: Mapping[str, Option], values: Mapping[str, Any], origins: Mapping[str, str]
) -> UsageError:
    if not error["loc"]:
        return UsageError(str(error["msg"]).removeprefix("Value error, "))
    option = known[str(error["loc"][0])]
    value = error.get("input", values.get(option.name))
    where = _is(option, value, origins)
    if option.choices:
        near = difflib.get_close_matches(str(value), option.choices, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        return UsageError(where, f"It is one of {', '.join(option.choices)}{guess}")
    wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(option.kind, "a text")
    listed = f"{wanted}s, comma separated" if option.is_list else wanted
    words = "".join(f", or {word}" for word in option.words)
    return UsageError(where, f"It must be {listed}{', ' + option.bounds if option.bounds else ''}{words}")


# --- what is written, and compared -----------------------------------------------------------------------------------


def to_yaml_mapping(config: Any) -> dict[str, Any]:
    """Recipe keys and values of a resolved config; options without a value are left out."""
    values = {option.key: getattr(config, name) for name, option in options(type(config)).items()}
    return {key: written(value) for key, value in values.items() if value is not None}


def identity(config: Any) -> str:
    """SHA-256 over what determines the result: all but volatile and growable options."""
    known = options(type(config))
    fixed = {
        name: written(getattr(config, name))
        for name, option in known.items()
        if not option.markers & {"volatile", "growable"}
    }
    return hashlib.sha256(json.dumps([type(config).__name__, fixed], sort_keys=True).encode()).hexdigest()


def growable(config: Any) -> dict[str, Any]:
    """Keys and values, None included, of the options that may grow when a run is continued."""
    known = options(type(config))
    return {o.key: written(getattr(config, name)) for name, o in known.items() if "growable" in o.markers}


def differences(old: Mapping[str, str], config: Any) -> list[str]:
    """How a new config differs from a stored one, e.g. "keep: 0.6 there, 0.5 here"; growth is not a difference."""
    known = options(type(config))
    strange = [key for key in old if key.replace("-", "_") not in known]
    if strange:
        return [f"{key}: of another version" for key in strange]
    before = validate(type(config), {key.replace("-", "_"): value for key, value in old.items()})
    found = []
    for name, option in known.items():
        was, now = getattr(before, name), getattr(config, name)
        grown = "growable" in option.markers and was is not None and now is not None and now > was
        if was != now and not grown and "volatile" not in option.markers:
            found.append(f"{option.key}: {written(was)} there, {written(now)} here")
    return found


def dry_run_text(command: str, resolved: Resolved) -> str:
    """The resolved options as a recipe, the origin of each value beside it."""
    lines = ["effvl: 1", f"command: {command}", "config:"]
    for name, option in options(type(resolved.config)).items():
        value = getattr(resolved.config, name)
        text = "" if value is None else json.dumps(written(value))
        lines.append(f"  {option.key + ': ' + text:<44} # {resolved.origins[name]}")
    return "\n".join(lines)


def dump_yaml(value: Mapping[str, Any]) -> str:
    """YAML text of plain values, in their order."""
    import yaml

    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=1000)


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
