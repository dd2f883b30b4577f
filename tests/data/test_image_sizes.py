"""Boxes that were drawn on the pixels of a file as they are stored, and images that EXIF turns."""

import numpy as np
import pytest
from PIL import Image

from effvl_cli.core.errors import DataError
from effvl_cli.data.boxes import Reading, load_boxes
from tests.data.box_files import write_coco

WIDTH, HEIGHT = 12, 8
BOX = (2, 1, 5, 3)  # x1, y1, x2, y2 of 12x8 stored pixels
SHOWN = {  # by hand: EXIF says what row 0 and column 0 of the file are in the picture
    1: (2, 1, 5, 3),  # top, left
    2: (7, 1, 10, 3),  # top, right
    3: (7, 5, 10, 7),  # bottom, right
    4: (2, 5, 5, 7),  # bottom, left
    5: (1, 2, 3, 5),  # left, top
    6: (5, 2, 7, 5),  # right, top
    7: (5, 7, 7, 10),  # right, bottom
    8: (1, 7, 3, 10),  # left, bottom
}


def turned_file(path, orientation, size=(WIDTH, HEIGHT)):
    """A picture that is black but for the box, which is white."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path, exif=exif)


def opened(tmp_path, images, **reading):
    """A source of images of (orientation, size of the file, declared size)."""
    rows, boxes = [], []
    for number, (orientation, size, declared) in enumerate(images):
        name = f"img{number}.png"
        turned_file(tmp_path / "images" / name, orientation, size)
        rows.append({"id": number, "file_name": name, "width": declared[0], "height": declared[1]})
        box = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
        boxes.append({"id": number, "image_id": number, "category_id": 0, "bbox": box})
    data = {"images": rows, "annotations": boxes, "categories": [{"id": 0, "name": "car"}]}
    path = write_coco(tmp_path, data)
    return load_boxes(f"coco:{path}", "train", reading=Reading(whole=True, **reading))


def shown(source, index=0):
    return tuple(source.records[index].boxes[0].tolist())


@pytest.mark.parametrize("rescale", [False, True])
def test_boxes_are_turned_with_their_images(tmp_path, rescale):
    """The size of the stored pixels is declared; those of the same size either way follow those that show it."""
    stored = (WIDTH, HEIGHT)
    source = opened(tmp_path, [(orientation, stored, stored) for orientation in SHOWN], rescale=rescale)
    for index, expected in enumerate(SHOWN.values()):
        assert shown(source, index) == expected
        x1, y1, x2, y2 = expected
        pixels = np.asarray(source.image(index))
        assert (pixels[y1:y2, x1:x2] == 255).all()
        assert pixels.sum() == 3 * 255 * 6
    assert [(record.width, record.height) for record in source.records] == [(12, 8)] * 4 + [(8, 12)] * 4
    assert source.problems.counts == {"turned by EXIF": 7}
    assert source.records[5].area.tolist() == [6.0]


def test_boxes_of_images_as_shown_stay(tmp_path):
    """A declared size that EXIF agrees with, and an image that tells nothing where another is declared as shown."""
    source = opened(tmp_path, [(6, (12, 8), (8, 12)), (3, (12, 8), (12, 8)), (8, (12, 8), (12, 8))])
    assert shown(source, 0) == BOX
    assert shown(source, 1) == BOX
    assert shown(source, 2) == SHOWN[8]


def test_images_that_were_turned_and_resized(tmp_path):
    """Twice the size: turned on the declared 12x8, then scaled."""
    source = opened(tmp_path, [(6, (24, 16), (12, 8)), (3, (24, 16), (12, 8)), (1, (24, 16), (12, 8))], rescale=True)
    for index, orientation in enumerate((6, 3, 1)):
        assert shown(source, index) == tuple(2 * value for value in SHOWN[orientation])
    assert source.problems.counts == {"turned by EXIF": 2, "rescaled": 3}


def test_a_lying_image_that_stands_is_not_scaled(tmp_path):
    with pytest.raises(DataError, match=r"--rescale-boxes.*img0.png is 12x8, declared 8x12, and EXIF says nothing"):
        opened(tmp_path, [(1, (12, 8), (8, 12))], rescale=True)
