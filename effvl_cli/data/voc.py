"""`voc:FOLDER`: annotations in the XML of Pascal VOC.

FOLDER holds Annotations/*.xml, JPEGImages/ and ImageSets/Main/{train,val,test}.txt; `voc:FOLDER,train=trainval` names
other lists, and a validation list that is not named then is not used (it would be in trainval): a part of train is.
Without lists all is divided 80/10/10.

Boxes of VOC count pixels from 1, the last one included: (1, 1, 10, 10) is (0, 0, 10, 10) here. A set in which any
minimum is 0 does not follow that: its numbers are taken as they are.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
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
from effvl_cli.data.listings import read_lines
from effvl_cli.data.source import digest

CORNERS = ("xmin", "ymin", "xmax", "ymax")
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
    part = part_of(split, list(lists) or ["train"], whole=reading.whole)
    found = read(folder)
    name, names = f"voc:{folder.name or folder.resolve().name}", _names(lists[part.name]) if lists else ()
    pick = (lambda every: _listed(every, names, lists[part.name])) if lists else None
    return opened(name, split, found, reading, part=part, choose_rows=pick, more=names)


def _names(path: Path) -> list[str]:
    return read_lines(path, lambda line: line.split()[0])


def _listed(found: Annotations, names: Sequence[str], path: Path) -> Annotations:
    """The images of a list, in its order."""
    rows = {image.path.stem: row for row, image in enumerate(found.images)}
    missing = [name for name in names if name not in rows]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(names)} images have no annotation file: {', '.join(missing[:LISTED])}",
            "Add them, or take the names out of the list",
        )
    return found.keep_images(np.array([rows[name] for name in names], dtype=np.int64))


def read(folder: Path) -> Annotations:
    """All images of a folder.

    Raises:
        DataError: no annotations, or one that is empty or of another form; names the file.
    """
    place = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    files = sorted(place.glob("*.xml"), key=lambda path: natural(path.name))
    if not files:
        raise DataError(f"no VOC annotations at {folder}", LAYOUT)
    parsed = _parsed(tuple(files), digest(file_states(files)))
    pictures = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    known = {path.stem: path for path in sorted(pictures.iterdir()) if path.suffix.lower() in SUFFIXES}
    classes = tuple(sorted({thing.name for page in parsed for thing in page.things}))
    numbers = {name: k for k, name in enumerate(classes)}
    shift = 0.0 if any(min(thing.box[:2]) == 0 for page in parsed for thing in page.things) else 1.0
    boxes = Boxes()
    for row, page in enumerate(parsed):
        for thing in page.things:
            x1, y1, x2, y2 = thing.box
            boxes.add(row, (x1 - shift, y1 - shift, x2, y2), numbers[thing.name], ignore=thing.difficult)
    images = [
        Listed(
            file=(path := known.get(file.stem, pictures / (page.filename or f"{file.stem}.jpg"))).name,
            path=path,
            width=page.width,
            height=page.height,
        )
        for file, page in zip(files, parsed, strict=True)
    ]
    return Annotations(where=folder, classes=classes, category_ids=(), images=images, **boxes.columns())


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
    """All files, once for all splits; `states` tells when one has changed."""
    return [_page(path) for path in files]


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
