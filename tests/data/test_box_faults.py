"""Bad annotations and bad images: what stops a command, naming the file, and what is counted."""

import json

import numpy as np
import pytest
from PIL import Image

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.boxes import LISTED, Reading, load_boxes
from tests.data.box_files import (
    bdd_frame,
    bdd_label,
    coco_data,
    picture,
    voc_object,
    write_bdd,
    write_coco,
    write_voc,
    write_yolo,
)


def opened(tmp_path, data=None, **reading):
    return load_boxes(f"coco:{write_coco(tmp_path, data)}", "train", reading=Reading(whole=True, **reading))


def refused(load, *words):
    """The one line of an error with exit code 3, which has these words."""
    with pytest.raises(DataError) as caught:
        load()
    assert caught.value.exit_code == 3
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def with_boxes(boxes, count=200):
    """COCO data of so many sound boxes, and these on the first image."""
    data = coco_data(count)
    data["annotations"] = [row for row in data["annotations"] if row["category_id"] == 0]
    data["annotations"] += [
        {"id": 10_000 + k, "image_id": 0, "category_id": 7, "bbox": box} for k, box in enumerate(boxes)
    ]
    return data


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"images": []}', '{"images": [], "annotations": 3, "categories": []}']
)
def test_coco_files_that_are_empty_or_not_coco(tmp_path, text):
    (tmp_path / "train.json").write_text(text)
    refused(lambda: load_boxes(f"coco:{tmp_path}", "train"), "train.json")


def test_coco_without_images_or_without_a_key(tmp_path):
    refused(lambda: opened(tmp_path / "a", coco_data(0)), "train.json", "no images")
    data = coco_data()
    del data["annotations"][1]["bbox"]
    refused(lambda: opened(tmp_path / "b", data), "train.json", "bbox")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["images"][0].update(width=float("inf")),
        lambda data: data["images"][0].update(file_name=7),
        lambda data: data["images"][0].update(attributes=7),
        lambda data: data["annotations"][0].update(bbox=[1, 2, 3]),
        lambda data: data["annotations"][0].update(bbox="1234"),
        lambda data: data["annotations"][0].update(image_id=[1]),
        lambda data: data["categories"].append("car"),
        lambda data: data["annotations"].append(None),
    ],
)
def test_values_of_another_kind(tmp_path, change):
    data = coco_data()
    path = write_coco(tmp_path, data)
    change(data)
    path.write_text(json.dumps(data))
    refused(lambda: load_boxes(f"coco:{path}", "train"), "train.json")


@pytest.mark.parametrize("box", [None, [], [1, 2, 3], "1,2,3,4", {"x": 1}])
def test_coco_boxes_of_another_form_name_their_annotation(tmp_path, box):
    data = coco_data()
    data["annotations"][1]["bbox"] = box
    text = refused(lambda: opened(tmp_path, data), "train.json", "annotation 1", "[x, y, width, height]")
    assert "Error" not in text.split(":")[-1]


def test_coco_entries_that_lack_something(tmp_path):
    data = coco_data()
    del data["categories"][0]["name"]
    text = refused(lambda: opened(tmp_path, data), "train.json", "has no 'name'")
    assert "KeyError" not in text


def test_other_formats_that_are_empty_or_cannot_be_parsed(tmp_path):
    folder = write_voc(tmp_path / "voc", {"a": voc_object("car", (1, 1, 9, 9))})
    for text in ("", "<annotation>", "<annotation><object><name>x</name></object></annotation>"):
        (folder / "Annotations" / "a.xml").write_text(text)
        refused(lambda: load_boxes(f"voc:{folder}", "train"), "a.xml")
    (tmp_path / "bdd.json").write_text("[]")
    refused(lambda: load_boxes(f"bdd:{tmp_path / 'bdd.json'}", "train"), "bdd.json")
    (tmp_path / "bdd.json").write_text('[{"labels": []}]')
    refused(lambda: load_boxes(f"bdd:{tmp_path / 'bdd.json'}", "train"), "bdd.json", "name")
    folder = write_yolo(tmp_path / "yolo", {"a": "0 0.5 0.5 0.2"})
    refused(lambda: load_boxes(f"yolo:{folder}", "train"), "a.txt line 1", "5")
    (folder / "data.yaml").write_text("names: [")
    refused(lambda: load_boxes(f"yolo:{folder}", "train"), "data.yaml")


