"""`voc:FOLDER`: annotations in the XML of Pascal VOC.

FOLDER holds Annotations/*.xml, JPEGImages/ and ImageSets/Main/{train,val,test}.txt; `voc:FOLDER,train=trainval` names
other lists, and a validation list that is not named then is not used (it would be in trainval): a part of train is.
Without lists, folders train/, valid/ and test/ of images and XML side by side are the splits, and without these all is
divided 80/10/10. Annotations and images may lie in folders of the same names below.

Boxes of VOC count pixels from 1, the last one included: (1, 1, 10, 10) is (0, 0, 10, 10) here. A set in which any
minimum is 0 does not follow that: its numbers are taken as they are.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from effvl_cli.core.errors import DataError
from effvl_cli.data import SPLITS
from effvl_cli.data.annotations import Annotations, Boxes, Listed
from effvl_cli.data.box_splits import choose, opened, part_of, place_and_choices
from effvl_cli.data.boxes import LISTED, BoxSource, Reading
from effvl_cli.data.files import SUFFIXES, file_states, natural
from effvl_cli.data.folders import NAMES
from effvl_cli.data.listings import read_lines
from effvl_cli.data.source import digest

CORNERS = ("xmin", "ymin", "xmax", "ymax")
FOLDERS, PICTURES = ("Annotations", "annotations"), ("JPEGImages", "images")
LAYOUT = "Expected Annotations/*.xml, JPEGImages/ and ImageSets/Main/train.txt"


def build(
    argument: str, split: str, *, root: Path | None = None, seed: int = 0, reading: Reading | None = None
) -> BoxSource:
    """Registry builder; the argument is the folder.

    Raises:
        DataError: missing, or something that cannot be read; names the file.
    """
    reading = reading or Reading()
    folder, choices = place_and_choices(argument, root)
    base = folder / "ImageSets" / "Main"
    lists = {split: base / f"{split}.txt" for split in SPLITS if (base / f"{split}.txt").is_file()}
    lists = choose(lists, {split: base / f"{name}.txt" for split, name in choices.items()})
    beside = {} if lists else split_folders(folder)
    part = part_of(split, list(lists or beside) or ["train"], whole=reading.whole)
    found = read(folder, reading)
    name, names = f"voc:{folder.name or folder.resolve().name}", _names(lists[part.name]) if lists else ()
    pick: Callable[[Annotations], Annotations] | None = None
    if lists:
        pick = lambda every: _listed(every, names, lists[part.name])  # noqa: E731
    elif beside:
        pick = lambda every: _inside(every, beside[part.name])  # noqa: E731
    return opened(name, split, found, reading, part=part, choose_rows=pick, more=names)


def split_folders(folder: Path) -> dict[str, Path]:
    """Folders of a split's images and XML side by side, as some programs export them."""
    return {
        split: folder / name
        for split, names in NAMES.items()
        for name in names
        if next((folder / name).glob("*.xml"), None)
    }


def _inside(found: Annotations, folder: Path) -> Annotations:
    """The images of a folder."""
    rows = [row for row, image in enumerate(found.images) if image.path.is_relative_to(folder)]
    return found.keep_images(np.array(rows, dtype=np.int64))


def _names(path: Path) -> list[str]:
    return read_lines(path, lambda line: line.split()[0])


def _listed(found: Annotations, names: Sequence[str], path: Path) -> Annotations:
    """The images of a list, in its order."""
    rows = {image.path.stem: row for row, image in enumerate(found.images)}
    rows |= {_stem(Path(image.file)): row for row, image in enumerate(found.images)}
    missing = [name for name in names if name not in rows]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(names)} images have no annotation file: {', '.join(missing[:LISTED])}",
            "Add them, or take the names out of the list",
        )
    return found.keep_images(np.array([rows[name] for name in names], dtype=np.int64))


def read(folder: Path, reading: Reading) -> Annotations:
    """All images of a folder.

    Args:
        folder: of the data set.
        reading: its looks at requests to stop.

    Raises:
        DataError: no annotations, or one that is empty or of another form; names the file.
    """
    place, pictures = (_first(folder, names) for names in (FOLDERS, PICTURES))
    files = sorted(place.rglob("*.xml"), key=lambda path: natural(str(path.relative_to(place))))
    if not files:
        raise DataError(f"no VOC annotations at {folder}", LAYOUT)
    parsed = _parsed(tuple(files), digest(file_states(files)))
    if len(parsed) < len(files):
        parsed[:] = [_page(path) for path in reading.every(files)]
    there = [path for path in sorted(pictures.rglob("*")) if path.suffix.lower() in SUFFIXES]
    known = {path.stem: path for path in there} | {_stem(path.relative_to(pictures)): path for path in there}
    classes = tuple(sorted({thing.name for page in parsed for thing in page.things}))
    numbers = {name: k for k, name in enumerate(classes)}
    shift = 0.0 if any(min(thing.box[:2]) == 0 for page in parsed for thing in page.things) else 1.0
    boxes = Boxes()
    for row, page in enumerate(parsed):
        for thing in page.things:
            x1, y1, x2, y2 = thing.box
            boxes.add(row, (x1 - shift, y1 - shift, x2, y2), numbers[thing.name], ignore=thing.difficult)
    images = [_image(file.relative_to(place), page, pictures, known) for file, page in zip(files, parsed, strict=True)]
    return Annotations(where=folder, classes=classes, category_ids=(), images=images, **boxes.columns())


def _image(file: Path, page: "_Page", pictures: Path, known: Mapping[str, Path]) -> Listed:
    """The image of an annotation file, of the same name in the same folder, or else of that name anywhere."""
    said = Path(page.filename.replace("\\", "/")).name or f"{file.stem}.jpg"
    path = known.get(_stem(file)) or known.get(file.stem) or pictures / file.parent / said
    return Listed(file=str(path.relative_to(pictures)), path=path, width=page.width, height=page.height)


def _first(folder: Path, names: Sequence[str]) -> Path:
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _stem(path: Path) -> str:
    return str(path.with_suffix(""))


@dataclass(frozen=True)
class _Thing:
    """An object of a page."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class _Page:
    """What a file says."""

    filename: str
    width: int | None
    height: int | None
    things: tuple[_Thing, ...]


@lru_cache(maxsize=2)
def _parsed(files: tuple[Path, ...], states: str) -> list[_Page]:
    """What all files say, to be filled once for all splits; `states` tells when one has changed."""
    return []


def _page(path: Path) -> _Page:
    try:
        root = ElementTree.fromstring(path.read_bytes())
        things = tuple(_thing(node) for node in root.iter("object"))
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) or None for side in ("width", "height"))
    except (ElementTree.ParseError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no VOC annotation: {error}", LAYOUT) from error
    return _Page((root.findtext("filename") or "").strip(), width, height, things)


def _thing(node: ElementTree.Element) -> _Thing:
    said = {child.tag: (child.text or "").strip() for child in node}
    corners = {child.tag: child.text or "nan" for child in node.iterfind("bndbox/*")}
    if not said.get("name") or not corners.keys() >= set(CORNERS):
        raise ValueError(f"an object without {'a whole bndbox' if said.get('name') else 'a name'}")
    x1, y1, x2, y2 = (float(corners[corner]) for corner in CORNERS)
    return _Thing(said["name"], (x1, y1, x2, y2), said.get("difficult") == "1")
