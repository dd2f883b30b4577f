"""`folder:PATH`: one folder a class, as people have them.

PATH/train, PATH/val (or valid, validation) and PATH/test hold the class folders. With only one of val and test,
that one is reported, and a tenth of train, by hash of the names, is used for validation. With neither, train is split
80/10/10 by hash, and so is PATH when it holds the class folders itself.

Images outside class folders have no labels: `folder:PATH` takes them where there are no class folders, and
`images:PATH` takes all that lie below PATH, whatever the folders are called.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from effvl_cli.core.errors import DataError
from effvl_cli.data.files import SUFFIXES, FileImages, natural, readable, some

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
        raise DataError("--data folder: does not name a folder", "Give --data folder:PATH")
    folder = (root / argument) if root else Path(argument)
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}", LAYOUT)
    found = {name: _subfolder(folder, names) for name, names in NAMES.items()}
    place, tenths = _place(folder, found, split)
    classes = class_folders(found["train"] or folder)
    beside = len(_entries(found["train"] or folder)[1])
    if not classes and beside:
        return _unlabelled(folder, place, tenths, split)
    if not classes:
        raise DataError(f"{found['train'] or folder} holds no class folders", LAYOUT)
    extra = sorted(set(class_folders(place)) - set(classes))
    if extra:
        raise DataError(f"class {extra[0]!r} of {place} is not in {found['train']}", "Both need the same class folders")
    passed_over: list[str] = []
    ids, labels = list_images(place, classes, tenths, folder, passed_over)
    if not ids:
        raise _empty(place, split, tenths)
    remark = "; ".join(filter(None, (_beside_remark(place, beside), passed_over_remark(passed_over))))
    return _images(folder, split, ids, labels, classes=readable(classes, place), remark=remark)


def _images(
    folder: Path, split: str, ids: list[str], labels: Sequence[int], *, classes: tuple[str, ...], remark: str
) -> FileImages:
    return FileImages(
        f"folder:{folder.name or folder.resolve().name}",
        split,
        root=folder,
        ids=ids,
        labels=np.array(labels, dtype=np.int64),
        classes=classes,
        remark=remark,
    )


def build_unlabelled(argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> FileImages:
    """Registry builder of `images:PATH`.

    Raises:
        DataError: missing or empty.
    """
    if not argument:
        raise DataError("--data images: names no folder", "Give --data images:PATH")
    folder = (root / argument) if root else Path(argument)
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}", "Give one that holds images")
    found = {name: _subfolder(folder, names) for name, names in NAMES.items()}
    if found["train"] is None:  # folders called val or test mean nothing then
        found = dict.fromkeys(NAMES)
    place, tenths = _place(folder, found, split)
    return _unlabelled(folder, place, tenths, split)


def _unlabelled(folder: Path, place: Path, tenths: range | None, split: str) -> FileImages:
    passed_over: list[str] = []
    below = sorted(images_below(place, folder, place, passed_over))
    ids = [name.removeprefix("./") for name in below]
    ids = [name for name in ids if tenths is None or tenth(name) in tenths]
    if not ids:
        raise _empty(place, split, tenths)
    return _images(folder, split, ids, [0] * len(ids), classes=(), remark=passed_over_remark(passed_over))


def _beside_remark(place: Path, count: int) -> str:
    return f"{count} images outside the class folders of {place} are left out" if count else ""


def _subfolder(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _place(folder: Path, found: dict[str, Path | None], split: str) -> tuple[Path, range | None]:
    """Folder of a split, and which tenths of its files (by hash of the name) belong to the split; None: all."""
    train = found["train"]
    if train is None:
        if found["val"] or found["test"]:
            raise DataError(f"{folder} has no train folder", LAYOUT)
        return folder, TENTHS[split]
    name, tenths = drawn_from(split, val=found["val"] is not None, test=found["test"] is not None)
    return found[name] or train, tenths


def split_words(name: str) -> str:
    """The split that a file's or folder's name stands for; "" where it does not say."""
    words = set("".join(letter if letter.isalpha() else " " for letter in name.lower()).split())
    for split, known in NAMES.items():
        if words & {*known, *(f"{word}set" for word in known)}:
            return split
    return ""


def drawn_from(split: str, *, val: bool, test: bool) -> tuple[str, range | None]:
    """Which part of a data set holds a split, and which tenths of it (by hash of the name); None: all.

    With only one of val and test, that one is reported, and a tenth of train is used for validation: choices are not
    made on the split that is reported. With neither, train is split 80/10/10.

    Args:
        split: the split that is asked for.
        val: whether there is a part of that name.
        test: likewise.
    """
    if not (val or test):
        return "train", TENTHS[split]
    if split == "test":
        return ("test" if test else "val"), None
    if val and test:
        return split, None
    return "train", TENTHS_OF_TRAIN[split]


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, as people count."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=natural)


def list_images(
    place: Path, classes: list[str], tenths: range | None, root: Path, passed_over: list[str]
) -> tuple[list[str], list[int]]:
    """Image files of the class folders in `place`, as paths from `root`, and their labels; only some tenths of them.

    Entries that `images_below` skips are added to `passed_over`.
    """
    ids, labels = [], []
    for label, name in enumerate(classes):
        for image in sorted(images_below(place / name, root, place, passed_over)):
            if tenths is None or tenth(image) in tenths:
                ids.append(image)
                labels.append(label)
    return ids, labels


def images_below(folder: Path, root: Path, place: Path, passed_over: list[str]) -> list[str]:
    """Image files below a folder, as paths from `root`; plain strings, as there may be a million.

    Skipped, and added to `passed_over`: links to folders of the data set or to their parents, which would give
    images a second class or split, and pipes, sockets and devices, which cannot be read to an end.

    Args:
        folder: where to look; nothing is found where there is none.
        root: the data set's folder.
        place: folder of the split, which holds the class folders.
        passed_over: paths from `root`.
    """
    found: list[str] = []
    seen, waiting = set[Path](), [folder] if folder.is_dir() else []
    while waiting:
        here = waiting.pop()
        prefix, target = here.relative_to(root).as_posix(), here.resolve()
        if target in seen or (here.is_symlink() and _leads_back(target, here, root, place)):
            passed_over.append(prefix)
            continue
        seen.add(target)
        folders, files, others = _entries(here)
        waiting += [here / name for name in reversed(folders)]
        found += [f"{prefix}/{name}" for name in files]
        passed_over += [f"{prefix}/{name}" for name in others]
    return found


def _leads_back(target: Path, link: Path, root: Path, place: Path) -> bool:
    """Whether a link leads to a folder that is listed anyway, or to one above it."""
    whole, split, around = root.resolve(), place.resolve(), link.parent.resolve()
    holders = {around, *around.parents, whole, *whole.parents, split, *split.parents}
    listed = [split, *((whole / name).resolve() for names in NAMES.values() for name in names)]
    return target in holders or any(folder in (target, *target.parents) for folder in listed)


def _entries(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Sorted names of folders, of images, and of non-files with an image's name; hidden entries are left out."""
    folders: list[str] = []
    files: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name[entry.name.rfind(".") :].lower() in SUFFIXES:
                broken = entry.is_symlink() and not Path(entry.path).exists()  # kept: an error when it is read
                (files if entry.is_file() or broken else others).append(entry.name)
    return sorted(folders), sorted(files), sorted(others)


def passed_over_remark(passed_over: list[str]) -> str:
    """Note for reports on the entries that were skipped; empty when there are none."""
    if not passed_over:
        return ""
    return f"skipped, as links back into the data set or not regular files: {some(passed_over)}"


def tenth(name: str) -> int:
    """0 to 9, by hash of a name: the same on every machine, and whatever other names there are."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()[0] % 10


def _empty(place: Path, split: str, tenths: range | None) -> DataError:
    message = f"{place} holds no images for split {split}"
    if tenths is None:
        return DataError(message, f"Looked for {', '.join(sorted(SUFFIXES))}. {LAYOUT}")
    return DataError(
        message, f"Too few images to draw it by file name: add some, or make a folder {split!r} of your own"
    )
