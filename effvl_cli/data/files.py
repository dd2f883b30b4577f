"""Images in files: reading one, and a list of them as a source."""

import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from effvl_cli.core.errors import DataError
from effvl_cli.data.source import digest

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"))
FEW = 3  # how many names a remark gives

_WITHOUT_RGB = {"La": "LA", "RGBa": "RGBA"}  # premultiplied alpha, which Pillow turns into RGB only by way of these
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


def read_image(path: Path) -> Image.Image:
    """An image file as RGB, rotated as its EXIF says; grey is replicated, alpha dropped, CMYK converted.

    Grey of more than 8 bits is scaled by the range of its type, not by the values of the picture: 10 to 16 bits, and
    floats from 0 to 1.

    Raises:
        DataError: missing, not a regular file, damaged, truncated, implausibly large, or values of unknown range.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for its writer
            raise DataError(f"{path} is not a regular file", "Remove it, or give a copy of the picture")
        with Image.open(path) as file:
            file.load()
            return _as_rgb(_eight_bits(ImageOps.exif_transpose(file), file, path))
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"no image at {path}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no image") from error
    except Exception as error:  # on damaged bytes the decoders raise nearly anything: struct.error, EOFError, ...
        raise DataError(f"{path} cannot be decoded: {error}") from error


def _eight_bits(image: Image.Image, file: Image.Image, path: Path) -> Image.Image:
    """An image of `file` whose mode is not 8-bit, scaled to 0..255 by the range of its type; any other unchanged."""
    if image.mode == "F":
        return Image.fromarray((_unit_floats(np.asarray(image), path) * 255).round().astype(np.uint8))
    if image.mode == "I" and file.format != "PPM":  # Pillow has scaled the values of a PGM to 16 bits
        raise DataError(f"{path} holds 32-bit or signed integers (mode I), of unknown range", "Save it in 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        bits, inverted = _tiff_depth(file)
        grey = np.clip(np.asarray(image).astype(np.float64) * 255 / (2**bits - 1), 0, 255)
        return Image.fromarray((255 - grey if inverted else grey).astype(np.uint8))
    return image


def _unit_floats(values: NDArray[np.float32], path: Path) -> NDArray[np.float64]:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not 0 <= low <= high <= 1:  # false for NaN too
        raise DataError(
            f"{path} holds floats (mode F) from {low:g} to {high:g}", "Only 0 to 1 has a known meaning; save 8 bits"
        )
    return values.astype(np.float64)


def _tiff_depth(file: Image.Image) -> tuple[int, bool]:
    """Bits of a sample, and whether 0 is white; Pillow keeps both as in the file."""
    tags = getattr(file, "tag_v2", {})
    return int(tags.get(_TIFF_BITS, (16,))[0]), tags.get(_TIFF_PHOTOMETRIC) == 0


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WITHOUT_RGB:
        image = image.convert(_WITHOUT_RGB[image.mode])
    return image.convert("RGB")


def file_states(paths: Iterable[Path]) -> list[str]:
    """Size and time of the last change of each file, which tell a replaced file without reading it."""
    found = []
    for path in paths:
        try:
            about = path.stat()
            found.append(f"{about.st_size} {about.st_mtime_ns}")
        except OSError:
            found.append("missing")
    return found


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


def _untaught_remark(split: str, labels: NDArray[np.int64], classes: tuple[str, ...]) -> str:
    """Note on classes that no training image shows, so that nothing can be learned of them."""
    if split != "train" or not classes:
        return ""
    missing = [classes[k] for k in np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)]
    return f"no image of {some(missing)}, {len(missing)} of {len(classes)} classes" if missing else ""


def some(names: Sequence[str]) -> str:
    """The first few of some names, and how many there are besides."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


class FileImages:
    """Image files with labels or captions; an id is the file's path from `root`.

    `remark` is a note on it for reports.
    """

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
        remark: str = "",
    ) -> None:
        self.name, self.split, self.classes, self.templates = name, split, classes, templates
        self.ids, self.labels, self.captions = ids, labels, captions
        self.remark = "; ".join(filter(None, (_untaught_remark(split, labels, classes), remark)))
        self._root = root
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return read_image(self._root / self.ids[index])

    def files(self) -> Sequence[str]:
        """What the images are read from, as paths from the root."""
        return self.ids

    def fingerprint(self) -> str:
        """Digest of names, labels, captions, and of size and time of each file; no pixels are read."""
        if not self._fingerprint:
            labels = (str(int(label)) for label in self.labels)
            states = file_states(self._root / name for name in self.files())
            self._fingerprint = digest([self.split, *self.classes, *self.ids, *labels, *(self.captions or ()), *states])
        return self._fingerprint
