"""Images with boxes around objects: the record of an image, and a data set of such images.

Boxes are (x1, y1, x2, y2) in pixels of the image as it is shown (EXIF applied), continuous: the width is x2 - x1.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from effvl_cli.config.detect_data import BoxDataOptions
from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data import BOXES, open_source
from effvl_cli.data.files import read_image
from effvl_cli.data.image_sizes import LEAST_SIDE
from effvl_cli.data.source import Indices, digest

LISTED = 20  # faults of a kind that are named; the others are counted
LOOK = 256  # files between looks at requests to stop
T = TypeVar("T")

Time = Literal["day", "night"]
Reader = Callable[["BoxRecord"], Image.Image]


@dataclass(frozen=True, eq=False)
class BoxRecord:
    """An image and its boxes.

    Attributes:
        image_id: positive number, unique in the data set; that of the annotation file where it has one.
        file: name as in the annotations, unique in its source.
        path: the file; None for a picture that is drawn.
        width: in px, of the image as it is shown.
        height: likewise.
        boxes: (N, 4) float32.
        labels: (N,) int64 number of the class, from 1; 0 for the ignore boxes of no class.
        iscrowd: (N,) bool; such a box is an ignore box too.
        ignore: (N,) bool; neither an object to find nor background.
        area: (N,) float32 px, of the object; of the box where the annotations do not say.
        seq: sequence, video or scene that the image is from; its own name where it is from none.
        frame: place in it.
        time: lighting by the annotations; None where they do not say.
        source: name of the source, for data mixed of several.
        labelled: numbers of the classes that are annotated in this image; None: all.
        seq_known: False where `seq` is but a name that all images share, which orders them and tells nothing more.
    """

    image_id: int
    file: str
    path: Path | None
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    area: NDArray[np.float32]
    seq: str
    frame: int | None
    time: Time | None
    source: str
    labelled: tuple[int, ...] | None = None
    seq_known: bool = True

    @property
    def of_one_light(self) -> tuple[str, str]:
        """What it shares the lighting with: its source and sequence, or itself where none is known."""
        return self.source, self.seq if self.seq_known else self.file

    def keep(self, rows: NDArray[Any], labels: NDArray[np.int64] | None = None) -> "BoxRecord":
        """The same image with some of its boxes (a mask or positions), and other labels of all boxes if given."""
        labels = self.labels if labels is None else labels
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=labels[rows],
            iscrowd=self.iscrowd[rows],
            ignore=self.ignore[rows],
            area=self.area[rows],
        )


class Problems:
    """Faults of annotations that do not stop a command one by one: how many of each kind, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}

    def add(self, kind: str, what: str, count: int = 1) -> None:
        """Count `count` faults of a kind, of which `what` is said."""
        if count:
            self.counts[kind] += count
            if len(listed := self.first.setdefault(kind, [])) < LISTED:
                listed.append(what)

    def merge(self, other: "Problems") -> None:
        """Add those of another source."""
        self.counts.update(other.counts)
        for kind, listed in other.first.items():
            mine = self.first.setdefault(kind, [])
            mine += listed[: LISTED - len(mine)]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """By kind: `count` and `first`."""
        return {kind: {"count": count, "first": self.first.get(kind, [])} for kind, count in self.counts.items()}

    def text(self) -> str:
        """One line; empty without faults."""
        return ", ".join(f"{count} {kind}" for kind, count in self.counts.items())


@dataclass(frozen=True)
class SourceInfo:
    """One source of a data set that is mixed of several, or the only one.

    Attributes:
        name: as in `BoxRecord.source`.
        ratio: share of the draws of an epoch; None: as large as it is.
        dedup: whether near-duplicates of it may be skipped.
    """

    name: str
    ratio: float | None = None
    dedup: bool = True