def test_boxes_are_clipped_dropped_and_counted(tmp_path):
    boxes = [[35, 5, 10, 10], [39.5, 5, 10, 10], [50, 5, 10, 10], [10, -20, 5, 5]]
    source = opened(tmp_path, with_boxes(boxes))
    assert source.records[0].boxes.tolist() == [[5, 6, 15, 18], [35, 5, 40, 15]]
    assert {kind: source.problems.counts[kind] for kind in ("clipped", "slivers", "outside")} == {
        "clipped": 1,
        "slivers": 1,
        "outside": 2,
    }
    assert "img0.png" in source.problems.first["clipped"][0]


def test_degenerate_boxes_are_dropped_up_to_one_in_a_hundred(tmp_path):
    bad = [[5, 5, 0, 5], [5, 5, -3, 5]]
    source = opened(tmp_path / "few", with_boxes(bad))
    assert source.problems.counts["degenerate"] == 2
    assert source.problems.first["degenerate"] == ["img0.png [5.0, 5.0, 5.0, 10.0]", "img0.png [5.0, 5.0, 2.0, 10.0]"]
    text = refused(lambda: opened(tmp_path / "many", with_boxes(bad * 15)), "train.json", "30 of 230", "degenerate")
    assert text.count("img0.png") == LISTED
    data = coco_data()
    data["annotations"][0]["bbox"] = [float("nan"), 1, 2, 3]
    refused(lambda: opened(tmp_path / "nan", data), "1 of 6")


def test_images_without_boxes_are_background_unless_all_are(tmp_path):
    data = coco_data()
    data["annotations"] = data["annotations"][1:2]
    source = opened(tmp_path / "a", data)
    assert len(source) == 4
    assert source.problems.counts["empty"] == 3
    assert len(opened(tmp_path / "a", data, drop_empty=True)) == 1
    refused(lambda: opened(tmp_path / "b", coco_data(annotations=[])), "train.json", "none of 4 images")


def test_declared_sizes_that_are_wrong(tmp_path):
    data = coco_data(200)
    data["images"][3] |= {"width": 80, "height": 60}
    source = opened(tmp_path / "few", data)
    assert (source.records[3].width, source.records[3].height) == (40, 30)
    assert source.records[3].boxes.tolist() == [[5, 6, 15, 18]]
    assert source.problems.counts["resized"] == 1
    scaled = opened(tmp_path / "few", data, rescale=True)
    assert scaled.records[3].boxes.tolist() == [[2.5, 3, 7.5, 9]]
    assert scaled.records[3].area.tolist() == [30.0]
    for image in data["images"][:5]:
        image |= {"width": 80, "height": 60}
    refused(lambda: opened(tmp_path / "many", data), "train.json", "5 of 200", "--rescale-boxes", "40x30")


def test_missing_and_broken_image_files_are_listed_or_skipped(tmp_path):
    data = coco_data(300)
    path = write_coco(tmp_path, data)
    for number in (7, 8):
        (tmp_path / "images" / f"img{number}.png").unlink()
    (tmp_path / "images" / "img9.png").write_bytes(b"no image")
    load = lambda **reading: load_boxes(f"coco:{path}", "train", reading=Reading(whole=True, **reading))  # noqa: E731
    refused(
        load,
        "train.json",
        "3 of 300",
        "img7.png is missing",
        "img9.png is no image",
        "--on-bad skip",
        "/images)",
    )
    source = load(on_bad="skip")
    assert len(source) == 297
    assert source.problems.counts["missing"] == 3
    assert source.records[7].file == "img10.png"
    for number in range(10, 40):
        (tmp_path / "images" / f"img{number}.png").unlink()
    text = refused(lambda: load(on_bad="skip"), "33 of 300")
    assert text.count("img") == LISTED


