"""From what a file of annotations says to a data set of images with boxes: files, sizes, sequences, faulty boxes.

The readers of the formats give `Annotations`; what holds for all formats is done here, for all boxes at once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.errors import DataError, NoSplitError
from effvl_cli.data.boxes import LISTED, BoxRecord, BoxSource, Problems, Reading, SourceInfo, Time
from effvl_cli.data.class_maps import mapped
from effvl_cli.data.files import file_states, some
from effvl_cli.data.image_sizes import SIDEWAYS, UPRIGHT, as_shown, shown_size, stored_sizes
from effvl_cli.data.loader import BadFiles
from effvl_cli.data.source import digest

MAX_FAULTY = 0.01  # share of boxes without extent, and of images of another size than declared, that is tolerated
LEAST_BOX = 1.0  # px; a side that is left of a clipped box
ROUNDING = 0.01  # px beyond the edge of an image that are no fault
TRIED = 5  # images that are looked for to find their folder
TIMES: dict[str, Time] = {"day": "day", "daytime": "day", "night": "night", "nighttime": "night"}

FAULTS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What reading a file of another form than expected may raise."""


def said(error: Exception) -> str:
    """One of them in words for users."""
    return f"an entry has no {error}" if isinstance(error, KeyError) else str(error)


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass
class Listed:
    """An image as the annotations list it; None: they do not say.

    Attributes:
        file: name, unique.
        path: where it should be.
        image_id: its number.
        width: as declared.
        height: likewise.
        seq: video, scene or sequence.
        frame: place in it.
        time: word for the lighting.
        seq_known: False where `seq` is but a name that all images share.
    """

    file: str
    path: Path
    image_id: int | None = None
    width: int | None = None
    height: int | None = None
    seq: str | None = None
    frame: int | None = None
    time: str | None = None
    seq_known: bool = True


@dataclass
class Annotations:
    """What a file or folder of annotations says, in columns over all its boxes.

    Attributes:
        where: the file or folder, for messages.
        classes: names.
        category_ids: their numbers in the file; empty: 1..C.
        images: M of them.
        owner: (N,) position of the image of each box.
        boxes: (N, 4) x1, y1, x2, y2.
        category: (N,) position of the class.
        crowd: (N,) whether it is a group.
        ignore: (N,) whether it is to be ignored, e.g. as difficult.
        area: (N,) of the object; NaN: not said.
        problems: met while reading.
        relative: whether boxes are in shares of the image, not px.
    """

    where: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: list[Listed]
    owner: Ints
    boxes: Floats
    category: Ints
    crowd: Flags
    ignore: Flags
    area: Floats
    problems: Problems = field(default_factory=Problems)
    relative: bool = False

    def keep_boxes(self, keep: Flags) -> "Annotations":
        """Without some boxes."""
        columns = ("owner", "boxes", "category", "crowd", "ignore", "area")
        return replace(self, **{name: getattr(self, name)[keep] for name in columns})

    def keep_images(self, rows: Ints) -> "Annotations":
        """Only some images, with their boxes."""
        place = np.full(len(self.images), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        images = [self.images[int(row)] for row in rows]
        kept = replace(self, images=images, owner=place[self.owner])
        return kept.keep_boxes(kept.owner >= 0)


@dataclass
class Boxes:
    """Boxes gathered one by one, for formats with a file for each image."""

    owner: list[int] = field(default_factory=list)
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)

    def add(
        self,
        owner: int,
        box: tuple[float, float, float, float],
        category: int,
        *,
        crowd: bool = False,
        ignore: bool = False,
    ) -> None:
        """One box of an image."""
        self.owner.append(owner)
        self.boxes.append(box)
        self.category.append(category)
        self.crowd.append(crowd)
        self.ignore.append(ignore)

    def columns(self) -> dict[str, Any]:
        """As `Annotations` has them."""
        return {
            "owner": np.array(self.owner, dtype=np.int64),
            "boxes": np.array(self.boxes, dtype=np.float64).reshape(-1, 4),
            "category": np.array(self.category, dtype=np.int64),
            "crowd": np.array(self.crowd, dtype=np.bool_),
            "ignore": np.array(self.ignore, dtype=np.bool_),
            "area": np.full(len(self.owner), np.nan),
        }


