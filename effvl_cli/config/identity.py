"""Options as a run stores them: for its recipe, its identity and the comparison with those of an earlier attempt."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from effvl_cli.config.schema import options, written
from effvl_cli.config.validate import validate

DEFAULT = "the default"  # an empty list in a message


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
            there, here = (DEFAULT if value == () else written(value) for value in (was, now))
            found.append(f"{option.key}: {there} there, {here} here")
    return found
