"""Weights on disk: reading files of any origin, writing ours, and the step folders of a run.

Tensors are safetensors; training state is `torch.save` of plain containers and is read with `weights_only=True` only.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from effvl_cli.core.errors import ModelError
from effvl_cli.core.files import atomic_folder, write_bytes, write_json

FORMAT = 1
MOST_CLASSES = 2**20  # of a network in a manifest
WEIGHTS, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"
CHECKPOINT, STEPS = "checkpoint.safetensors", "checkpoints"
"""The final model for users, and the folder of training states."""
_SCALAR = np.float64(0).__reduce__()[0]  # numpy's function that rebuilds a scalar
# What files of training scripts hold besides tensors: options and best figures. Reading these runs no code.
_HARMLESS: list[Any] = [
    *(argparse.Namespace, np.dtype, (_SCALAR, "numpy.core.multiarray.scalar"), _SCALAR),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "bool")),
]
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(state: Mapping[str, Tensor]) -> str:
    """Hex digest of names, types, shapes and bytes of a state dict."""
    total = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


# --- reading ---------------------------------------------------------------------------------------------------------


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        ModelError: missing or corrupt.
    """
    if not path.is_file():
        raise ModelError(f"no weights at {path}", "Give a safetensors file, a .pt state dict or a run folder")
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} is not a complete safetensors file: {error}", "Copy or download it again") from error


def read_any(path: Path) -> Any:
    """What a safetensors file or one of `torch.save` holds: tensors, in whatever containers.

    Raises:
        ModelError: missing, corrupt, a TorchScript archive, or with objects that only their code can read.
    """
    if not path.is_file() or _is_safetensors(path):
        return read_state_dict(path)
    if _is_torchscript(path):
        raise ModelError(
            f"{path} is a TorchScript archive, which holds code",
            "If you trust it, convert it once: import torch, safetensors.torch as s; "
            f"m = torch.jit.load('{path.name}', 'cpu'); "
            f"s.save_file({{k: v.contiguous() for k, v in m.state_dict().items()}}, '{path.stem}.safetensors')",
        )
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)  # of a path torch goes by its suffix
    except Exception as error:  # torch raises half a dozen kinds for a damaged or unsafe file
        # torch's own message is a page long, with terminal colours.
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise ModelError(
                f"{path} cannot be read as tensors: it is damaged, or was not written by torch.save",
                "Copy or download it again",
            ) from error
        raise ModelError(
            f"{path} cannot be read as tensors: it holds an object of {refused[1]}, and reading it would run code",
            "Save the state dict itself with the program that wrote it: torch.save(model.state_dict(), 'weights.pt')",
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file is one by its first bytes, whatever it is called; a damaged one keeps what its name says."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # behind the length of the header
        return True
    return path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80\x02"))  # as torch.save begins


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())


def check_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, what: str, hint: str = "") -> None:
    """Compare names and shapes.

    Raises:
        ModelError: they differ; the message counts and names the first five of each kind.
    """
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} {tuple(found[key].shape)} for {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshaped", shapes))
        if keys
    ]
    if parts:
        raise ModelError(f"{what} do not fit: {'; '.join(parts)}", hint)


def check_settings(
    what: str,
    saved: Mapping[str, Any],
    ours: Mapping[str, Any],
    hint: str = "Leave those options out, or repeat the run",
) -> None:
    """Compare what something was made with and what it is to be used with.

    Raises:
        ModelError: some of ours differ; every one is listed.
    """
    differing = [f"{key}: {saved.get(key)!r} there, {own!r} here" for key, own in ours.items() if saved.get(key) != own]
    if differing:
        raise ModelError(f"{what} other settings ({'; '.join(differing)})", hint)


# --- writing ---------------------------------------------------------------------------------------------------------


def independent(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous CPU copies, one per storage, and the names that share another name's tensor."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for key, value in state.items():
        place = (value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape))
        if value.numel() and place in first:
            aliases[key] = first[place]
        else:
            first[place] = key
            tensors[key] = value.detach().cpu().contiguous().clone()
    return tensors, aliases