def time_of(image: Listed) -> Time | None:
    """Day or night, where the annotations say one of them."""
    return TIMES.get(str(image.time or "").lower())


# --- the data set ----------------------------------------------------------------------------------------------------


def box_source(
    name: str, split: str, found: Annotations, reading: Reading, *, content: "Content", remark: str = ""
) -> BoxSource:
    """A data set made of annotations whose images have sequences.

    Args:
        name: of the data set and of its source.
        split: of the data set.
        found: the images of that split.
        reading: how faults are dealt with.
        content: of what was read.
        remark: note for reports.

    Raises:
        DataError: no image, missing files, too many faults, or no box at all; names the file of annotations.
    """
    if reading.content_only:
        return BoxSource(name, split, classes=found.classes, records=[], content=content.digest)
    if not found.images:
        raise NoSplitError(f"{found.where} holds no images for split {split}", "Give another file or split")
    found, sizes, orientation = _with_files(found, reading)
    if found.relative:
        found = replace(found, boxes=found.boxes * np.tile(sizes[found.owner], 2), relative=False)
    found = _of_file_size(found, sizes, orientation, reading)
    found = _clipped(_with_extent(found), sizes)
    if not len(found.owner):
        message = f"{found.where}: none of {len(found.images)} images of split {split} has a box"
        raise NoSplitError(message, "Check it")
    source = BoxSource(
        name,
        split,
        classes=found.classes,
        records=_records(name, found, sizes),
        content=content.digest,
        category_ids=found.category_ids,
        problems=found.problems,
        sources=(SourceInfo(name),),
        remark=remark,
    )
    return _without_empty(
        mapped(source, reading.map, classes=reading.classes, unknown=reading.unknown), drop=reading.drop_empty
    )


def _without_empty(source: BoxSource, *, drop: bool) -> BoxSource:
    """The source with its images without boxes counted, or without them."""
    for record in source.records:
        if not len(record.boxes):
            source.problems.add("empty", record.file)
    return source.with_records([record for record in source.records if len(record.boxes)]) if drop else source


class Content:
    """What annotations say and the state of their image files, as a digest that is found when it is asked for.

    It is taken before sequences are named and a part is chosen, so that it does not depend on how things are read.

    Args:
        split: of the data set.
        found: all that the files of that split say.
        more: what else tells which images it is, e.g. a list of names.
    """

    def __init__(self, split: str, found: Annotations, more: Sequence[str] = ()) -> None:
        self.found = found
        self.names = [split, *found.classes, *more, *(f"{x.file} {x.seq} {x.time}" for x in found.images)]
        self.known = ""

    def digest(self) -> str:
        """The digest."""
        if not self.known:
            found = self.found
            columns = (found.owner, found.boxes, found.category, found.crowd, found.ignore)
            numbers = [column.tobytes().hex() for column in columns]
            self.known = digest([*self.names, *numbers, *file_states(image.path for image in found.images)])
        return self.known


def _with_files(found: Annotations, reading: Reading) -> tuple[Annotations, Ints, Ints]:
    """Without images that are missing; (M, 2) width and height of the others as shown, and (M,) EXIF orientations."""
    seen, faults = [], []
    for row, image in enumerate(reading.every(found.images)):
        size, fault = shown_size(image.path)
        seen.append(size)
        if fault:
            faults.append((row, f"{image.file} {fault}"))
    sizes = np.array(seen, dtype=np.int64)
    if not faults:
        return found, sizes[:, :2], sizes[:, 2]
    texts = [text for _, text in faults]
    total, first = len(found.images), found.images[faults[0][0]].path.parent
    if reading.on_bad != "skip" or len(faults) > BadFiles("skip", total).limit:
        raise DataError(
            f"{found.where}: {len(faults)} of {total} images cannot be used: {', '.join(texts[:LISTED])}",
            f"Check --data-root and the folder of the images (the first is looked for in {first})"
            + (", or give --on-bad skip" if reading.on_bad != "skip" else "; at most 1 % are skipped"),
        )
    for text in texts:
        found.problems.add("missing", text)
    rows = np.setdiff1d(np.arange(total), [row for row, _ in faults])
    return found.keep_images(rows), sizes[rows, :2], sizes[rows, 2]


