"""Images in files: reading one, and a list of them as a source."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from effvl_cli.core.errors import DataError
from effvl_cli.data.source import digest

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"))


def read_image(path: Path) -> Image.Image:
    """An image file as RGB, turned as its EXIF says; grey is replicated, alpha dropped, CMYK and 16 bits converted.

    Raises:
        DataError: missing, damaged, cut off, or too large to be meant.
    """
    try:
        with Image.open(path) as file:
            file.load()
            return _as_rgb(ImageOps.exif_transpose(file))
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no image") from error
    except Exception as error:  # on damaged bytes the decoders raise nearly anything: struct.error, EOFError, ...
        raise DataError(f"{path} cannot be decoded: {error}") from error


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float64)
        one_byte = image.mode == "I" and grey.max() <= 255  # I;16 is 16 bits even where the picture is dark
        image = Image.fromarray(np.clip(grey / (1 if one_byte else 257), 0, 255).astype(np.uint8))
    return image.convert("RGB")


def natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """Sort key: case-insensitive, numbers by value; the name itself decides a tie."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part)) if part.isdecimal() else (1, part.lower()) for part in parts], name


def readable(names: Sequence[str], where: Path) -> tuple[str, ...]:
    """Class names as words, underscores as spaces.

    Raises:
        DataError: two of them read the same, so that no caption could tell them apart.
    """
    found: dict[str, str] = {}
    for name in names:
        words = name.replace("_", " ")
        if words in found:
            raise DataError(f"classes {found[words]!r} and {name!r} of {where} read the same", "Rename or merge them")
        found[words] = name
    return tuple(found)


class FileImages:
    """Image files with labels or captions; an id is the file's path from `root`."""

    endless = False

    def __init__(
        self,
        name: str,
        split: str,
        *,
        root: Path,
        ids: Sequence[str],
        labels: NDArray[np.int64],
        classes: tuple[str, ...],
        captions: Sequence[str] | None = None,
        templates: tuple[str, ...] = (),
    ) -> None:
        self.name, self.split, self.classes, self.templates = name, split, classes, templates
        self.ids, self.labels, self.captions = ids, labels, captions
        self._root = root

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return read_image(self._root / self.ids[index])

    def fingerprint(self) -> str:
        """Digest of names, labels and captions; not of the pixels, which would have to be read for it."""
        labels = (str(int(label)) for label in self.labels)
        return digest([self.split, *self.classes, *self.ids, *labels, *(self.captions or ())])
