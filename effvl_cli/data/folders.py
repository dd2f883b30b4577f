"""`folder:PATH`: one folder a class, as people have them.

PATH/train, PATH/val (or valid, validation) and PATH/test hold the class folders. Without val, a tenth of each training
image's names, by hash, is val. Without test, val stands for it. Without any of them, PATH holds the class folders and
is split 80/10/10 by hash.
"""

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from effvl_cli.core.errors import DataError
from effvl_cli.data.files import SUFFIXES, FileImages

NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
LAYOUT = "Expected PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg, or PATH/CLASS/*.jpg"
TENTHS = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}
TENTHS_OF_TRAIN = {"train": range(9), "val": range(9, 10)}


def build(argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> FileImages:
    """Registry builder; the argument is the folder.

    Raises:
        DataError: missing, empty, or a class of this split that training does not have.
    """
    if not argument:
        raise DataError("--data folder: names no folder", "Give --data folder:PATH")
    folder = (root / argument) if root else Path(argument)
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}", LAYOUT)
    found = {name: _subfolder(folder, names) for name, names in NAMES.items()}
    place, tenths = _place(folder, found, split)
    classes = _class_folders(found["train"] or folder)
    if not classes:
        raise DataError(f"{found['train'] or folder} holds no class folders", LAYOUT)
    extra = sorted(set(_class_folders(place)) - set(classes))
    if extra:
        raise DataError(f"class {extra[0]!r} of {place} is not in {found['train']}", "Both need the same class folders")
    paths, labels = _list(place, classes, tenths, folder)
    if not paths:
        raise DataError(
            f"{place} holds no images for split {split}", f"Looked for {', '.join(sorted(SUFFIXES))}. {LAYOUT}"
        )
    return FileImages(
        f"folder:{folder.name}",
        split,
        paths=paths,
        ids=[path.relative_to(folder).as_posix() for path in paths],
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(name.replace("_", " ") for name in classes),
    )


def _subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _place(folder: Path, found: dict[str, Path | None], split: str) -> tuple[Path, range | None]:
    """Folder of a split, and the tenths of it (by hash of the name) that belong to the split; None: all."""
    train, own = found["train"], found[split]
    if train is None:
        if found["val"] or found["test"]:
            raise DataError(f"{folder} has no train folder", LAYOUT)
        return folder, TENTHS[split]
    if split == "train":
        return train, None if found["val"] else TENTHS_OF_TRAIN["train"]
    if own:
        return own, None
    if split == "test":
        return _place(folder, found, "val")
    return train, TENTHS_OF_TRAIN["val"]


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key: case-insensitive, numbers by value."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def _class_folders(folder: Path) -> list[str]:
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=_natural)


def _list(place: Path, classes: list[str], tenths: range | None, root: Path) -> tuple[list[Path], list[int]]:
    paths, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted(_images(place / name)):
            if tenths is None or _tenth(path.relative_to(root).as_posix()) in tenths:
                paths.append(path)
                labels.append(label)
    return paths, labels


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                found.append(Path(where) / name)
    return found


def _tenth(name: str) -> int:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()[0] % 10
