"""What a state takes: elements by owner, picks, and bytes on disk."""

from pathlib import Path
from typing import Any

from torch import Tensor

from effvl_cli.engines.continual.state import State
from effvl_cli.engines.continual.state_files import MANIFEST

NORM_PARTS = ("running_mean", "running_var", "num_batches_tracked")


def task_rows(state: State) -> list[dict[str, Any]]:
    """Each task's width, shares and bytes.

    `own_fraction` is of all shared weights at the newest geometry, `picked_fraction` of those that are older than the
    task at its own; None where there are none.
    """
    total, rows = sum(value.numel() for value in state.owner.values()), []
    for task in state.tasks:
        own = sum(int((value == task.id).sum()) for value in state.owner.values())
        old = sum(int(((value > 0) & (value < task.id)).sum()) for value in state.owners(task.id).values())
        picked = sum(int(value.sum()) for value in state.picks(task.id).values())
        tensors = (*state.task_tensors[task.id - 1].values(), *state.packed_picks[task.id - 1].values())
        rows.append(
            {
                "name": task.name,
                "classes": list(task.classes),
                "width": task.width,
                "ratio": task.ratio,
                "goal": task.goal,
                "own_fraction": own / total if total else None,
                "picked_fraction": picked / old if old else None,
                "bytes": sum(map(_bytes, tensors)),
                "added": task.added,
                "digest": task.tensor_digest,
            }
        )
    return rows


def layer_rows(state: State) -> list[dict[str, Any]]:
    """Elements of each shared tensor, free ones, and those of each task."""
    rows = []
    for name, owner in state.owner.items():
        counts = [int((owner == task.id).sum()) for task in state.tasks]
        free = owner.numel() - sum(counts)
        rows.append({"name": name, "numel": owner.numel(), "free": free, "owned": counts})
    return rows


def stored_bytes(folder: Path, state: State) -> dict[str, int]:
    """Bytes on disk by what they hold: exact but for `headers`, which is the rest of the files.

    Returns:
        base, owner, picks, norms, biases, heads, tokens, headers, manifest.
    """
    owned = sum(int((value > 0).sum()) for value in state.owner.values())
    elements = sum(value.numel() for value in state.owner.values())
    planes = len(state.tasks).bit_length()
    sizes = {
        "base": 4 * (owned if state.shared_format == "sparse" else elements),
        "owner": sum(planes * -(-value.numel() // 8) for value in state.owner.values()),
        "picks": sum(_bytes(value) for part in state.packed_picks for value in part.values()),
        **dict.fromkeys(("norms", "biases", "heads", "tokens"), 0),
    }
    for part in state.task_tensors:
        for key, value in part.items():
            sizes[kind_of(key, part)] += _bytes(value)
    files = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    sizes["headers"] = sum(path.stat().st_size for path in files) - sum(sizes.values())
    sizes["manifest"] = (folder / MANIFEST).stat().st_size
    return sizes


def kind_of(key: str, part: dict[str, Tensor] | Any) -> str:
    """What a task's own tensor is: of its head, a norm, a bias, or a token (also positions and scales)."""
    path, _, name = key.rpartition(".")
    if (part[key].ndim > 1 and name == "weight") or (name == "bias" and _is_matrix(part, f"{path}.weight")):
        return "heads"
    if name in NORM_PARTS or (name in ("weight", "bias") and f"{path}.weight" in part):
        return "norms"
    return "biases" if name == "bias" or name.endswith("_bias") else "tokens"


def _is_matrix(part: Any, key: str) -> bool:
    return key in part and part[key].ndim > 1


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