def test_images_of_less_than_four_px_are_bad(tmp_path):
    data = coco_data()
    picture(tmp_path / "images" / "img1.png", (40, 3))
    refused(lambda: opened(tmp_path, data), "img1.png is 40x3 px, and 4 are needed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["annotations"][0].update(category_id=99), ("1 of 6", "category_id", "99")),
        (lambda data: data["annotations"][0].update(image_id=99), ("1 of 6", "99")),
        (lambda data: data["images"][1].update(id=0), ("image ids", "0")),
        (lambda data: data["images"][1].update(file_name="img0.png"), ("file names", "img0.png")),
        (lambda data: data["categories"][1].update(name="car"), ("category names", "car")),
        (lambda data: data["categories"][1].update(id=0), ("category ids", "0")),
    ],
)
def test_ids_that_point_nowhere_or_stand_twice(tmp_path, change, words):
    data = coco_data()
    change(data)
    refused(lambda: opened(tmp_path, data), "train.json", *words)


def test_names_that_stand_twice_in_other_formats(tmp_path):
    write_bdd(tmp_path, [bdd_frame("a.jpg", bdd_label("car", (1, 1, 9, 9)))] * 2)
    refused(lambda: load_boxes(f"bdd:{tmp_path}", "train"), "det_train.json", "a.jpg")
    folder = write_yolo(tmp_path / "y", {"a": "0 .5 .5 .2 .2"}, "train: list.txt\nnames: [car]\n")
    (folder / "list.txt").write_text("images/a.png\nimages/a.png\n")
    refused(lambda: load_boxes(f"yolo:{folder}", "train"), "a.png")


def test_yolo_values_and_classes_out_of_range(tmp_path):
    folder = write_yolo(tmp_path, {"a": "0 1.1 0.5 0.5 0.5\n"})
    source = load_boxes(f"yolo:{folder}", "train", reading=Reading(whole=True))
    assert source.records[0].boxes.tolist() == [[34, 7.5, 40, 22.5]]
    assert source.problems.counts["outside [0,1]"] == 1
    for line in ("2 0.5 0.5 0.2 0.2", "-1 0.5 0.5 0.2 0.2", "inf 0.5 0.5 0.2 0.2", "0.5 0.5 0.5 0.2 0.2"):
        (folder / "labels" / "a.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
        refused(lambda: load_boxes(f"yolo:{folder}", "train"), "a.txt line 2", "0 to 1")


def test_yolo_values_in_px(tmp_path):
    folder = write_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2\n0 30 20 10 10\n"})
    refused(lambda: load_boxes(f"yolo:{folder}", "train"), "a.txt line 2", "30 is no share", "from 0 to 1")


def test_a_voc_list_of_images_without_annotations(tmp_path):
    folder = write_voc(tmp_path, {"a": voc_object("car", (1, 1, 9, 9))}, {"train": "a\nb\n"})
    refused(lambda: load_boxes(f"voc:{folder}", "train", reading=Reading(whole=True)), "train.txt", "1 of 2", "b")


@pytest.mark.parametrize("regex", ["(", r"\d+"])
def test_a_sequence_pattern_that_is_none(tmp_path, regex):
    with pytest.raises(UsageError, match="--seq-regex"):
        opened(tmp_path, seq_regex=regex)


def test_a_sequence_pattern_that_is_found_nowhere(tmp_path):
    refused(lambda: opened(tmp_path, seq_regex="(?P<seq>cam)"), "--seq-regex", "img0.png")


def test_turned_deep_and_printers_images(tmp_path):
    """EXIF orientation, 16 bits, CMYK, alpha: sizes are those of the picture as it is shown, and all are RGB."""
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40), "red").save(folder / "img0.jpg", exif=exif)
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(folder / "img1.png")
    Image.new("CMYK", (40, 30)).save(folder / "img2.jpg")
    Image.new("LA", (40, 30), (200, 10)).save(folder / "img3.png")
    data = coco_data()
    for image, suffix in zip(data["images"], ("jpg", "png", "jpg", "png"), strict=True):
        image["file_name"] = f"img{image['id']}.{suffix}"
    source = opened(tmp_path, data)
    assert [(record.width, record.height) for record in source.records] == [(40, 30)] * 4
    assert not source.problems.counts["resized"]
    pictures = [source.image(k) for k in range(4)]
    assert {(image.mode, image.size) for image in pictures} == {("RGB", (40, 30))}
    assert pictures[1].getpixel((0, 0)) == (155, 155, 155)
    assert json.loads((tmp_path / "train.json").read_text())
