"""Procedural road scenes: what is promised of them, each picture rebuilt alone, and the cache."""

import numpy as np
import pytest

from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import UsageError
from effvl_cli.data import road_painter, road_scenes
from effvl_cli.data.boxes import Reading, load_boxes
from effvl_cli.data.road_layout import DAY, Scene, Thing
from effvl_cli.data.road_painter import paint


@pytest.fixture
def reading(tmp_path):
    return Reading(cache=Cache(tmp_path / "scenes"))


def opened(argument, split, reading):
    return load_boxes(f"road-scenes:{argument}", split, reading=reading)


def test_splits_are_half_night_and_disjoint(reading):
    train, test = (opened("scenes=6,frames=2,test=4", split, reading) for split in ("train", "test"))
    assert (len(train), len(test)) == (12, 4)
    assert [record.time for record in test.records] == ["day", "night", "day", "night"]
    assert [(record.seq, record.frame) for record in train.records[:3]] == [("00000", 0), ("00000", 1), ("00001", 0)]
    assert sorted({record.image_id for record in train.records}) == list(range(1, 13))
    pictures = {np.asarray(source.image(k)).tobytes() for source in (train, test) for k in range(len(source))}
    assert len(pictures) == 16
    assert train.summary()[0]["n_night"] == 6
    assert train.summary()[0]["n_boxes"] == sum(len(record.boxes) for record in train.records)


def test_boxes_lie_in_the_picture_and_are_not_tiny(reading):
    source = opened("scenes=40", "train", reading)
    boxes = np.concatenate([record.boxes for record in source.records])
    assert boxes[:, :2].min() >= 0
    assert boxes[:, 2].max() <= 256
    assert boxes[:, 3].max() <= 160
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 4
    assert {int(label) for record in source.records for label in record.labels} == {1, 2, 3, 4}


def test_days_are_bright_and_nights_are_dark(reading):
    source = opened("test=40", "test", reading)
    for index, record in enumerate(source.records):
        median = np.median(np.asarray(source.image(index)) @ [0.299, 0.587, 0.114])
        assert (median > 65) == (record.time == "day"), f"{record.file}: {median}"


def test_street_lamps_leave_the_night_dark():
    """Nothing gets half the light of the darkest day, headlights and glow aside."""
    scenes = [Scene.drawn("road", "test", number, 0) for number in range(1, 100, 2)]
    assert max(float(road_painter._lit(scene).max()) for scene in scenes) < DAY[0] / 2


def test_a_box_is_the_extent_of_what_is_drawn():
    """Without noise, the pixels that a thing changes are those that its box touches."""

    class Silent:
        def standard_normal(self, shape, dtype):
            return np.zeros(shape, dtype)

    scene = next(scene for scene in (Scene.drawn("road", "test", k, 0) for k in range(0, 40, 2)) if scene.things)
    thing = scene.things[-1]  # the nearest: nothing hides it
    without = Scene(**{**vars(scene), "things": scene.things[:-1]})
    changed = (paint(scene, 0, Silent()) != paint(without, 0, Silent())).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    x1, y1, x2, y2 = thing.extent().clip(0, [256, 160, 256, 160])
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=1.01)


def test_things_move_and_grow_by_frames():
    thing = Thing(1, 100.0, 120.0, 40.0, 64.0, 0.5, 1.01, ((0.5,) * 3,) * 2, rear=False)
    later = thing.at(3)
    assert later.x == pytest.approx(101.5)
    assert later.height == pytest.approx(40 * 1.01**3)
    np.testing.assert_allclose(thing.extent(), [68, 80, 132, 120])


def test_each_picture_can_be_rebuilt_alone_and_is_drawn_once(reading, monkeypatch):
    few, more = opened("scenes=3", "train", reading), opened("scenes=5", "train", reading)
    for index in range(3):
        assert np.array_equal(np.asarray(few.image(index)), np.asarray(more.image(index)))
    monkeypatch.setattr(road_scenes, "paint", None)
    again = opened("scenes=3", "train", reading)
    assert np.array_equal(np.asarray(again.image(2)), np.asarray(few.image(2)))
    assert again.fingerprint() == few.fingerprint() != more.fingerprint()


def test_styles_and_seeds_differ(reading):
    base, outside, other = (opened(f"scenes=1{rest}", "train", reading) for rest in ("", ",style=outside", ",seed=1"))
    assert len({np.asarray(source.image(0)).tobytes() for source in (base, outside, other)}) == 3
    assert not Scene.drawn("outside", "train", 1, 0).lamps


@pytest.mark.parametrize(("argument", "word"), [("scenes=0", "scenes"), ("style=snow", "snow"), ("frame=2", "frame")])
def test_arguments_that_cannot_be_read(argument, word):
    with pytest.raises(UsageError, match=word):
        load_boxes(f"road-scenes:{argument}", "train")
