"""Boxes on an image: colours, solid and dashed outlines, names inside the image."""

import numpy as np
import torch
from PIL import Image

from effvl_cli.engines.detect.drawing import colour_of, draw

BOX = [20.0, 30, 100, 80]


def found(boxes, **more):
    labels = more.pop("labels", torch.ones(len(boxes), dtype=torch.int64))
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": labels, **more}


def is_colour(image, name="car"):
    return (np.asarray(image) == colour_of(name)).all(2)


def test_a_solid_and_a_dashed_outline():
    grey = Image.new("RGB", (160, 120), (90, 90, 90))
    for condition, dashed in ((0, False), (-1, False), (1, True)):
        drawn = is_colour(draw(grey, found([BOX], conditions=torch.tensor([condition])), ["car"]))
        for edge in (drawn[79, 20:100], drawn[30:80, 20], drawn[30:80, 99]):
            assert edge.all() != dashed
            assert edge[:4].all()
            assert edge.mean() > 0.4
        assert drawn[30:80, 20:100].sum() <= 2 * 80 + 2 * 50
        assert not drawn[31:79, 21:99].any()  # one px wide
        assert not drawn[81:].any()
    assert np.asarray(grey).max() == 90  # a copy is drawn on


def test_lines_of_a_large_image_are_wider():
    drawn = is_colour(draw(Image.new("RGB", (1600, 1200)), found([[200.0, 300, 600, 700]]), ["car"]))
    assert drawn[400, 200:203].all()
    assert not drawn[400, 203]
    assert drawn[400, 597:600].all()
    assert not drawn[400, 600]


def test_names_stay_inside_the_image():
    grey = Image.new("RGB", (160, 120), (90, 90, 90))
    for corner in ([0.0, 0, 10, 10], [150.0, 0, 160, 8], [150.0, 110, 160, 120], [-5.0, -5, 200, 200]):
        drawn = is_colour(draw(grey, found([corner], scores=torch.tensor([0.876])), ["car"]))
        filled = np.argwhere(drawn)
        outline = 2 * (min(corner[2], 160) - max(corner[0], 0)) + 2 * (min(corner[3], 120) - max(corner[1], 0))
        assert len(filled) > outline + 100, corner  # the ground of the name is there besides


def test_colours_belong_to_names():
    names = ["pedestrian", "vehicle", "scooter", "bicycle", "car", "bus"]
    assert len({colour_of(name) for name in names}) == len(names)
    grey = Image.new("RGB", (160, 120), (90, 90, 90))
    both = draw(grey, found([BOX, [110.0, 90, 150, 110]], labels=torch.tensor([2, 1])), ["car", "bus"])
    assert is_colour(both, "bus")[50, 20]
    assert is_colour(both, "car")[100, 110]


def test_the_surest_is_on_top_and_nothing_is_drawn_of_nothing():
    grey = Image.new("RGB", (160, 120), (90, 90, 90))
    scores, labels = torch.tensor([0.9, 0.4]), torch.tensor([1, 2])
    both = draw(grey, found([BOX, BOX], scores=scores, labels=labels), ["car", "bus"])
    assert is_colour(both, "car")[50, 20]
    assert np.array_equal(np.asarray(draw(grey, found([]), ["car"])), np.asarray(grey))


def test_boxes_without_area_and_outside_do_not_stop_it():
    grey = Image.new("RGB", (160, 120))
    for box in ([10.0, 10, 10, 10], [50.0, 50, 40, 40], [200.0, 200, 300, 300]):
        for condition in (0, 1):
            draw(grey, found([box], conditions=torch.tensor([condition])), ["car"])
