"""Annotations of boxes in the formats that people have, read into one record."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask

from effvl_cli.core.errors import DataError
from effvl_cli.data.annotations import Listed
from effvl_cli.data.boxes import Reading, load_boxes
from effvl_cli.data.folders import split_words
from effvl_cli.data.sequences import name_sequences
from tests.data.box_files import bdd_frame, bdd_label, coco_data, picture, voc_object, write_bdd, write_coco, write_voc

SHARED = Path(os.environ.get("EFFVL_TEST_DATA", "/none")).absolute()  # tests work in folders of their own
WHOLE = Reading(whole=True)


def test_coco_with_ids_from_zero(tmp_path):
    data = coco_data()
    data["images"][1]["timeofday"] = "daytime"
    data["images"][2] |= {"attributes": {"timeofday": "night"}, "scene": "bridge", "frame_id": 9}
    data["annotations"][0] |= {"iscrowd": 1, "area": 7.5}
    source = load_boxes(f"coco:{write_coco(tmp_path, data)}", "train", reading=WHOLE)
    assert source.classes == ("car", "person")
    assert source.category_ids == (0, 7)
    first, second, third = source.records[:3]
    assert first.boxes.tolist() == [[5, 6, 15, 18], [1, 2, 5, 10.5]]
    assert first.labels.tolist() == [1, 2]
    assert first.area.tolist() == [7.5, 34.0]
    assert first.iscrowd.tolist() == first.ignore.tolist() == [True, False]
    assert (first.image_id, first.width, first.height, first.time) == (0, 40, 30, None)
    assert (second.time, third.time, third.seq, third.frame) == ("day", "night", "bridge", 9)
    assert source.image(0).size == (40, 30)
    assert source.kind == "boxes"


def test_voc_counts_pixels_from_one_unless_a_minimum_is_zero(tmp_path):
    pages = {
        "a": voc_object("dog", (1, 1, 10, 10)),
        "b": voc_object("cat", (2, 3, 40, 30), "<difficult>1</difficult>"),
    }
    folder = write_voc(tmp_path / "one", pages, {"train": "a\nb 1\n", "val": "a\n", "test": "b\n"})
    source = load_boxes(f"voc:{folder}", "train")
    assert source.classes == ("cat", "dog")
    assert source.records[0].boxes.tolist() == [[0, 0, 10, 10]]
    assert source.records[1].boxes.tolist() == [[1, 2, 40, 30]]
    assert source.records[1].ignore.tolist() == [True]
    assert [record.file for record in load_boxes(f"voc:{folder}", "test").records] == ["b.jpg"]
    folder = write_voc(tmp_path / "zero", pages | {"c": voc_object("dog", (0, 4, 10, 10))}, {"train": "a\n"})
    source = load_boxes(f"voc:{folder}", "train", reading=WHOLE)
    assert source.records[0].boxes.tolist() == [[1, 1, 10, 10]]


def test_a_list_of_voc_can_be_chosen_and_then_validation_is_a_part_of_it(tmp_path):
    pages = {f"v{k:02d}": voc_object("dog", (2, 2, 9, 9)) for k in range(24)}
    names = sorted(pages)
    lists = {"train": names[:10], "val": names[10:20], "trainval": names[:20], "test": names[20:]}
    folder = write_voc(tmp_path, pages, {key: "\n".join(value) for key, value in lists.items()})

    def files(spec, split):
        return [Path(record.file).stem for record in load_boxes(spec, split).records]

    assert files(f"voc:{folder}", "val") == names[10:20]
    chosen = f"voc:{folder},train=trainval"
    train, val = files(chosen, "train"), files(chosen, "val")
    assert (len(train), len(val)) == (18, 2)
    assert sorted(train + val) == names[:20]
    assert files(chosen, "test") == names[20:]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["Town01_001020.jpg", "Town01_001080.jpg", "Town02_000001.jpg"], [("Town01_", 1020), ("Town01_", 1080)]),
        (["day_000_0.jpg", "day_001_1.jpg"], [("day_000_0", 0), ("day_001_1", 1)]),
        (["000001.png", "000002.png"], [("000001", 1), ("000002", 2)]),
        (["all/0001.png", "all/0002.png"], [("all/0001", 1), ("all/0002", 2)]),
        (["a/0001.png", "a/0002.png", "b/0001.png", "b/0002.png"], [("a/", 1), ("a/", 2)]),
        (["street.png", "road.png"], [("street", None), ("road", None)]),
    ],
)
def test_sequences_by_name(files, expected):
    images = [Listed(file, Path(file)) for file in files]
    name_sequences(images)
    assert [(image.seq, image.frame) for image in images[:2]] == expected


@pytest.mark.parametrize(
    ("files", "known"),
    [
        (["f0.jpg", "f1.jpg", "f2.jpg"], [False] * 3),
        (["in/img_1.jpg", "in/img_2.jpg", "in/cover.jpg"], [False, False, True]),
        (["train_1.jpg", "train_2.jpg", "val_1.jpg", "val_2.jpg"], [False] * 4),
        (["train/f1.jpg", "train/f2.jpg", "valid/f1.jpg", "valid/f2.jpg"], [False] * 4),
        (["a/f1.jpg", "a/f2.jpg", "b/f1.jpg", "b/f2.jpg"], [True] * 4),
        (["Town01_1.jpg", "Town01_2.jpg", "Town02_1.jpg", "Town02_2.jpg"], [True] * 4),
        (["0001.jpg", "0002.jpg"], [True] * 2),
    ],
)
def test_a_name_that_all_images_share_tells_no_sequence(files, known):
    images = [Listed(file, Path(file)) for file in files]
    name_sequences(images)
    assert [image.seq_known for image in images] == known


def test_sequences_by_regular_expression_and_by_the_annotations():
    images = [Listed("cam1-x-7.png", Path()), Listed("other.png", Path(), seq="given", frame=3)]
    name_sequences(images, r"(?P<seq>cam\d)-x-(?P<frame>\d+)")
    assert [(image.seq, image.frame) for image in images] == [("cam1", 7), ("given", 3)]


def test_parts_keep_sequences_whole_and_day_and_night_apart(tmp_path):
    data = coco_data(60)
    for number, image in enumerate(data["images"]):
        image |= {"scene": f"s{number // 2}", "timeofday": "night" if number % 6 < 2 else "day"}
    spec = f"coco:{write_coco(tmp_path, data).parent}"
    parts = {split: load_boxes(spec, split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 48, "val": 6, "test": 6}
    seqs = [{record.seq for record in part.records} for part in parts.values()]
    assert not (seqs[0] & seqs[1] or seqs[0] & seqs[2] or seqs[1] & seqs[2])
    assert all(part.summary()[0]["n_night"] > 0 for part in parts.values())


def test_too_few_sequences_are_cut_once_each_with_a_remark(tmp_path):
    data = coco_data(40)
    for number, image in enumerate(data["images"]):
        image |= {"scene": "north" if number < 20 else "south"}
    path = write_coco(tmp_path, data)
    parts = {split: load_boxes(f"coco:{path}", split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 32, "val": 4, "test": 4}
    assert [record.frame for record in parts["test"].records] == [18, 19, 38, 39]
    assert "share sequences" in parts["val"].remark
    assert len(load_boxes(f"coco:{path}", "train", reading=WHOLE)) == 40


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train2017", "train"),
        ("instances_val2017", "val"),
        ("my-test", "test"),
        ("labels", ""),
        ("testing_set", "test"),
    ],
)
def test_what_a_file_name_says(name, split):
    assert split_words(name) == split


@pytest.mark.parametrize("layout", ["annotations/instances_train2017.json", "train/_annotations.coco.json"])
def test_layouts_of_coco(tmp_path, layout):
    folder = tmp_path / "images" / "train2017" if "2017" in layout else tmp_path / "train"
    for k in range(4):
        picture(folder / f"img{k}.png")
    write_coco(tmp_path / "elsewhere")
    (tmp_path / layout).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / layout).write_text((tmp_path / "elsewhere" / "train.json").read_text())
    source = load_boxes(f"coco:{tmp_path}", "train", reading=WHOLE)
    assert len(source) == 4
    assert source.records[0].path == folder / "img0.png"


@pytest.mark.parametrize(
    ("layout", "images"),
    [
        ("annotations/instances_default.json", "images"),  # CVAT
        ("labels.json", "data"),  # FiftyOne
        ("train/labels.json", "train/data"),
    ],
)
def test_layouts_of_coco_by_other_programs(tmp_path, layout, images):
    for k in range(4):
        picture(tmp_path / images / f"img{k}.png")
    (tmp_path / layout).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / layout).write_text(json.dumps(coco_data()))
    source = load_boxes(f"boxes:{tmp_path}", "train", reading=WHOLE)
    assert source.records[0].path.parent == tmp_path / images


def test_coco_with_words_for_ids_and_backslashes(tmp_path):
    data = coco_data(2)
    for row in data["images"]:
        row["id"] = f"a{row['id']}"
        row["file_name"] = f"a\\{row['file_name']}"
        picture(tmp_path / "images" / row["file_name"].replace("\\", "/"))
    for row in data["categories"]:
        row["id"] = {0: "k2", 7: "k1"}[row["id"]]
    for row in data["annotations"]:
        row["image_id"], row["category_id"] = f"a{row['image_id']}", {0: "k2", 7: "k1"}[row["category_id"]]
    (tmp_path / "train.json").write_text(json.dumps(data))
    source = load_boxes(f"coco:{tmp_path}", "train", reading=WHOLE)
    assert [(record.image_id, record.file) for record in source.records] == [(1, "a/img0.png"), (2, "a/img1.png")]
    assert (source.classes, source.category_ids) == (("car", "person"), (1, 2))
    assert [record.labels.tolist() for record in source.records] == [[1, 2], [1]]


def test_numbers_of_coco_that_are_written_as_words(tmp_path):
    data = coco_data(2)
    for row in data["images"]:
        row["id"] = str(row["id"])
    source = load_boxes(f"coco:{write_coco(tmp_path, data)}", "train", reading=WHOLE)
    assert [record.image_id for record in source.records] == [0, 1]
    assert [len(record.boxes) for record in source.records] == [2, 1]


def test_the_box_of_a_polygon(tmp_path):
    data = coco_data(1)
    del data["annotations"][0]["bbox"]
    data["annotations"][0]["segmentation"] = [[5, 6, 15, 6, 9, 18], [20, 7, 21, 7, 20, 9]]
    source = load_boxes(f"coco:{write_coco(tmp_path, data)}", "train", reading=WHOLE)
    assert source.records[0].boxes[0].tolist() == [5, 6, 21, 18]


def test_the_box_of_a_mask(tmp_path):
    """Rows 5 to 11 and columns 7 to 18 of 30 rows: in columns 7 * 30 + 5 zeros, then 7 and 23 in turn."""
    runs = [7 * 30 + 5, *([7, 23] * 11), 7, 40 * 30 - 18 * 30 - 12]
    assert sum(runs) == 1200
    data = coco_data(4)
    compressed = mask.frPyObjects([{"size": [30, 40], "counts": runs}], 30, 40)[0]["counts"].decode()
    for row, counts in zip(data["annotations"], (runs, compressed), strict=False):
        del row["bbox"]
        row["segmentation"] = {"size": [30, 40], "counts": counts}
    source = load_boxes(f"coco:{write_coco(tmp_path, data)}", "train", reading=WHOLE)
    assert [record.boxes[0].tolist() for record in source.records[:2]] == [[7, 5, 19, 12]] * 2


@pytest.mark.parametrize(
    "shape", [{"size": [30, 40]}, {"size": [30], "counts": [1]}, {"size": [30, 40], "counts": [1, "a"]}, 7, [[1, "a"]]]
)
def test_a_mask_that_is_none(tmp_path, shape):
    data = coco_data(4)
    data["annotations"][2]["segmentation"] = shape
    del data["annotations"][2]["bbox"]
    with pytest.raises(DataError, match="annotation 2 has no bbox, and segmentation") as caught:
        load_boxes(f"coco:{write_coco(tmp_path, data)}", "train", reading=WHOLE)
    assert "Write bbox" in caught.value.hint


def test_voc_side_by_side_in_folders_of_splits(tmp_path):
    """As Roboflow exports it."""
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        made = write_voc(
            tmp_path / "made" / split, {f"{split}{k}": voc_object("dog", (2, 2, 9, 9)) for k in range(count)}
        )
        (tmp_path / "set" / split).mkdir(parents=True)
        for path in [*made.glob("Annotations/*"), *made.glob("JPEGImages/*")]:
            path.rename(tmp_path / "set" / split / path.name)
    parts = [load_boxes(f"boxes:{tmp_path / 'set'}", split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3, 2, 1]
    assert parts[1].records[0].path == tmp_path / "set" / "valid" / "valid0.jpg"


def test_voc_in_folders_below(tmp_path):
    """As CVAT exports it."""
    folder = write_voc(tmp_path, {"sub/a": voc_object("dog", (2, 2, 9, 9))}, {"default": "sub/a\n"})
    source = load_boxes(f"boxes:{folder}", "train", reading=WHOLE)
    assert [record.file for record in source.records] == ["sub/a.jpg"]
    write_voc(tmp_path, {}, {"train": "sub/a\n"})
    assert len(load_boxes(f"boxes:{folder}", "train", reading=WHOLE)) == 1


def test_images_of_bdd_are_found_from_the_file(tmp_path):
    write_bdd(tmp_path, [bdd_frame("a.jpg", bdd_label("car", (1, 1, 9, 9)))])
    source = load_boxes(f"bdd:{tmp_path / 'labels/det_20/det_train.json'}", "train", reading=WHOLE)
    assert source.records[0].path.resolve() == (tmp_path / "images/100k/train/a.jpg").resolve()


@pytest.mark.skipif(not (SHARED / "road_daynight").is_dir(), reason="no EFFVL_TEST_DATA")
def test_real_day_and_night():
    train = load_boxes("coco:road_daynight", "train", root=SHARED, reading=WHOLE)
    test = load_boxes("coco:road_daynight", "test", root=SHARED)
    assert [(len(part), part.summary()[0]["n_night"]) for part in (train, test)] == [(204, 48), (66, 28)]
    assert train.category_ids == (0, 1, 2, 3)
    assert not {record.seq for record in train.records} & {record.seq for record in test.records}
    assert sum(part.summary()[0]["n_boxes"] for part in (train, test)) == 4629


@pytest.mark.skipif(not (SHARED / "carla_road").is_dir(), reason="no EFFVL_TEST_DATA")
def test_real_roads_of_a_simulator():
    parts = [load_boxes("voc:carla_road", split, root=SHARED) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [623, 156, 249]
    assert [part.summary()[0]["per_class"]["vehicle"] for part in parts] == [933, 239, 203]
    assert sum(len(record.boxes) == 0 for part in parts for record in part.records) == 142
    assert {record.seq for record in parts[2].records} == {"Town05_"}
    boxes = np.concatenate([record.boxes for part in parts for record in part.records])
    assert (boxes[:, :2] == 0).sum() == 22


def test_few_images_have_a_part_each(tmp_path):
    write_coco(tmp_path, coco_data(3))
    parts = [load_boxes(f"coco:{tmp_path}", split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert len({record.file for part in parts for record in part.records}) == 3


def test_validation_images_are_measured_too_where_no_others_are_named(tmp_path):
    """No training image is taken away, and it is said."""
    for name in ("train", "val"):
        write_coco(tmp_path, coco_data(3), f"{name}.json")
    train, val, test = (load_boxes(f"coco:{tmp_path}", split) for split in ("train", "val", "test"))
    assert [len(part) for part in (train, val, test)] == [3, 3, 3]
    assert test.records[0].path == val.records[0].path
    assert "those called val are measured" in test.remark and not (train.remark or val.remark)
    assert (val.same_as, test.same_as, test.take([0]).same_as) == ("", "val", "val")
    (tmp_path / "mix.yml").write_text("sources: [{name: a, root: ., format: coco}]")
    mixed = load_boxes(f"boxes:{tmp_path / 'mix.yml'}", "test")
    assert mixed.same_as == "val" and "those called val" in mixed.remark
    (tmp_path / "train.json").unlink()
    assert len(load_boxes(f"coco:{tmp_path / 'val.json'}", "val")) == 3


def test_test_images_alone_do_not_choose(tmp_path):
    for name in ("train", "test"):
        write_coco(tmp_path, coco_data(10), f"{name}.json")
    train, val, test = (load_boxes(f"coco:{tmp_path}", split) for split in ("train", "val", "test"))
    assert [len(part) for part in (train, val, test)] == [9, 1, 10]
    assert not test.same_as and not {r.file for r in train.records} & {r.file for r in val.records}
