"""What the option dataclasses say about each option: words, type, range, default, panel."""

import dataclasses
import inspect
import types
import typing
from dataclasses import dataclass
from typing import Any

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt

from effvl_cli.config.options import Marker

WIDEST = 20  # characters of choices in a placeholder; more of them would squeeze the text of the whole panel
LAST = ("Training", "Data", "Model", "Run")  # panels that commands share stand behind a command's own


@dataclass(frozen=True)
class Option:
    """One field of an option dataclass."""

    name: str
    key: str
    """With dashes: the recipe key, and the flag without its `--`."""
    kind: type
    """bool, int, float or str: of the value, or of the items of a list."""
    is_list: bool
    optional: bool
    choices: tuple[str, ...]
    words: tuple[str, ...]
    """Words that may stand in place of a number, e.g. "all"."""
    bounds: str
    doc: str
    default: Any
    panel: str
    markers: frozenset[str]

    @property
    def flag(self) -> str:
        """As a user types it."""
        return f"--{self.key}"

    @property
    def metavar(self) -> str:
        """Placeholder in help."""
        listed = "|".join(self.choices)
        word = "|".join(({int: "INT", float: "FLOAT"}.get(self.kind, "TEXT"), *self.words))
        word = "NAME" if len(listed) > WIDEST else listed or word
        return f"{word},..." if self.is_list else word


_known: dict[type, dict[str, Option]] = {}


def options(config: type) -> dict[str, Option]:
    """Options of a dataclass by field name, in the order in which help, `--dry-run` and config.yaml show them.

    Panel by panel, a command's own first; in a panel the fields of the most derived class first.
    """
    if config not in _known:
        _known[config] = _read(config)
    return _known[config]


def _read(config: type) -> dict[str, Option]:
    hints = typing.get_type_hints(config, include_extras=True)
    found = {item.name: _option(config, item, hints[item.name]) for item in dataclasses.fields(config)}
    panels = [getattr(base, "panel", "") for base in config.__mro__]

    def place(option: Option) -> tuple[int, int]:
        shared = LAST.index(option.panel) + 1 if option.panel in LAST else 0
        return shared * len(panels) + panels.index(option.panel), config.__mro__.index(_owner(config, option.name))

    return {option.name: option for option in sorted(found.values(), key=place)}


FEW = 16  # options that help shows as they are
_ALWAYS = ("run", "data", "model", "weights", "batch_size", "device", "seed", "out")


def common(config: type) -> list[str]:
    """Fields that help shows first: what the dataclass says (`common`), else its own panel and what most need.

    All of them, where they are few.
    """
    known = options(config)
    if len(known) <= FEW:
        return list(known)
    said = getattr(config, "common", ())
    own = getattr(config, "panel", "")
    return list(said) or [name for name, option in known.items() if option.panel == own or name in _ALWAYS]


def _owner(config: type, name: str) -> type:
    """The class that defines a field first."""
    return next(base for base in reversed(config.__mro__) if name in inspect.get_annotations(base))


def _option(config: type, item: Any, hint: Any) -> Option:
    meta = list(getattr(hint, "__metadata__", ()))
    kind, optional, words = _parts(_bare(hint))
    is_list = typing.get_origin(kind) is tuple
    if is_list:
        kind = typing.get_args(kind)[0]
    meta += getattr(kind, "__metadata__", ())
    kind = _bare(kind)
    choices = tuple(str(c) for c in typing.get_args(kind)) if typing.get_origin(kind) is typing.Literal else ()
    return Option(
        name=item.name,
        key=item.name.replace("_", "-"),
        kind=str if choices else kind,
        is_list=is_list,
        optional=optional,
        choices=choices,
        words=words,
        bounds=_bounds(meta),
        doc=next((m.documentation for m in meta if isinstance(m, Doc)), ""),
        default=item.default,
        panel=getattr(_owner(config, item.name), "panel", "Options"),
        markers=frozenset(m.name for m in meta if isinstance(m, Marker)),
    )


def _bare(hint: Any) -> Any:
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def _parts(hint: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """A type without the None and the literals of its union, whether there was a None, and the literals."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False, ()
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    words = [part for part in parts if len(parts) > 1 and typing.get_origin(part) is typing.Literal]
    [inner] = [part for part in parts if part not in words]
    listed = tuple(str(word) for part in words for word in typing.get_args(part))
    return inner, type(None) in typing.get_args(hint), listed


def _bounds(meta: list[Any]) -> str:
    """E.g. "above 0, at most 1"."""
    words = []
    for mark in meta:
        if isinstance(mark, Ge):
            words.append(f"at least {mark.ge}")
        elif isinstance(mark, Gt):
            words.append(f"above {mark.gt}")
        elif isinstance(mark, Le):
            words.append(f"at most {mark.le}")
        elif isinstance(mark, Lt):
            words.append(f"below {mark.lt}")
    return ", ".join(words)


def written(value: Any) -> Any:
    """A value as a recipe holds it: lists as "a,b", the rest as it is."""
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else value