class BoxSource:
    """One split of a data set of images with boxes.

    Args:
        name: e.g. "coco:bdd", "road-scenes".
        split: "train", "val" or "test".
        classes: names of classes 1..C.
        records: one for each image.
        content: gives the fingerprint of what was read, whatever is made of it later.
        category_ids: numbers of the classes in the annotation file; by default 1..C.
        problems: faults that were met.
        sources: what it is mixed of; by default one.
        readers: by source, what gives the picture of a record that has no file.
        remark: note for reports.
        same_as: split of the data set that has the same images, where there is one.
    """

    kind, endless = BOXES, False

    def __init__(
        self,
        name: str,
        split: str,
        *,
        classes: tuple[str, ...],
        records: Sequence[BoxRecord],
        content: Callable[[], str],
        category_ids: tuple[int, ...] = (),
        problems: Problems | None = None,
        sources: tuple[SourceInfo, ...] = (),
        readers: Mapping[str, Reader] | None = None,
        remark: str = "",
        same_as: str = "",
    ) -> None:
        self.name, self.split, self.classes, self.records = name, split, classes, records
        self.category_ids = category_ids or tuple(range(1, len(classes) + 1))
        self.problems = problems or Problems()
        self.sources = sources or (SourceInfo(name),)
        self.readers = readers or {}
        self.content, self.remark, self.same_as = content, remark, same_as

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def ids(self) -> Sequence[str]:
        """Names of the images, with that of the source where there are several."""
        if len(self.sources) == 1:
            return [record.file for record in self.records]
        return [f"{record.source}/{record.file}" for record in self.records]

    def image(self, index: int) -> Image.Image:
        """One RGB image.

        Raises:
            DataError: unreadable, or less than 4 px high or wide; names the file.
        """
        record = self.records[index]
        if record.path is None:
            return self.readers[record.source](record)
        image = read_image(record.path)
        if min(image.size) < LEAST_SIDE:
            raise DataError(f"{record.path} is {image.width}x{image.height} px", f"Needed are {LEAST_SIDE} px")
        return image

    def fingerprint(self) -> str:
        """Digest of annotations, and of size and time of each image file; not of class maps, tags and the like."""
        return self.content()

    def with_records(self, records: Sequence[BoxRecord], **changes: Any) -> "BoxSource":
        """The same with other records, e.g. with tags, and whatever else changes."""
        same: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("classes", "content", "category_ids", "problems", "sources", "readers", "remark", "same_as")
        }
        return BoxSource(self.name, self.split, records=records, **{**same, **changes})

    def take(self, indices: Indices | Sequence[int]) -> "BoxSource":
        """Some of the images, in the order given."""
        records = [self.records[int(index)] for index in indices]
        chosen = [self.ids[int(index)] for index in indices]
        return self.with_records(records, content=lambda: digest([self.content(), *chosen]))

    def summary(self) -> list[dict[str, Any]]:
        """For each source: name, ratio, n_images, n_boxes (ignore boxes apart), per_class, n_ignore, n_day, n_night.

        The last two are None where no image is tagged; n_untagged images are neither.
        """
        return [self._summary(info) for info in self.sources]

    def _summary(self, info: SourceInfo) -> dict[str, Any]:
        records = [record for record in self.records if record.source == info.name]
        counts = np.zeros(len(self.classes) + 1, dtype=np.int64)
        for record in records:
            counts += np.bincount(record.labels[~record.ignore], minlength=len(counts))
        times = Counter(record.time for record in records)
        tagged = times["day"] + times["night"]
        return {
            "name": info.name,
            "ratio": info.ratio,
            "n_images": len(records),
            "n_boxes": int(counts.sum()),
            "n_ignore": sum(int(record.ignore.sum()) for record in records),
            "per_class": {name: int(count) for name, count in zip(self.classes, counts[1:], strict=True)},
            "n_day": times["day"] if tagged else None,
            "n_night": times["night"] if tagged else None,
            "n_untagged": times[None],
        }


@dataclass(frozen=True)
class Reading:
    """How annotations are read.

    Attributes:
        format: "coco", "voc", "yolo", "bdd" or "auto", for boxes:PATH.
        map: class map: its name, a YAML file, "person=pedestrian,car=vehicle,train=ignore", or itself.
        classes: all classes that are wanted; None: those of the map, or without one those of the data.
        unknown: what a class that is not in the map does: "error", "drop" or "ignore".
        seq_regex: with named groups `seq` and/or `frame`, searched in the file's name.
        rescale: scale boxes where the declared size of an image is not that of the file.
        drop_empty: leave out images without boxes.
        on_bad: "error" or "skip": missing image files.
        whole: take all of a split that the data set has, also where a part of it would be set aside for validation.
        cache: where drawn scenes are kept; None: the user's.
        content_only: look at nothing but what the fingerprint says; there are no records then.
        check_stop: called now and then while many files are read; raises where the command is to end.
        within: file of sources that names what is read; empty: none.
    """

    format: str = "auto"
    map: str | Mapping[str, str] | None = None
    classes: tuple[str, ...] | None = None
    unknown: str = "error"
    seq_regex: str | None = None
    rescale: bool = False
    drop_empty: bool = False
    on_bad: str = "error"
    whole: bool = False
    cache: Cache | None = None
    content_only: bool = False
    check_stop: Callable[[], None] = lambda: None
    within: str = ""

    @classmethod
    def of(
        cls,
        options: BoxDataOptions,
        cache: Cache | None = None,
        *,
        whole: bool = False,
        check_stop: Callable[[], None] = lambda: None,
    ) -> "Reading":
        """As the options of a command say."""
        return cls(
            format=options.format,
            map=options.map,
            unknown=options.unknown,
            seq_regex=options.seq_regex,
            rescale=options.rescale_boxes,
            drop_empty=options.drop_empty,
            on_bad=options.on_bad,
            whole=whole,
            cache=cache,
            check_stop=check_stop,
        )

    def every(self, items: Iterable[T]) -> Iterator[T]:
        """Items that take long to read, with looks at requests to stop."""
        for number, item in enumerate(items):
            if number % LOOK == 0:
                self.check_stop()
            yield item


def load_boxes(
    spec: str, split: str, *, root: str | Path | None = None, seed: int = 0, reading: Reading | None = None
) -> BoxSource:
    """One split of a data set of images with boxes.

    Args:
        spec: "NAME" or "NAME:ARGUMENT".
        split: "train", "val" or "test".
        root: folder that a relative path in `spec` starts from.
        seed: of drawn scenes; those of files do not depend on it.
        reading: how annotations are read.

    Raises:
        UsageError: unknown name, samples of another kind, or a format for data that are not boxes:PATH.
        DataError: missing, empty, unreadable, or too many faults.
    """
    if reading and reading.format != "auto" and not spec.startswith("boxes:"):
        raise UsageError(f"--format {reading.format} does not go with --data {spec}", "It is for --data boxes:PATH")
    source = open_source(spec, split, kind=BOXES, root=root, seed=seed, reading=reading or Reading())
    return cast(BoxSource, source)


def box_arrays(boxes: Iterable[Sequence[float] | NDArray[np.floating[Any]]]) -> NDArray[np.float32]:
    """(N, 4) float32, also where there are none."""
    return np.asarray(list(boxes), dtype=np.float32).reshape(-1, 4)
