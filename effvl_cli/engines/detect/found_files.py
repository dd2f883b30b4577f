"""What `detect predict` writes: drawn images and videos, COCO results, YOLO text files."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from effvl_cli.config.detect_predict import PredictConfig
from effvl_cli.core.errors import DataError
from effvl_cli.core.files import disk_errors, write_json
from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxRecord, box_arrays
from effvl_cli.data.inputs import InputFile
from effvl_cli.data.listings import read_json
from effvl_cli.data.video import frame_rate, pyav
from effvl_cli.engines.detect.coco_results import results_json
from effvl_cli.engines.detect.drawing import draw

IMAGES, VIDEOS, LABELS = "images", "videos", "labels"
RESULTS, LIST = "detections.json", "images.json"
QUALITY = 90  # of JPEG
USUAL_RATE = 25  # frames per second of a video that does not say
ENCODERS = ("libx264", "mpeg4")
CONDITIONS = ("day", "night")

Detections = Mapping[str, Tensor]


@dataclass(frozen=True)
class Shown:
    """An image, or a frame of a video.

    Attributes:
        file: that it is from.
        image: RGB, upright.
        frame: number in the video; None for an image.
    """

    file: InputFile
    image: Image.Image
    frame: int | None = None

    @property
    def name(self) -> str:
        """Path of the file or, of a frame, of a file that could hold it."""
        if self.frame is None:
            return self.file.name
        return f"{Path(self.file.name).with_suffix('').as_posix()}_{self.frame:06d}.jpg"


class Writer(Protocol):
    """Something that takes the images in order."""

    def add(self, shown: Shown, found: Detections) -> None:
        """Write what was found in one."""

    def close(self) -> None:
        """There are no more."""


class DrawnImages:
    """Drawn copies of the images, as JPEG in `images/`; frames of videos are left to `DrawnVideos`."""

    def __init__(self, run: Run, classes: Sequence[str]) -> None:
        self.folder, self.classes = run.path(IMAGES), classes

    def add(self, shown: Shown, found: Detections) -> None:
        """Draw an image."""
        if shown.frame is not None:
            return
        content = io.BytesIO()
        draw(shown.image, found, self.classes).save(content, "JPEG", quality=QUALITY)
        _place((self.folder / shown.name).with_suffix(".jpg"), content.getvalue())

    def close(self) -> None:
        """All are written."""


class DrawnVideos:
    """Drawn copies of the videos, in `videos/`.

    Args:
        run: whose folder.
        classes: names.
        every: frames of a video from one that is looked at to the next.
    """

    def __init__(self, run: Run, classes: Sequence[str], every: int) -> None:
        self.folder, self.classes, self.every = run.path(VIDEOS), classes, every
        self._file: InputFile | None = None
        self._encoder: Encoder | None = None

    def add(self, shown: Shown, found: Detections) -> None:
        """Draw a frame; one of another video ends the file before."""
        if shown.frame is None:
            return
        if shown.file != self._file or self._encoder is None:
            self.close()
            path = (self.folder / shown.file.name).with_suffix(".mp4")
            rate = (frame_rate(shown.file.path) or USUAL_RATE) / self.every
            self._file, self._encoder = shown.file, Encoder(path, rate, shown.image.size)
        self._encoder.add(draw(shown.image, found, self.classes))

    def close(self) -> None:
        """End the last file."""
        if self._encoder is not None:
            self._encoder.close()
        self._file = self._encoder = None


class Encoder:
    """An MP4 file of images of one size; an odd side is cut by a pixel, which H.264 needs.

    Args:
        path: of the file.
        rate: images per second.
        size: their width and height.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        av = pyav()
        self.path = path
        self.size = (max(2, size[0] // 2 * 2), max(2, size[1] // 2 * 2))
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(path), "w")
        name = next(name for name in ENCODERS if name in av.codecs_available)
        self._stream = self._container.add_stream(name, rate=Fraction(rate).limit_denominator(1000))
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"

    def add(self, image: Image.Image) -> None:
        """Append an image; one of another size, as some videos have, is fitted."""
        if image.size[0] // 2 * 2 == self.size[0] and image.size[1] // 2 * 2 == self.size[1]:
            image = image.crop((0, 0, *self.size))
        else:
            image = image.resize(self.size)
        frame = pyav().VideoFrame.from_image(image)
        with disk_errors(self.path):
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    def close(self) -> None:
        """Write what is left, and the index."""
        with disk_errors(self.path):
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()


class CocoResults:
    """`detections.json`, a list of results, and `images.json`, which images and classes their numbers stand for.

    Args:
        run: whose folder.
        classes: names.
        annotations: COCO file whose numbers are used; None: from 1.

    Raises:
        DataError: it cannot be read, or lacks a class.
    """

    def __init__(self, run: Run, classes: Sequence[str], annotations: str | None) -> None:
        self.run, self.classes = run, classes
        self.image_ids: dict[str, int] = {}
        self.category_ids = list(range(1, len(classes) + 1))
        if annotations is not None:
            self.image_ids, self.category_ids = _numbers(Path(annotations), classes)
        self._next = max(self.image_ids.values(), default=0) + 1
        self.unlisted = 0 if annotations is not None else None
        self.images: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, shown: Shown, found: Detections) -> None:
        """Note what was found in an image."""
        number = self._number(shown)
        about: dict[str, Any] = {"id": number, "file_name": shown.name}
        about |= {"width": shown.image.width, "height": shown.image.height}
        if shown.frame is not None:
            about |= {"video": shown.file.name, "frame": shown.frame}
        self.images.append(about)
        self.rows += results_json([bare_record(number, shown)], [found], self.category_ids, CONDITIONS)

    def _number(self, shown: Shown) -> int:
        for name in (shown.name, Path(shown.name).name):
            if name in self.image_ids:
                return self.image_ids[name]
        if self.unlisted is not None:
            self.unlisted += 1
        self._next += 1
        return self._next - 1

    def close(self) -> None:
        """Write both files."""
        named = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": number, "name": name} for number, name in named]
        self.run.write(RESULTS, write_json, self.rows)
        self.run.write(LIST, write_json, {"images": self.images, "categories": categories})
        if self.unlisted:
            self.run.warn(f"{self.unlisted} images are not in --annotations; they have further numbers in {LIST}")