def _of_file_size(found: Annotations, sizes: Ints, orientation: Ints, reading: Reading) -> Annotations:
    """Boxes in px of the image as it is shown; the file's size wins over the declared one."""
    shown = zip(found.images, sizes.tolist(), strict=True)
    declared = np.array([(image.width or width, image.height or height) for image, (width, height) in shown])
    if not (declared != sizes).any():
        return found
    found, declared = _turned(found, declared, sizes, orientation, rescale=reading.rescale)
    other = np.flatnonzero((declared != sizes).any(1))
    texts = [
        f"{found.images[row].file} is {sizes[row][0]}x{sizes[row][1]}, declared {declared[row][0]}x{declared[row][1]}"
        for row in other.tolist()
    ]
    if reading.rescale:
        return _rescaled(found, declared, sizes, texts)
    if len(other) > MAX_FAULTY * len(sizes):
        raise DataError(
            f"{found.where}: {len(other)} of {len(sizes)} images have another size than declared: {texts[0]}",
            "Mend the annotations, or give --rescale-boxes where the images were resized and the boxes were not",
        )
    for text in texts:
        found.problems.add("resized", text)
    return found


def _turned(
    found: Annotations, declared: Ints, sizes: Ints, orientation: Ints, *, rescale: bool
) -> tuple[Annotations, Ints]:
    """Boxes that were drawn on the pixels as they are stored, turned as EXIF says; and the declared sizes turned so.

    Which boxes are so is seen by images that EXIF lays on their side, of which the size of the stored pixels is
    declared. Where this is so of all such images, the tool did not know of EXIF, and images that EXIF turns without
    another size are turned too.
    """
    sideways, stored = orientation >= SIDEWAYS, stored_sizes(sizes, orientation)
    so = sideways & (declared != sizes).any(1) & (declared == stored).all(1)
    if rescale:
        so |= sideways & _crosswise(declared, sizes)
    if not so.any():
        return found, declared
    if not (sideways & ~so & (sizes[:, 0] != sizes[:, 1])).any():
        fits = (declared == stored).all(1) | (rescale & ~_crosswise(declared, stored))
        so |= (orientation > UPRIGHT) & fits
    for row in np.flatnonzero(so).tolist():
        found.problems.add("turned by EXIF", f"{found.images[row].file} (orientation {orientation[row]})")
    drawn_on = np.where((so & sideways)[:, None], declared[:, ::-1], declared)
    owner = found.owner
    turned = as_shown(found.boxes, drawn_on[owner], orientation[owner])
    return replace(found, boxes=np.where(so[owner][:, None], turned, found.boxes)), drawn_on


def _rescaled(found: Annotations, declared: Ints, sizes: Ints, texts: Sequence[str]) -> Annotations:
    """Boxes scaled from the declared size to that of the file; `texts` say which images have another one."""
    crosswise = np.flatnonzero(_crosswise(declared, sizes))
    if len(crosswise):
        row = int(crosswise[0])
        raise DataError(
            f"--rescale-boxes: {found.where}: {len(crosswise)} of {len(sizes)} images lie the other way round than "
            f"declared: {found.images[row].file} is {sizes[row][0]}x{sizes[row][1]}, declared "
            f"{declared[row][0]}x{declared[row][1]}, and EXIF says nothing of it",
            "Scaling cannot mend that; turn the images back",
        )
    factors = (sizes / declared.clip(1))[found.owner]
    for text in texts:
        found.problems.add("rescaled", text)
    return replace(found, boxes=found.boxes * np.tile(factors, 2), area=found.area * factors.prod(1))


