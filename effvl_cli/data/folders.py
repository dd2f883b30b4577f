"""`folder:PATH`: one folder a class, as people have them.

PATH/train, PATH/val (or valid, validation) and PATH/test hold the class folders. With only one of val and test, that
one is reported on, and a tenth of train, by hash of the names, is held out for choices. With neither, train is split
80/10/10 by hash, and so is PATH when it holds the class folders itself.
"""

import hashlib
import os
from pathlib import Path

import numpy as np

from effvl_cli.core.errors import DataError
from effvl_cli.data.files import SUFFIXES, FileImages, natural, readable

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
    classes = class_folders(found["train"] or folder)
    if not classes:
        raise DataError(f"{found['train'] or folder} holds no class folders", LAYOUT)
    extra = sorted(set(class_folders(place)) - set(classes))
    if extra:
        raise DataError(f"class {extra[0]!r} of {place} is not in {found['train']}", "Both need the same class folders")
    ids, labels = list_images(place, classes, tenths, folder)
    if not ids:
        raise _empty(place, split, tenths)
    return FileImages(
        f"folder:{folder.name or folder.resolve().name}",
        split,
        root=folder,
        ids=ids,
        labels=np.array(labels, dtype=np.int64),
        classes=readable(classes, place),
    )


def _subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _place(folder: Path, found: dict[str, Path | None], split: str) -> tuple[Path, range | None]:
    """Folder of a split, and the tenths of it (by hash of the name) that belong to the split; None: all."""
    train = found["train"]
    if train is None:
        if found["val"] or found["test"]:
            raise DataError(f"{folder} has no train folder", LAYOUT)
        return folder, TENTHS[split]
    test = found["test"] or found["val"]
    val = found["val"] if found["test"] else None  # what is reported is not what choices are made on
    if test is None:
        return train, TENTHS[split]
    if split == "test":
        return test, None
    if split == "val":
        return (val, None) if val else (train, TENTHS_OF_TRAIN["val"])
    return train, None if val else TENTHS_OF_TRAIN["train"]


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, as people count."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=natural)


def list_images(place: Path, classes: list[str], tenths: range | None, root: Path) -> tuple[list[str], list[int]]:
    """Image files of the class folders in `place`, as paths from `root`, and their labels; only some tenths of them."""
    ids, labels = [], []
    for label, name in enumerate(classes):
        for image in sorted(images_below(place / name, root)):
            if tenths is None or tenth(image) in tenths:
                ids.append(image)
                labels.append(label)
    return ids, labels


def images_below(folder: Path, root: Path) -> list[str]:
    """Image files below a folder, as paths from `root`; plain strings, since there may be a million."""
    if not folder.is_dir():
        return []
    found, seen = [], set[Path]()
    for where, folders, files in os.walk(folder, followlinks=True):
        here = Path(where)
        if here.resolve() in seen:  # a link back into what is listed already
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = here.relative_to(root).as_posix()
        for name in files:
            if not name.startswith(".") and name[name.rfind(".") :].lower() in SUFFIXES:
                found.append(f"{prefix}/{name}")
    return found


def tenth(name: str) -> int:
    """0 to 9, by hash of a name: the same on every machine, and whatever other names there are."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()[0] % 10


def _empty(place: Path, split: str, tenths: range | None) -> DataError:
    message = f"{place} holds no images for split {split}"
    if tenths is None:
        return DataError(message, f"Looked for {', '.join(sorted(SUFFIXES))}. {LAYOUT}")
    return DataError(
        message, f"It is drawn by file name, from too few: add images, or make a folder {split!r} of your own"
    )