def bare_record(number: int, shown: Shown) -> BoxRecord:
    """An image without annotations."""
    nothing = np.zeros(0, dtype=bool)
    return BoxRecord(
        image_id=number,
        file=shown.name,
        path=shown.file.path,
        width=shown.image.width,
        height=shown.image.height,
        boxes=box_arrays([]),
        labels=np.zeros(0, dtype=np.int64),
        iscrowd=nothing,
        ignore=nothing,
        area=np.zeros(0, dtype=np.float32),
        seq=shown.file.name,
        frame=shown.frame,
        time=None,
        source="input",
    )


def _numbers(path: Path, classes: Sequence[str]) -> tuple[dict[str, int], list[int]]:
    """Numbers of the images by file name and of the classes, in a COCO file."""
    found = read_json(path)
    try:
        images = {str(row["file_name"]): int(row["id"]) for row in found["images"]}
        categories = {str(row["name"]): int(row["id"]) for row in found["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"--annotations {path} is no COCO file: {error!r}", "It needs images and categories") from error
    missing = [name for name in classes if name not in categories]
    if missing:
        raise DataError(
            f"--annotations {path} lacks the classes {', '.join(missing)}; it has {', '.join(categories)}",
            "Give the file that the detector was trained for, or leave it out",
        )
    return images, [categories[name] for name in classes]


class YoloFiles:
    """`labels/NAME.txt` for each image: class from 0, centre and size as shares of the image's, score."""

    def __init__(self, run: Run, classes: Sequence[str]) -> None:
        self.folder = run.path(LABELS)
        _place(self.folder / "classes.txt", "".join(f"{name}\n" for name in classes).encode())

    def add(self, shown: Shown, found: Detections) -> None:
        """Write the file of an image, empty where nothing was found."""
        width, height = shown.image.size
        lines = []
        for box, label, score in zip(
            found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        ):
            left, top, right, bottom = box
            middle = [(left + right) / 2 / width, (top + bottom) / 2 / height]
            shares = [*middle, (right - left) / width, (bottom - top) / height]
            lines.append(f"{label - 1} {' '.join(f'{share:.6f}' for share in shares)} {score:.5f}\n")
        _place((self.folder / shown.name).with_suffix(".txt"), "".join(lines).encode())

    def close(self) -> None:
        """All are written."""


def _place(path: Path, content: bytes) -> None:
    """Write one of many files: without waiting for the disk, as nothing reads it before the run is complete."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def writers_of(config: PredictConfig, run: Run, classes: Sequence[str]) -> list[Writer]:
    """Those of --save."""
    found: list[Writer] = []
    if "images" in config.save:
        found.append(DrawnImages(run, classes))
    if "video" in config.save:
        found.append(DrawnVideos(run, classes, config.every))
    if "coco" in config.save:
        found.append(CocoResults(run, classes, config.annotations))
    if "yolo" in config.save:
        found.append(YoloFiles(run, classes))
    return found
