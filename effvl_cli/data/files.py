"""Images in files: reading one, and a list of them as a source."""

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
            image = ImageOps.exif_transpose(file)
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no image") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded: {error}") from error
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.float64)
        image = Image.fromarray((grey / (257 if grey.max() > 255 else 1)).astype(np.uint8))
    return image.convert("RGB")


class FileImages:
    """Image files with labels or captions."""

    endless = False

    def __init__(
        self,
        name: str,
        split: str,
        *,
        paths: Sequence[Path],
        ids: Sequence[str],
        labels: NDArray[np.int64],
        classes: tuple[str, ...],
        captions: Sequence[str] | None = None,
        templates: tuple[str, ...] = (),
    ) -> None:
        self.name, self.split, self.classes, self.templates = name, split, classes, templates
        self.ids, self.labels, self.captions = ids, labels, captions
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return read_image(self._paths[index])

    def fingerprint(self) -> str:
        """Digest of names, labels and captions; not of the pixels, which would have to be read for it."""
        labels = (str(int(label)) for label in self.labels)
        return digest([self.split, *self.classes, *self.ids, *labels, *(self.captions or ())])
