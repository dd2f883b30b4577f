"""Safetensors files that one manifest names, replaced together: a kill leaves the old set or the new one.

The manifest is renamed last, and files that it does not name are removed after that. It holds the SHA-256 of every
file, of every tensor and of itself, so that any flipped bit is found, and the tensor that it is in.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from effvl_cli.core.checkpoint import digest
from effvl_cli.core.errors import ModelError
from effvl_cli.core.files import write_bytes

MANIFEST, DIGEST = "state.json", "manifest_sha256"
FORMAT = 1
_NAME = re.compile(r"(shared-\d+|tasks/\d+)\.safetensors")
_DAMAGED = "The state is damaged: copy it again, or restore it from a backup"

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by path in the folder."""


class CorruptStateError(ModelError):
    """A file of a state does not hold what was written."""


def corrupt(path: Path, what: str) -> CorruptStateError:
    """The error that names a file, and what is wrong with it."""
    return CorruptStateError(f"{path}: {what}", _DAMAGED)


def tensor_digest(name: str, tensor: Tensor) -> str:
    """SHA-256 of a tensor's name, type, shape and bytes."""
    return digest({name: tensor})


def write(folder: Path, about: Mapping[str, Any], files: Files, kept: Mapping[str, Any] | None = None) -> None:
    """Make these files, and those kept, the whole content of a folder.

    Args:
        folder: of the files; made if it is not there.
        about: what else the manifest says, JSON values.
        files: new ones, under names that the manifest there does not use.
        kept: descriptions of files that are there and stay, from the manifest there.
    """
    described = dict(kept or {})
    for name, tensors in files.items():
        plain = {key: value.contiguous() for key, value in tensors.items()}
        data = safetensors.torch.save(plain)
        write_bytes(folder / name, data)
        described[name] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "tensors": {key: tensor_digest(key, value) for key, value in sorted(plain.items())},
        }
    manifest = {"format": FORMAT, **about, "files": {name: described[name] for name in sorted(described)}}
    write_bytes(folder / MANIFEST, _text({**manifest, DIGEST: _digest(manifest)}))
    remove_others(folder, described)


def _text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(manifest)).hexdigest()


def remove_others(folder: Path, named: Iterable[str]) -> None:
    """Remove tensors that no manifest names, and what interrupted writes have left."""
    wanted = {folder / name for name in named}
    for path in [*folder.rglob("*.safetensors"), *folder.rglob(".*-*")]:
        if path not in wanted and path.is_file():
            with contextlib.suppress(OSError):  # the next writer removes it
                path.unlink()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        ModelError: there is none.
        CorruptStateError: it is not exactly as it was written.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{folder} holds no {MANIFEST}", "Give a run of effvl continual that has a state") from error
    try:
        manifest: dict[str, Any] = dict(json.loads(text))
        own = manifest.pop(DIGEST, None)
        whole = _text({**manifest, DIGEST: own}) == text and own == _digest(manifest)
    except (ValueError, TypeError, RecursionError) as error:
        raise corrupt(path, "not readable JSON of a state") from error
    if manifest.get("format") != FORMAT and own:
        raise ModelError(
            f"{path} has format {manifest.get('format')!r}, this version reads {FORMAT}",
            "Use the version that wrote it",
        )
    files = manifest.get("files")
    if not whole or not isinstance(files, dict) or not all(map(_NAME.fullmatch, files)):
        raise corrupt(path, "not as it was written")
    return manifest


def read(folder: Path, name: str, described: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of one file, each as the manifest describes it.

    Raises:
        CorruptStateError: missing, truncated or changed; the message names the tensor if the change is in one.
    """
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise corrupt(path, "cannot be read") from error
    try:
        expected: dict[str, str] = dict(described["tensors"])
        whole = hashlib.sha256(data).hexdigest() == described["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise corrupt(folder / MANIFEST, f"no digests of {name}") from error
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise corrupt(path, f"not a complete safetensors file ({error})") from error
    for key in sorted({*expected, *tensors}):
        if key not in tensors or key not in expected:
            raise corrupt(path, f"tensor {key} is {'missing' if key in expected else 'not of this state'}")
        if not whole and tensor_digest(key, tensors[key]) != expected[key]:
            raise corrupt(path, f"tensor {key} is not the one that was written")
    if not whole:
        raise corrupt(path, "its header is not the one that was written")
    return tensors
