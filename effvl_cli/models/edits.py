"""Changes to a network after it was built: the `edits` of a manifest, repeated before its weights are loaded.

An edit is `{"kind": KIND}`, often with `"args"`. A new kind is a file with a function that repeats it, and a row here.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from effvl_cli.core.errors import ModelError

Repeat = Callable[[nn.Module, Mapping[str, Any]], object]
"""(network, edit): makes the edit, in place; raises KeyError, TypeError or ValueError where it does not fit."""


@dataclass(frozen=True)
class EditKind:
    """A row of `EDITS`.

    Attributes:
        target: "module:function" of its `Repeat`.
        leaves: what the network then has, in words.
    """

    target: str
    leaves: str


EDITS: Mapping[str, EditKind] = {
    "blocks removed": EditKind("effvl_cli.models.removed_blocks:repeat", "blocks removed"),
    "prompts": EditKind("effvl_cli.models.tuned_prompts:repeat", "tuned prompts"),
    "widened": EditKind("effvl_cli.models.widened:repeat", "widened layers"),
    "halves": EditKind("effvl_cli.models.halved_blocks:repeat", "blocks split in halves"),
}


def apply_edits(module: nn.Module, edits: Sequence[Mapping[str, Any]]) -> None:
    """Repeat edits on a network that was just built, in place.

    Raises:
        ModelError: an unknown kind, or one that does not fit the network.
    """
    try:
        for edit in edits:
            _repeat_of(edit["kind"])(module, edit)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the edits of the manifest cannot be repeated: {error}",
            "The checkpoint is damaged, or from another version of effvl",
        ) from error


def _repeat_of(kind: str) -> Repeat:
    if kind not in EDITS:
        raise ValueError(f"no kind {kind!r} is known")
    path, _, name = EDITS[kind].target.partition(":")
    found: Repeat = getattr(importlib.import_module(path), name)
    return found


def in_words(edits: Sequence[Mapping[str, Any]]) -> str:
    """What edited networks have, e.g. "blocks removed"; empty without edits."""
    return " and ".join(dict.fromkeys(EDITS[edit["kind"]].leaves for edit in edits))


def reported(edits: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and arguments of each edit, as a report has them: a list of arguments is one of blocks."""
    for edit in edits:
        args = edit.get("args", {})
        yield edit["kind"], dict(args) if isinstance(args, Mapping) else {"blocks": args}
