"""Which data a run has read, and whether they have changed since; core knows data only by their fingerprints.

`data.json` of a run folder: a row for each split, with what opens it again (`spec`, `root`) and its fingerprint.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DATA = "data.json"

Fingerprints = Callable[[str, str | None], Mapping[str, str]]
"""A data set by name and root, to the fingerprint that each of its splits has now; missing splits are left out."""
Row = dict[str, Any]


def row_of(source: Any, fingerprint: str) -> Row | None:
    """What to remember of a split; None for one that `effvl_cli.data.load` did not open."""
    opened = getattr(source, "opened", None)
    if opened is None:
        return None
    spec, root = opened
    return {"spec": spec, "root": root, "split": source.split, "fingerprint": fingerprint}


def read(folder: Path) -> list[Row]:
    """The rows of what a run has read; none where the file is missing or damaged."""
    try:
        rows = json.loads((folder / DATA).read_bytes())
        return [{key: row[key] for key in ("spec", "root", "split", "fingerprint")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def changed(rows: list[Row], fingerprints: Fingerprints) -> tuple[list[str], list[str]]:
    """Splits whose content has changed, and splits that are no longer there."""
    now = {key: fingerprints(*key) for key in dict.fromkeys((row["spec"], row["root"]) for row in rows)}
    other, gone = [], []
    for row in rows:
        found = now[row["spec"], row["root"]].get(row["split"])
        if found is None:
            gone.append(f"{row['split']} of {row['spec']}")
        elif found != row["fingerprint"]:
            other.append(f"{row['split']} of {row['spec']}")
    return other, gone
