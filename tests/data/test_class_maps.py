"""Class maps: which boxes become what, and what is refused."""

from dataclasses import replace

import pytest

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.boxes import Reading, load_boxes
from effvl_cli.data.class_maps import MAPS, class_map, wanted_classes
from tests.data.box_files import coco_data, write_coco

NAMES = ("car", "person", "bike", "tram")


def opened(tmp_path, **reading):
    """One image with a box of each class."""
    data = coco_data(1)
    data["categories"] = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
    data["annotations"] = [{"id": k, "image_id": 0, "category_id": k, "bbox": [k, k, 5, 5]} for k in range(len(NAMES))]
    return load_boxes(f"coco:{write_coco(tmp_path, data)}", "train", reading=Reading(whole=True, **reading))


def test_classes_become_others_ignore_boxes_or_nothing(tmp_path):
    source = opened(tmp_path, map="car=vehicle,person=pedestrian,bike=drop,tram=ignore")
    assert source.classes == ("pedestrian", "vehicle")
    assert source.category_ids == (1, 2)
    record = source.records[0]
    assert record.labels.tolist() == [2, 1, 0]
    assert record.ignore.tolist() == [False, False, True]
    assert record.boxes[:, 0].tolist() == [0, 1, 3]
    assert source.problems.counts == {"dropped": 1, "ignored": 1}
    assert source.fingerprint() == opened(tmp_path).fingerprint()


def test_unknown_classes_are_all_named_or_relaxed(tmp_path):
    with pytest.raises(DataError, match=r"2 classes.*bike \(1 boxes\), tram \(1 boxes\)") as caught:
        opened(tmp_path, map="car=vehicle,person=pedestrian")
    assert "--unknown" in str(caught.value)
    assert opened(tmp_path, map="car=vehicle,person=drop", unknown="drop").records[0].labels.tolist() == [1]
    ignored = opened(tmp_path, map="car=vehicle,person=drop", unknown="ignore")
    assert ignored.records[0].labels.tolist() == [1, 0, 0]
    assert ignored.problems.counts["unknown"] == 2


def test_a_star_stands_for_the_rest_and_files_hold_maps(tmp_path):
    (tmp_path / "map.yaml").write_text("car: vehicle\n'*': drop\n")
    source = opened(tmp_path, map=str(tmp_path / "map.yaml"))
    assert source.classes == ("vehicle",)
    assert source.records[0].labels.tolist() == [1]


def test_wanted_classes_can_be_more_than_the_map_gives(tmp_path):
    source = opened(tmp_path, map={"car": "vehicle", "*": "drop"}, classes=("pedestrian", "vehicle"))
    assert source.classes == ("pedestrian", "vehicle")
    with pytest.raises(DataError, match="'car' is mapped to 'lorry'"):
        opened(tmp_path, map={"car": "lorry", "*": "drop"}, classes=("pedestrian", "vehicle"))
    with pytest.raises(DataError, match="no box"):
        opened(tmp_path, map={"*": "drop"}, classes=("pedestrian",))


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("bdd100k-4", "motor", "scooter"),
        ("bdd100k-4", "person", "pedestrian"),
        ("bdd100k-4", "rider", "ignore"),
        ("bdd100k-4", "traffic sign", "drop"),
        ("coco-4", "bus", "vehicle"),
        ("coco-4", "*", "drop"),
        ("kitti-4", "Cyclist", "bicycle"),
        ("three", "bicycle", "rider"),
    ],
)
def test_maps_by_name(name, source, target):
    assert MAPS[name][source] == target


def test_order_of_wanted_classes():
    assert wanted_classes(MAPS["coco-4"]) == ("pedestrian", "vehicle", "scooter", "bicycle")
    assert wanted_classes(MAPS["three"]) == ("pedestrian", "vehicle", "rider")


@pytest.mark.parametrize("given", ["coco4", "car=", "missing.yaml"])
def test_what_is_no_map(given):
    with pytest.raises(UsageError, match=given.replace("=", "")):
        class_map(given)


def test_images_that_a_map_leaves_without_boxes_are_empty(tmp_path):
    data = coco_data(4)  # every second image has a person besides its car
    path = write_coco(tmp_path, data)
    reading = Reading(whole=True, map="person=pedestrian,car=drop")
    source = load_boxes(f"coco:{path}", "train", reading=reading)
    assert source.problems.first["empty"] == ["img1.png", "img3.png"]
    dropped = load_boxes(f"coco:{path}", "train", reading=replace(reading, drop_empty=True))
    assert [record.file for record in dropped.records] == ["img0.png", "img2.png"]
