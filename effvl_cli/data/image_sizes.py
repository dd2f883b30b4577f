"""Sizes of image files as they are shown, and boxes of pixels as they are stored brought to the image as it is shown.

A camera that was held upright stores the pixels of its sensor and an EXIF orientation, by which they are to be turned.
Tools that do not know of it annotate the pixels as they are stored.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEAST_SIDE = 4  # px; an image with a shorter side shows nothing

ORIENTATION = 0x0112  # of EXIF: 1 as it is stored, 2 to 4 the same size, 5 to 8 width and height change places
UPRIGHT, SIDEWAYS, ORIENTATIONS = 1, 5, range(1, 9)
ABOUT = ("exif", "xmp", "XML:com.adobe.xmp")  # where Pillow finds an orientation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def shown_size(path: Path) -> tuple[tuple[int, int, int], str]:
    """Width and height of an image file as it is shown, its EXIF orientation, and what is wrong with it."""
    bad = 0, 0, UPRIGHT
    try:
        with Image.open(path) as file:
            width, height = file.size
            orientation = _orientation(file)
    except FileNotFoundError:
        return bad, "is missing"
    except Image.DecompressionBombError:
        return bad, f"has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} px"
    except Exception:  # the decoders raise nearly anything on damaged bytes
        return bad, "is no image"
    if min(width, height) < LEAST_SIDE:
        return bad, f"is {width}x{height} px, and {LEAST_SIDE} are needed"
    if orientation >= SIDEWAYS:
        width, height = height, width
    return (width, height, orientation), ""


def _orientation(file: Image.Image) -> int:
    """As `ImageOps.exif_transpose` takes it; reading it of formats that hold it elsewhere is slow, and JPEG is not."""
    if file.format == "JPEG" and not any(key in file.info for key in ABOUT):
        return UPRIGHT
    value: Any = file.getexif().get(ORIENTATION, UPRIGHT)
    return int(value) if value in ORIENTATIONS else UPRIGHT


def stored_sizes(sizes: Ints, orientation: Ints) -> Ints:
    """(M, 2) width and height of the pixels in the files, of those (M, 2) as shown and (M,) orientations."""
    return np.where((orientation >= SIDEWAYS)[:, None], sizes[:, ::-1], sizes)


def as_shown(boxes: Floats, sizes: Floats, orientation: Ints) -> Floats:
    """Boxes of pixels as they are stored, in the image as it is shown (EXIF 2.32, tag 274).

    Args:
        boxes: (N, 4) x1, y1, x2, y2 in the stored pixels.
        sizes: (N, 2) width and height of their images as shown.
        orientation: (N,) of their images.
    """
    sideways = (orientation >= SIDEWAYS)[:, None]
    x, y = np.where(sideways, boxes[:, 1::2], boxes[:, 0::2]), np.where(sideways, boxes[:, 0::2], boxes[:, 1::2])
    mirrored = np.isin(orientation, (2, 3, 6, 7))[:, None]
    x = np.where(mirrored, sizes[:, :1] - x[:, ::-1], x)
    upside_down = np.isin(orientation, (3, 4, 7, 8))[:, None]
    y = np.where(upside_down, sizes[:, 1:] - y[:, ::-1], y)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
