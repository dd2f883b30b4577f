"""`coco:PATH`: annotations in COCO's JSON.

PATH is a file, or a folder with train.json, val.json and test.json, or instances_train2017.json and so on, in it or in
annotations/, or train/_annotations.coco.json and so on. `coco:FOLDER,train=a.json,test=b.json` names other files. A
file whose name says val or test is that split alone; any other file is divided. Images lie where `file_name` says, from
the folder of the file, of the data set, or from a folder images/, train2017/ or the like in them.

Keys besides COCO's own: `video_id`, `scene` or `sequence`, `frame_id`, `time` or `timeofday` of an image (or of its
`attributes`), `ignore` of an annotation. Ids may start from 0.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effvl_cli.core.errors import DataError
from effvl_cli.data.annotations import FAULTS, Annotations, Listed, check_unique, folder_of
from effvl_cli.data.box_splits import annotation_files, choose, opened, part_of, place_and_choices
from effvl_cli.data.boxes import BoxSource, Reading
from effvl_cli.data.listings import read_json

PATTERNS = (
    "{}.json",
    "instances_{}*.json",
    "annotations/{}.json",
    "annotations/instances_{}*.json",
    "{}/_annotations.coco.json",
    "{}/{}.json",
    "*_{}.json",
    "annotations/*_{}.json",
)
EXPECTED = 'Expected {"images": [...], "annotations": [...], "categories": [...]}'


def build(
    argument: str, split: str, *, root: Path | None = None, seed: int = 0, reading: Reading | None = None
) -> BoxSource:
    """Registry builder; the argument is a file or folder.

    Raises:
        DataError: missing, or something that cannot be read; names the file.
    """
    reading = reading or Reading()
    place, choices = place_and_choices(argument, root)
    files = choose(
        annotation_files(place, PATTERNS, chosen=bool(choices)),
        {split: place / name for split, name in choices.items()},
    )
    part = part_of(split, list(files), whole=reading.whole)
    found = read(files[part.name], place if place.is_dir() else place.parent)
    return opened(f"coco:{place.stem}", split, found, reading, part=part)


def read(path: Path, root: Path) -> Annotations:
    """All images of a file.

    Args:
        path: the file.
        root: folder of the data set.

    Raises:
        DataError: empty, not of COCO's form, or ids that stand twice or point nowhere.
    """
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "categories")):
        raise DataError(f"{path} is no COCO file of objects", EXPECTED)
    rows = data.get("annotations")
    if not isinstance(rows, list):
        raise DataError(f"{path} has no list of annotations", EXPECTED)
    try:
        categories = dict(sorted((int(row["id"]), str(row["name"])) for row in data["categories"]))
        for key in ("id", "name"):
            check_unique([row[key] for row in data["categories"]], f"category {key}s", path)
        images = _images(path, root, data["images"])
        numbers = {image.image_id: place for place, image in enumerate(images)}
        return _annotations(path, images, numbers, categories, rows)
    except FAULTS as error:
        raise DataError(f"{path} is no COCO file of objects: {type(error).__name__} {error}", EXPECTED) from error


def _images(path: Path, root: Path, rows: Sequence[Mapping[str, Any]]) -> list[Listed]:
    check_unique([row["id"] for row in rows], "image ids", path)
    check_unique([row["file_name"] for row in rows], "file names", path)
    folder = _image_folder(path, root, [row["file_name"] for row in rows])
    return [_image(row, folder) for row in rows]


def _image(row: Mapping[str, Any], folder: Path) -> Listed:
    more = {**(row.get("attributes") or {}), **row}
    seq = next((more[key] for key in ("video_id", "scene", "sequence") if more.get(key) is not None), None)
    return Listed(
        file=row["file_name"],
        path=folder / row["file_name"],
        image_id=int(row["id"]),
        width=None if row.get("width") is None else int(row["width"]),
        height=None if row.get("height") is None else int(row["height"]),
        seq=None if seq is None else str(seq),
        frame=None if row.get("frame_id") is None else int(row["frame_id"]),
        time=more.get("time") or more.get("timeofday"),
    )


def _image_folder(path: Path, root: Path, names: Sequence[str]) -> Path:
    """The folder that the file names start from: the first in which some of them are found."""
    word = path.stem.removeprefix("instances_")
    folders = [path.parent, root, *(base / sub for base in (root, path.parent) for sub in ("images", word))]
    folders += [root / "images" / word, root / "JPEGImages", path.parent.parent / "images"]
    return folder_of(names, folders)


def _annotations(
    path: Path, images: list[Listed], numbers: Mapping[Any, int], categories: Mapping[int, str], rows: Sequence[Any]
) -> Annotations:
    strays = [row["image_id"] for row in rows if row["image_id"] not in numbers]
    if strays:
        raise DataError(
            f"{path}: {len(strays)} of {len(rows)} annotations are of images that it does not list, e.g. {strays[0]}",
            "Mend image_id",
        )
    unknown = [row["category_id"] for row in rows if row["category_id"] not in categories]
    if unknown:
        ids = ", ".join(map(str, sorted(set(unknown))[:10]))
        raise DataError(
            f"{path}: {len(unknown)} of {len(rows)} annotations have a category_id that is not in categories: {ids}",
            "Mend category_id",
        )
    place = {number: k for k, number in enumerate(categories)}
    corners = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Annotations(
        where=path,
        classes=tuple(categories.values()),
        category_ids=tuple(categories),
        images=images,
        owner=np.array([numbers[row["image_id"]] for row in rows], dtype=np.int64),
        boxes=corners,
        category=np.array([place[row["category_id"]] for row in rows], dtype=np.int64),
        crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=np.bool_),
        ignore=np.array([bool(row.get("ignore", 0)) for row in rows], dtype=np.bool_),
        area=np.array([row.get("area") or np.nan for row in rows], dtype=np.float64),
    )