def _crosswise(declared: Ints, sizes: Ints) -> Flags:
    """Which images are upright where a lying one is declared, or the other way round."""
    return np.asarray(np.sign(declared[:, 0] - declared[:, 1]) * np.sign(sizes[:, 0] - sizes[:, 1]) < 0)


def _with_extent(found: Annotations) -> Annotations:
    """Without boxes that have no extent."""
    boxes = found.boxes
    good = np.asarray(np.isfinite(boxes).all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1))
    bad = np.flatnonzero(~good)
    texts = [f"{found.images[found.owner[row]].file} {boxes[row].round(2).tolist()}" for row in bad[:LISTED].tolist()]
    if len(bad) > MAX_FAULTY * len(boxes):
        raise DataError(
            f"{found.where}: {len(bad)} of {len(boxes)} boxes are degenerate (NaN, or no width or height): "
            f"{'; '.join(texts)}",
            "Mend the annotations; up to 1 % are dropped",
        )
    for number in range(len(bad)):
        found.problems.add("degenerate", texts[number] if number < len(texts) else "")
    return found.keep_boxes(good) if len(bad) else found


def _clipped(found: Annotations, sizes: Ints) -> Annotations:
    """Boxes within their images: those outside are dropped, and those of which less than 1 px is left."""
    limits = np.tile(sizes[found.owner], 2).astype(np.float64)
    inside = found.boxes.clip(0, limits)
    sides = inside[:, 2:] - inside[:, :2]
    changed = (abs(inside - found.boxes) > ROUNDING).any(1)
    outside = (sides <= 0).any(1)
    small = changed & ~outside & (sides < LEAST_BOX).any(1)
    for kind, which in (("outside", outside), ("slivers", small), ("clipped", changed & ~outside & ~small)):
        for row in np.flatnonzero(which).tolist():
            found.problems.add(kind, f"{found.images[found.owner[row]].file} {found.boxes[row].round(2).tolist()}")
    return replace(found, boxes=inside).keep_boxes(~(outside | small))


def _records(name: str, found: Annotations, sizes: Ints) -> list[BoxRecord]:
    order = np.argsort(found.owner, kind="stable")
    ends = np.bincount(found.owner, minlength=len(found.images)).cumsum()
    boxes, labels = found.boxes[order].astype(np.float32), found.category[order] + 1
    crowd, ignore = found.crowd[order], (found.crowd | found.ignore)[order]
    own = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    area = np.where(np.isnan(found.area[order]), own, found.area[order]).astype(np.float32)
    records, start = [], 0
    for row, (image, end) in enumerate(zip(found.images, ends.tolist(), strict=True)):
        part = slice(start, end)
        start = end
        records.append(
            BoxRecord(
                image_id=row + 1 if image.image_id is None else image.image_id,
                file=image.file,
                path=image.path,
                width=int(sizes[row, 0]),
                height=int(sizes[row, 1]),
                boxes=boxes[part],
                labels=labels[part],
                iscrowd=crowd[part],
                ignore=ignore[part],
                area=area[part],
                seq=image.seq or image.file,
                frame=image.frame,
                time=time_of(image),
                source=name,
                seq_known=image.seq_known,
            )
        )
    return records


def folder_of(names: Sequence[str], folders: Sequence[Path]) -> Path:
    """The first of some folders that holds one of the first images; the first of all where none does."""
    for folder in dict.fromkeys(folders):
        if any((folder / name).is_file() for name in names[:TRIED]):
            return folder
    return folders[0]


def check_unique(names: Sequence[Any], what: str, where: Path) -> None:
    """Refuse a data set in which something stands twice.

    Raises:
        DataError: names the first.
    """
    twice = [str(name) for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{where}: {what} that stand more than once: {some(twice)}", "Each has to be unique")
