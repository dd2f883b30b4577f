"""Checks the names and values of options, and says in one line what is wrong with one."""

import difflib
import functools
from collections.abc import Mapping
from typing import Any

from effvl_cli.config.schema import Option, options
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
    listed = f"{wanted.removeprefix('a ')}s, comma separated" if option.is_list else wanted
    words = "".join(f", or {word}" for word in option.words)
    return UsageError(where, f"It must be {listed}{', ' + option.bounds if option.bounds else ''}{words}")
