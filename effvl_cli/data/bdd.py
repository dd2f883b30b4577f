"""`bdd:PATH`: annotations of BDD100K, a list of frames in Scalabel's JSON.

PATH is a file, or a folder with det_train.json, det_val.json or bdd100k_labels_images_train.json and so on, in it or in
labels/ or labels/det_20/; `bdd:FOLDER,train=a.json,val=b.json` names other files. The first release has a file for each
image in labels/100k/train/ and labels/100k/val/, with `frames` of `objects`; such folders are read too. Images are
looked for in the folder, images/, images/100k/train/ and the like. Labels without a box2d (lanes, drivable areas) are
passed over.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effvl_cli.core.errors import DataError
from effvl_cli.data.annotations import (
    FAULTS,
    Annotations,
    Boxes,
    Listed,
    check_unique,
    folder_of,
    said,
)
from effvl_cli.data.box_splits import annotation_files, open_files
from effvl_cli.data.boxes import BoxSource, Reading
from effvl_cli.data.files import SUFFIXES
from effvl_cli.data.folders import NAMES, split_words
from effvl_cli.data.listings import read_json

PATTERNS = tuple(
    f"{folder}{name}"
    for folder in ("", "labels/", "labels/det_20/", "labels/det/")
    for name in ("{}.json", "det_{}.json", "bdd100k_labels_images_{}.json", "*_{}.json")
)
EXPECTED = 'Expected [{"name": ..., "labels": [{"category": ..., "box2d": {"x1": ..., ...}}]}, ...]'
PAGES = ("labels/100k/{}", "labels/{}", "100k/{}", "{}")  # folders of a file for each image
EXPECTED_PAGE = 'Expected {"name": ..., "frames": [{"objects": [{"category": ..., "box2d": {"x1": ..., ...}}]}], ...}'
PEEK = 65536  # bytes of a file that tell its form
LEVELS = 4  # folders above a file in which images/ is looked for
CORNERS = ("x1", "y1", "x2", "y2")

_SHARED = ("rider", "car", "truck", "bus", "train")
_SIGNS = ("traffic light", "traffic sign")
NEW_NAMES = ("pedestrian", *_SHARED, "motorcycle", "bicycle", *_SIGNS)
OLD_NAMES = ("person", *_SHARED, "motor", "bike", *_SIGNS)


def build(
    argument: str, split: str, *, root: Path | None = None, seed: int = 0, reading: Reading | None = None
) -> BoxSource:
    """Registry builder; the argument is a file or folder.

    Raises:
        DataError: missing, or something that cannot be read; names the file.
    """
    return open_files("bdd", argument, split, root=root, reading=reading, find=_found, read=read)


def _found(place: Path, chosen: bool) -> dict[str, Path]:
    """The file or, of the first release, the folder of each split."""
    if place.is_dir() and not chosen:
        folders = {
            split: place / pattern.format(name)
            for split, names in NAMES.items()
            for pattern in reversed(PAGES)
            for name in names
            if _holds_pages(place / pattern.format(name))
        }
        if folders or _holds_pages(place):
            return folders or {split_words(place.name) or "train": place}
    return annotation_files(place, chosen, patterns=PATTERNS)


def _holds_pages(folder: Path) -> bool:
    first = next(folder.glob("*.json"), None)
    if first is None:
        return False
    with first.open("rb") as file:
        return b'"objects"' in file.read(PEEK)


def read(path: Path, root: Path, reading: Reading) -> Annotations:
    """All frames of a file, or of a folder of files of one frame.

    Args:
        path: the file or folder.
        root: folder of the data set.
        reading: its looks at requests to stop.

    Raises:
        DataError: empty, or not of that form.
    """
    frames = _pages(path, reading) if path.is_dir() else read_json(path)
    frames = frames.get("frames") if isinstance(frames, dict) else frames
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{path} is no list of frames", EXPECTED)
    try:
        check_unique([frame["name"] for frame in frames], "file names", path)
        classes = _classes(frames)
        boxes, numbers = Boxes(), {name: number for number, name in enumerate(classes)}
        for row, frame in enumerate(frames):
            for label in _boxed(frame):
                crowd = bool((label.get("attributes") or {}).get("crowd"))
                x1, y1, x2, y2 = (float(label["box2d"][corner]) for corner in CORNERS)
                boxes.add(row, (x1, y1, x2, y2), numbers[label["category"]], crowd=crowd)
        folder = folder_of([frame["name"] for frame in frames], _folders(path, root))
        images = [_image(frame, folder) for frame in frames]
    except FAULTS as error:
        raise DataError(f"{path} is no list of frames: {said(error)}", EXPECTED) from error
    return Annotations(where=path, classes=classes, category_ids=(), images=images, **boxes.columns())


def _pages(folder: Path, reading: Reading) -> list[dict[str, Any]]:
    """The frame of each file of a folder, as newer files have it; their names of images have no suffix."""
    frames = []
    for path in reading.every(sorted(folder.glob("*.json"))):
        page = read_json(path)
        try:
            name = str(page.get("name") or path.stem)
            name = name if Path(name).suffix.lower() in SUFFIXES else f"{name}.jpg"
            frames.append({"name": name, "labels": page["frames"][0]["objects"], "attributes": page.get("attributes")})
        except (*FAULTS, LookupError) as error:
            raise DataError(f"{path} has no frame with objects", EXPECTED_PAGE) from error
    return frames


def _boxed(frame: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [label for label in frame.get("labels") or () if label.get("box2d")]


def _classes(frames: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """BDD100K's own list where it has all names, so that splits agree; else those that are there."""
    found = {str(label["category"]) for frame in frames for label in _boxed(frame)}
    for names in (NEW_NAMES, OLD_NAMES):
        if found <= set(names):
            return names
    return tuple(sorted(found))


def _folders(path: Path, root: Path) -> list[Path]:
    split = split_words(path.stem)
    above = (*([path] if path.is_dir() else []), path.parent, root, *path.parents[1:LEVELS])
    bases = [base / sub for base in above for sub in ("", "images", "images/100k", "images/10k")]
    return [*(base / split for base in bases if split), *bases]


def _image(frame: Mapping[str, Any], folder: Path) -> Listed:
    more = frame.get("attributes") or {}
    video, number = frame.get("videoName"), frame.get("frameIndex")
    return Listed(
        file=frame["name"],
        path=folder / frame["name"],
        seq=None if not video else str(video),
        frame=None if number is None else int(number),
        time=more.get("timeofday"),
    )
