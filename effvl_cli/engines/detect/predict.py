"""`effvl detect predict`: objects in images and videos, found, drawn and written."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from effvl_cli.config.detect_predict import PredictConfig
from effvl_cli.core import distributed
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, counted, shortened
from effvl_cli.data.files import read_image
from effvl_cli.data.image_sizes import LEAST_SIDE
from effvl_cli.data.inputs import InputFile, input_files
from effvl_cli.data.loader import BadFiles
from effvl_cli.data.video import all_frames
from effvl_cli.engines.detect.class_columns import ClassColumns
from effvl_cli.engines.detect.drawing import draw
from effvl_cli.engines.detect.found_files import CONDITIONS, Detections, Shown, writers_of
from effvl_cli.engines.detect.pictures import SIDE, write_sheet
from effvl_cli.engines.detect.trained_detector import Finder, finder_of

DECODERS = 4  # threads
WINDOW = 4  # batches of images that may wait for others of their size
SHEET = 8  # images of the picture
LISTED = 40  # rows of the table
STILLS = 8  # images of a folder that have rows of their own


def run(config: PredictConfig, run: Run) -> None:
    """Look at every image and frame in the order in which they are given.

    Raises:
        UsageError: several processes.
        DataError: an input that is missing or cannot be read.
        ModelError: RUN holds no detector.
    """
    if distributed.world().size > 1:
        raise UsageError("`detect predict` runs on one process", "Run it without torchrun or srun")
    inputs = input_files(config.input)
    finder = finder_of(config, run)
    bad = BadFiles("skip-all" if config.on_bad == "skip" else config.on_bad, len(inputs))  # nothing is learned of them
    tally, began = Tally(len(finder.classes)), time.monotonic()
    sheet: list[Image.Image] = []
    writers = writers_of(config, run, finder.classes)
    damaged: list[str] = []
    with run.progress("detecting", len(inputs)) as progress:
        for shown, found in batched(decoded(inputs, config.every, bad, damaged, run.warn), finder, config.batch_size):
            for writer in writers:
                writer.add(shown, found)
            tally.add(shown, found)
            if len(sheet) < SHEET and (shown.frame or 0) % 25 == 0:
                sheet.append(_small(shown, found, finder.classes))
            progress.update(tally.files)
            run.check_stop()
    for writer in writers:
        writer.close()
    if not tally.images:
        raise DataError("no image and no video of --input can be read", "See the warnings in log.txt")
    run.report.technique.update(unreadable=len(bad.bad), damaged=len(damaged))
    _report(run, finder, tally, time.monotonic() - began)
    run.plot("detections", write_sheet, sheet)


@dataclass
class Tally:
    """What was found so far.

    Attributes:
        classes: number of them.
        images: images and frames.
        by_file: for each file its name, images, detections of each class and, of an image, its folder.
        conditions: detections by their condition's number.
    """

    classes: int
    images: int = 0
    by_file: dict[str, dict[str, Any]] = field(default_factory=dict)
    conditions: Counter[int] = field(default_factory=Counter)

    @property
    def files(self) -> int:
        """Files that were begun."""
        return len(self.by_file)

    def add(self, shown: Shown, found: Detections) -> None:
        """Count those of an image."""
        self.images += 1
        row = self.by_file.setdefault(shown.file.name, self._begun(shown.file))
        row["images"] += 1
        row["found"] += np.bincount(found["labels"].numpy(), minlength=self.classes + 1)[1:]
        if "conditions" in found:
            self.conditions.update(found["conditions"].tolist())

    def _begun(self, file: InputFile) -> dict[str, Any]:
        folder = None if file.video else file.path.parent.as_posix()
        return {"images": 0, "found": np.zeros(self.classes, dtype=np.int64), "folder": folder}


# --- the stream ------------------------------------------------------------------------------------------------------


def decoded(
    inputs: Sequence[InputFile], every: int, bad: BadFiles, damaged: list[str], warn: Callable[[str], None]
) -> Iterator[Shown]:
    """Images and frames in order; images are decoded by threads, some ahead.

    Args:
        inputs: files.
        every: frames of a video from one to the next.
        bad: counts files that cannot be read.
        damaged: gets what is wrong with each video of which some frames can be decoded.
        warn: told of all of them.

    Raises:
        DataError: a file that cannot be read, or not to its end, and is not to be left out.
    """

    def note(text: str) -> None:
        if bad.on_bad == "error":
            raise DataError(text)
        damaged.append(text)
        warn(f"{text}; the others are looked at")

    with ThreadPoolExecutor(DECODERS) as pool:
        ahead: deque[Future[Image.Image] | None] = deque()
        rest = iter(inputs)

        def submit(count: int) -> None:
            for file in islice(rest, count):
                ahead.append(None if file.video else pool.submit(_read, file.path))

        submit(2 * DECODERS)
        for place, file in enumerate(inputs):
            waiting = ahead.popleft()
            submit(1)
            try:
                yield from _frames(file, every, note) if waiting is None else [Shown(file, waiting.result())]
            except DataError as error:
                bad.meet(error, place)
                warn(f"left out: {error.message}")


def _read(path: Path) -> Image.Image:
    image = read_image(path)
    if min(image.size) < LEAST_SIDE:
        raise DataError(f"{path} is {image.width}x{image.height} px", f"Needed are {LEAST_SIDE} px")
    return image


def _frames(file: InputFile, every: int, damaged: Callable[[str], None]) -> Iterator[Shown]:
    for place, frame in enumerate(all_frames(file.path, every, damaged)):
        yield Shown(file, Image.fromarray(frame), place * every)


@dataclass
class _Waiting:
    """An image that waits for its batch, and what was found in it once that has been run."""

    shown: Shown
    pixels: Tensor
    found: Detections | None = None


def batched(stream: Iterable[Shown], finder: Finder, size: int) -> Iterator[tuple[Shown, Detections]]:
    """What is found in each image, in the order of the stream.

    Images go through the detector with others of the same size as it sees them: none is padded, so that a batch
    changes nothing.

    Args:
        stream: images.
        finder: the detector.
        size: images at a time.
    """
    queue: deque[_Waiting] = deque()
    groups: dict[tuple[int, ...], list[_Waiting]] = {}

    def finish(key: tuple[int, ...]) -> None:
        group = groups.pop(key)
        results = finder.find([one.pixels for one in group], [one.shown.image for one in group])
        for one, found in zip(group, results, strict=True):
            one.found = found

    for shown in stream:
        one = _Waiting(shown, finder.pixels(shown.image))
        queue.append(one)
        key = tuple(one.pixels.shape)
        groups.setdefault(key, []).append(one)
        if len(groups[key]) == size:
            finish(key)
        elif len(queue) >= WINDOW * size and queue[0].found is None:
            finish(tuple(queue[0].pixels.shape))
        yield from _done(queue)
    for key in list(groups):
        finish(key)
    yield from _done(queue)


def _done(queue: deque[_Waiting]) -> Iterator[tuple[Shown, Detections]]:
    while queue and queue[0].found is not None:
        one = queue.popleft()
        assert one.found is not None
        yield one.shown, one.found


# --- the report ------------------------------------------------------------------------------------------------------


def _small(shown: Shown, found: Detections, classes: Sequence[str]) -> Image.Image:
    """A picture for the sheet."""
    factor = min(1.0, SIDE / max(shown.image.size))
    size = (max(1, round(shown.image.width * factor)), max(1, round(shown.image.height * factor)))
    scaled = {**found, "boxes": found["boxes"] * factor}
    return draw(shown.image.resize(size, Image.Resampling.BILINEAR), scaled, classes)


def _report(run: Run, finder: Finder, tally: Tally, seconds: float) -> None:
    per_class = sum(row["found"] for row in tally.by_file.values())
    run.report.metric("detections", float(per_class.sum()), unit="boxes", n=tally.images)
    run.report.metric("images_per_s", tally.images / seconds, unit="images/s", n=tally.images)
    times = {name: tally.conditions[number] for number, name in enumerate(CONDITIONS) if tally.conditions[number]}
    run.report.technique.update(
        images=tally.images,
        classes=list(finder.classes),
        per_class=dict(zip(finder.classes, per_class.tolist(), strict=True)),
        conditions=times,
        files=[
            {"file": name, "images": row["images"], "per_class": row["found"].tolist(), "folder": row["folder"]}
            for name, row in tally.by_file.items()
        ],
    )


def table(report: Report) -> Table:
    """A row for each file, or of many images for each folder of them, and one for all."""
    about = report.technique
    classes = ClassColumns.of(about["per_class"])

    def cells(name: str, images: int, counts: Sequence[int]) -> tuple[Cell, ...]:
        return name, images, sum(counts), *classes.cells(dict(zip(about["classes"], counts, strict=True)))

    files = _together(about["files"])
    rows = [cells(shortened(row["file"]), row["images"], row["per_class"]) for row in files[:LISTED]]
    if len(files) > 1:
        rows.append(cells(f"all {len(about['files'])} files", about["images"], list(about["per_class"].values())))
    notes = []
    if len(files) > LISTED:
        notes.append(f"the first {LISTED}; report.json has all")
    elif len(files) < len(about["files"]):
        notes.append("images of a folder in one row; report.json has each")
    if about["conditions"]:
        notes.append(", ".join(f"look like {name}: {count} boxes" for name, count in about["conditions"].items()))
    if about["unreadable"]:
        notes.append(f"{about['unreadable']} files cannot be read and were left out")
    if about.get("damaged"):
        notes.append(f"{counted(about['damaged'], 'video')} cannot be decoded as a whole; what can be was looked at")
    return Table(report.command, ("file", "images", "boxes", *classes.titles), tuple(rows), tuple(notes))


def _together(files: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Files, in which the images of a folder that has many are one, in the place of the first."""
    many = Counter(row.get("folder") for row in files)
    found: dict[str, dict[str, Any]] = {}
    for row in files:
        folder = row.get("folder")
        if folder is None or many[folder] <= STILLS:
            found[f"file {row['file']}"] = row
            continue
        sums = found.setdefault(f"folder {folder}", {"file": f"{folder}/", "images": 0, "per_class": 0})
        sums["images"] += row["images"]
        sums["per_class"] = (np.asarray(row["per_class"]) + sums["per_class"]).tolist()
    return list(found.values())


def preview(config: PredictConfig) -> list[Table]:
    """Which files will be looked at."""
    files = input_files(config.input)
    rows = (("images", sum(not file.video for file in files)), ("videos", sum(file.video for file in files)))
    return [Table("what is looked at", ("kind", "files"), rows)]