def save_model(path: Path, state: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write `path` (safetensors) and `manifest.json` beside it, each atomically.

    The manifest, which names the digest of the weights, comes last, so that an interruption between the two is noticed.
    """
    tensors, aliases = independent(state)
    data = save(tensors)
    write_bytes(path, data)
    write_json(path.parent / MANIFEST, _complete(manifest, tensors, aliases, data))


def _complete(
    manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], aliases: Mapping[str, str], data: bytes
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        **manifest,
        "aliases": dict(aliases),
        "keys": {key: list(value.shape) for key, value in tensors.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and manifest that `save_model` wrote.

    Raises:
        ModelError: one of them is missing, or they do not belong together.
    """
    manifest = read_manifest(path.parent)
    if not path.is_file():
        raise ModelError(f"no weights at {path}", "The run has not finished: give the same command again")
    if sha256(path) != manifest["sha256"]:
        raise ModelError(
            f"{path} is not the file that {MANIFEST} describes", "It is damaged or from another run: copy both again"
        )
    state = read_state_dict(path)
    aliases = manifest["aliases"]
    if not all(isinstance(key, str) and key in state for key in aliases.values()):
        raise ModelError(f"{MANIFEST} beside {path} names tensors that it does not hold", "Copy both again")
    return state | {alias: state[key] for alias, key in aliases.items()}, manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a folder.

    Raises:
        ModelError: missing, not JSON, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{folder} holds no {MANIFEST}", "Give the folder of a finished effvl run") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON: {error}", "Copy it again") from error
    if not isinstance(manifest, dict):
        raise ModelError(f"{path} is not a JSON object", "Copy it again")
    _check_fields(manifest, path)
    if manifest.get("format") != FORMAT:
        raise ModelError(f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT}")
    found: dict[str, Any] = manifest
    return found


def _check_fields(manifest: Mapping[str, Any], path: Path) -> None:
    """Check the fields that every manifest of this format has, and, where present, some that networks have."""
    if manifest.get("format") != FORMAT:
        return
    kinds = {"sha256": str, "aliases": dict}
    if manifest.get("kind") == "model":
        kinds |= {"model": str, "preprocess": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    classes, edits = manifest.get("num_classes"), manifest.get("edits", [])
    if classes is not None and not (isinstance(classes, int) and 0 <= classes <= MOST_CLASSES):
        wrong.append("num_classes")
    if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
        wrong.append("edits")
    if wrong:
        raise ModelError(f"{path} has no usable {' and '.join(wrong)}", "Copy it again, or repeat the run")


# --- step folders ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A training state read back."""

    model: dict[str, Tensor]
    state: dict[str, Any]
    step: int


class StepFolders:
    """`checkpoints/<phase>/step-00001000/`, each renamed into place when complete; the newest complete one counts.

    Args:
        folder: of one phase.
        keep: how many of the newest are kept, besides the best one.
        milestones: further steps to keep.
    """

    def __init__(self, folder: Path, *, keep: int = 2, milestones: frozenset[int] = frozenset()) -> None:
        self.folder = folder
        self.keep, self.milestones = keep, milestones

    def save(self, step: int, model: Mapping[str, Tensor], state: Mapping[str, Any], *, best: int | None) -> None:
        """Write one step, then remove those that are neither among the newest nor the step `best`."""
        tensors, aliases = independent(model)
        data = save(tensors)
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        with atomic_folder(self.folder / f"step-{step:08d}") as target:
            (target / WEIGHTS).write_bytes(data)
            (target / STATE).write_bytes(buffer.getbuffer())
            manifest = _complete({"step": step}, tensors, aliases, data)
            manifest["state_sha256"] = hashlib.sha256(buffer.getbuffer()).hexdigest()
            (target / MANIFEST).write_text(json.dumps(manifest, indent=1))
        self.tidy(step, best=best)

    def tidy(self, step: int, *, best: int | None) -> None:
        """Remove the steps up to this one that are neither among the newest of these nor the step `best`."""
        for old in [known for known in self.steps() if known <= step][: -self.keep]:
            if old != best and old not in self.milestones:
                shutil.rmtree(self._path(old), ignore_errors=True)

    def latest(self, warn: Callable[[str], None]) -> Step | None:
        """The newest complete step; a damaged one is skipped with a warning."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except ModelError as error:
                warn(f"{error}; going back to the checkpoint before it")
        return None

    def load(self, step: int) -> Step:
        """One step.

        Raises:
            ModelError: damaged.
        """
        folder = self._path(step)
        model, manifest = load_model(folder / WEIGHTS)
        path = folder / STATE
        if not path.is_file() or sha256(path) != manifest.get("state_sha256"):
            raise ModelError(f"{path} is damaged")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen kinds for a file that is not a state, or holds code
            raise ModelError(f"{path} is not a training state that can be read safely") from error
        return Step(model, state, step)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """The steps that are there, ascending."""
        names: Iterable[Path] = self.folder.glob("step-????????") if self.folder.is_dir() else ()
        return sorted(int(path.name.removeprefix("step-")) for path in names)
