"""Content-keyed cache: the key says everything that the content depends on."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from effvl_cli.core.files import write_bytes, write_json

Key = Mapping[str, Any]
OPTION = "--cache-dir"


@dataclass(frozen=True)
class Entry:
    """One folder of the cache, for one key."""

    folder: Path

    @property
    def name(self) -> str:
        """The key's digest."""
        return self.folder.name

    def names(self) -> list[str]:
        """What is stored, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors"))

    def load(self, name: str, warn: Callable[[str], None]) -> dict[str, Tensor] | None:
        """Tensors stored under a name; None when absent, or damaged (then it is removed, with a warning)."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            return load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            warn(f"damaged cache file {path.name} removed: {error}")
            path.unlink(missing_ok=True)
            return None

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors, atomically; two processes may store the same content at once."""
        data = save({k: v.contiguous() for k, v in tensors.items()})
        write_bytes(self.folder / f"{name}.safetensors", data, option=OPTION)


class Rows:
    """Rows of tensors in an entry, each under a digest of what it belongs to, in files of some rows each.

    Args:
        entry: where they lie.
        warn: told of a damaged file, whose rows are then unknown.
    """

    def __init__(self, entry: Entry, warn: Callable[[str], None]) -> None:
        self.entry, self.warn = entry, warn

    def load(self, fields: Sequence[str]) -> dict[bytes, tuple[Tensor, ...]]:
        """All rows of some of the tensors, by digest."""
        known = {}
        for part in self.entry.names():
            tensors = self.entry.load(part, self.warn)
            if tensors is not None:
                for row, name in enumerate(tensors["names"].numpy()):
                    known[name.tobytes()] = tuple(tensors[field][row] for field in fields)
        return known

    def save(self, names: Sequence[bytes], tensors: Mapping[str, Tensor]) -> None:
        """Store rows, atomically, under digests of one length."""
        digests = torch.stack([torch.frombuffer(bytearray(name), dtype=torch.uint8) for name in names])
        part = hashlib.blake2b(b"".join(names), digest_size=8).hexdigest()
        self.entry.save(part, {**tensors, "names": digests})


class Cache:
    """Root of the cache: `--cache-dir`, else $EFFVL_CACHE, else effvl/ under the user's cache folder."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root) if root else default_root()

    def entry(self, kind: str, key: Key) -> Entry:
        """The entry of a key (JSON values); its folder also holds the key in readable form."""
        text = json.dumps(key, sort_keys=True)
        entry = Entry(self.root / kind / hashlib.sha256(text.encode()).hexdigest()[:16])
        if not (entry.folder / "key.json").is_file():
            write_json(entry.folder / "key.json", dict(key), option=OPTION)
        return entry


def default_root() -> Path:
    """Where the cache lies unless the user says otherwise."""
    if os.environ.get("EFFVL_CACHE"):
        return Path(os.environ["EFFVL_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effvl"
