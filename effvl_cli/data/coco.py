r"""`coco:PATH`: annotations in COCO's JSON.

PATH is a file, or a folder with train.json, val.json and test.json, or instances_train2017.json and so on, in it or in
annotations/, or train/_annotations.coco.json and so on. `coco:FOLDER,train=a.json,test=b.json` names other files. A
file whose name says val or test is that split alone; any other file is divided. Images lie where `file_name` says, from
the folder of the file, of the data set, or from a folder images/, train2017/ or the like in them.

Ids may be words, which are numbered then; `\\` in `file_name` separates folders as `/` does; the box of an annotation
that has none is that of its polygons or of its mask (RLE, as numbers or compressed).

Keys besides COCO's own: `video_id`, `scene` or `sequence`, `frame_id`, `time` or `timeofday` of an image (or of its
`attributes`), `ignore` of an annotation. Ids may start from 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.errors import DataError
from effvl_cli.data.annotations import FAULTS, Annotations, Listed, check_unique, folder_of, said
from effvl_cli.data.box_splits import annotation_files, open_files
from effvl_cli.data.boxes import BoxSource, Reading
from effvl_cli.data.listings import read_json

PATTERNS = (
    "{}.json",
    "instances_{}*.json",
    "annotations/{}.json",
    "annotations/instances_{}*.json",
    "{}/_annotations.coco.json",
    "{}/{}.json",
    "{}/labels.json",
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
    find = partial(annotation_files, patterns=PATTERNS)
    return open_files("coco", argument, split, root=root, reading=reading, find=find, read=read)


def read(path: Path, root: Path, reading: Reading) -> Annotations:
    """All images of a file.

    Args:
        path: the file.
        root: folder of the data set.
        reading: says nothing here.

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
        for key in ("id", "name"):
            check_unique([row[key] for row in data["categories"]], f"category {key}s", path)
        categories = {_key(row["id"]): str(row["name"]) for row in data["categories"]}
        if _are_numbers(categories):
            categories = dict(sorted(categories.items()))
        images = _images(path, root, data["images"])
        numbers = {_key(row["id"]): place for place, row in enumerate(data["images"])}
        return _annotations(path, images, numbers, categories, rows)
    except FAULTS as error:
        raise DataError(f"{path} is no COCO file of objects: {said(error)}", EXPECTED) from error


def _images(path: Path, root: Path, rows: Sequence[Mapping[str, Any]]) -> list[Listed]:
    check_unique([row["id"] for row in rows], "image ids", path)
    names = [row["file_name"].replace("\\", "/") for row in rows]
    check_unique(names, "file names", path)
    folder = _image_folder(path, root, names)
    numbered = _are_numbers([_key(row["id"]) for row in rows])
    return [_image(row, name, folder, numbered=numbered) for row, name in zip(rows, names, strict=True)]


def _key(value: Any) -> int | str:
    """An id, which some programs write as a word."""
    try:
        return int(value)
    except ValueError:
        return str(value)


def _are_numbers(ids: Iterable[int | str]) -> bool:
    return all(isinstance(value, int) for value in ids)


def _image(row: Mapping[str, Any], name: str, folder: Path, *, numbered: bool) -> Listed:
    more = {**(row.get("attributes") or {}), **row}
    seq = next((more[key] for key in ("video_id", "scene", "sequence") if more.get(key) is not None), None)
    return Listed(
        file=name,
        path=folder / name,
        image_id=int(row["id"]) if numbered else None,
        width=None if row.get("width") is None else int(row["width"]),
        height=None if row.get("height") is None else int(row["height"]),
        seq=None if seq is None else str(seq),
        frame=None if row.get("frame_id") is None else int(row["frame_id"]),
        time=more.get("time") or more.get("timeofday"),
    )


def _image_folder(path: Path, root: Path, names: Sequence[str]) -> Path:
    """The folder that the file names start from: the first in which some of them are found."""
    word = path.stem.removeprefix("instances_")
    folders = [path.parent, root, *(base / sub for base in (root, path.parent) for sub in ("images", "data", word))]
    folders += [root / "images" / word, root / "JPEGImages", path.parent.parent / "images"]
    return folder_of(names, folders)


def _annotations(
    path: Path,
    images: list[Listed],
    numbers: Mapping[int | str, int],
    categories: Mapping[int | str, str],
    rows: Sequence[Any],
) -> Annotations:
    owners, kinds = ([_key(row[key]) for row in rows] for key in ("image_id", "category_id"))
    strays = [owner for owner in owners if owner not in numbers]
    if strays:
        raise DataError(
            f"{path}: {len(strays)} of {len(rows)} annotations are of images that it does not list, e.g. {strays[0]}",
            "Mend image_id",
        )
    unknown = [kind for kind in kinds if kind not in categories]
    if unknown:
        ids = ", ".join(map(str, sorted(set(unknown), key=str)[:10]))
        raise DataError(
            f"{path}: {len(unknown)} of {len(rows)} annotations have a category_id that is not in categories: {ids}",
            "Mend category_id",
        )
    place = {number: k for k, number in enumerate(categories)}
    corners = _boxes(path, rows)
    corners[:, 2:] += corners[:, :2]
    return Annotations(
        where=path,
        classes=tuple(categories.values()),
        category_ids=tuple(int(kind) for kind in categories) if _are_numbers(categories) else (),
        images=images,
        owner=np.array([numbers[owner] for owner in owners], dtype=np.int64),
        boxes=corners,
        category=np.array([place[kind] for kind in kinds], dtype=np.int64),
        crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=np.bool_),
        ignore=np.array([bool(row.get("ignore", 0)) for row in rows], dtype=np.bool_),
        area=np.array([row.get("area") or np.nan for row in rows], dtype=np.float64),
    )


def _boxes(path: Path, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """(N, 4) x, y, width, height; all at once, and one by one only where that fails.

    Raises:
        DataError: names the first annotation whose box is none.
    """
    try:
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64)
        if not rows or boxes.shape == (len(rows), 4):
            return boxes.reshape(-1, 4)
    except (KeyError, TypeError, ValueError):
        pass
    return np.array([_box(path, row) for row in rows], dtype=np.float64)


def _box(path: Path, row: Mapping[str, Any]) -> NDArray[np.float64]:
    box, shape = row.get("bbox"), row.get("segmentation")
    try:
        if not box and shape:
            return _around(shape)
        if isinstance(box, list):
            return np.array(box, dtype=np.float64).reshape(4)
    except (TypeError, ValueError, KeyError, RuntimeError):  # the last of the decoder of masks
        pass
    said_box = f"bbox {str(box)[:60]}" if "bbox" in row else "no bbox"
    if not box:
        said_box += f", and segmentation {str(shape)[:60]}" if shape else ", and no polygon or mask"
    raise DataError(f"{path}: annotation {row.get('id')} has {said_box}", "Write bbox: [x, y, width, height] in px")


def _around(shape: Any) -> NDArray[np.float64]:
    """(4,) x, y, width, height around polygons, or around a mask in COCO's run lengths."""
    if isinstance(shape, list):
        points = np.concatenate([np.array(part, dtype=np.float64).reshape(-1, 2) for part in shape])
        return np.concatenate([points.min(0), np.ptp(points, axis=0)])
    from faster_coco_eval.core import mask

    counts = shape["counts"]
    height, width = (int(side) for side in shape["size"])
    runs = mask.frPyObjects([shape], height, width) if isinstance(counts, list) else [shape]
    return np.asarray(mask.toBbox(runs), dtype=np.float64).reshape(4)
