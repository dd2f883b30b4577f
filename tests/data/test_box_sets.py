"""YOLO, BDD100K, data sets of any format, and files of several sources."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from effvl_cli.core import used_data
from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import DataError, NoSplitError, UsageError
from effvl_cli.data import fingerprints
from effvl_cli.data.bdd import OLD_NAMES
from effvl_cli.data.box_sets import sniffed
from effvl_cli.data.boxes import Reading, load_boxes
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

WHOLE = Reading(whole=True)
LABELS = {"train/a": "0 0.5 0.5 0.25 0.2\n1 0.9 0.5 0.4 0.5\n", "train/b": "", "val/c": "1 0.5 0.5 1 1\n"}
PAGE = "path: .\ntrain: images/train\nval: images/val\nnames: {0: car, 1: person}\n"


@pytest.mark.parametrize("page", [PAGE, None])
def test_yolo(tmp_path, page):
    folder = write_yolo(tmp_path, LABELS, page)
    source = load_boxes(f"yolo:{folder}", "train", reading=WHOLE)
    assert source.classes == ("car", "person")
    assert [record.file for record in source.records] == ["images/train/a.png", "images/train/b.png"]
    # shares of 40x30 px: (0.5, 0.5, 0.25, 0.2) is (15, 12, 25, 18); the other goes 4 px beyond the right edge
    assert source.records[0].boxes.round(4).tolist() == [[15, 12, 25, 18], [28, 7.5, 40, 22.5]]
    assert source.records[0].labels.tolist() == [1, 2]
    assert source.records[1].boxes.shape == (0, 4)
    assert source.problems.counts["clipped"] == 1
    assert load_boxes(f"yolo:{folder}", "test").records[0].boxes.tolist() == [[0, 0, 40, 30]]


def test_yolo_as_exporters_write_it(tmp_path):
    write_yolo(tmp_path / "train", {"a": "0 0.5 0.5 0.2 0.2"})
    (tmp_path / "data.yaml").write_text("train: ../train/images\nnames: ['car', 'person']\nnc: 2\n")
    assert len(load_boxes(f"yolo:{tmp_path / 'data.yaml'}", "train", reading=WHOLE)) == 1


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.5 0.5 0.25 0.2 0.87", [15, 12, 25, 18]),  # a score
        ("0 0.25 0.2 0.5 0.1 0.75 0.5", [10, 3, 30, 15]),  # a triangle
        ("0 0.1 0.1 0.2 0.1 0.2 0.4 0.1 0.4", [4, 3, 8, 12]),  # four corners
    ],
)
def test_yolo_with_scores_and_polygons(tmp_path, line, box):
    source = load_boxes(f"yolo:{write_yolo(tmp_path, {'a': line})}", "train", reading=WHOLE)
    np.testing.assert_allclose(source.records[0].boxes, [box], atol=1e-4)


def test_yolo_side_by_side_as_labelimg_writes_it(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.25 0.2\n")
    (tmp_path / "classes.txt").write_text("car\nperson\n")
    source = load_boxes(f"boxes:{tmp_path}", "train", reading=WHOLE)
    assert source.classes == ("car", "person")
    assert [record.labels.tolist() for record in source.records] == [[2], []]


def test_yolo_of_darknet(tmp_path):
    """Paths start from where Darknet is run, so that exporters write data/ before all of them."""
    picture(tmp_path / "obj_train_data" / "a.png")
    (tmp_path / "obj_train_data" / "a.txt").write_text("0 0.5 0.5 0.25 0.2\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.png\n")
    (tmp_path / "obj.names").write_text("car\n")
    (tmp_path / "obj.data").write_text(
        "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    )
    for place in (tmp_path, tmp_path / "obj.data"):
        source = load_boxes(f"boxes:{place}", "train", reading=WHOLE)
        assert source.classes == ("car",)
        assert source.records[0].boxes.round(4).tolist() == [[15, 12, 25, 18]]


def test_yolo_by_a_list_of_files(tmp_path):
    folder = write_yolo(tmp_path, LABELS, "train: train.txt\nval: images/val\nnames: [car, person]\n")
    (folder / "train.txt").write_text("images/train/a.png\n")
    assert len(load_boxes(f"yolo:{folder}", "train", reading=WHOLE)) == 1


def test_bdd(tmp_path):
    frames = [
        bdd_frame(
            "a.jpg",
            bdd_label("pedestrian", (1, 2, 11, 22)),
            bdd_label("car", (5, 5, 9, 9), attributes={"crowd": True}),
            {"category": "lane", "poly2d": [{}]},
            attributes={"timeofday": "night"},
            videoName="v1",
            frameIndex=4,
        ),
        bdd_frame("b.jpg", attributes={"timeofday": "dawn/dusk"}),
        bdd_frame("c.jpg", bdd_label("bicycle", (1, 2, 11, 22)), attributes={"timeofday": "daytime"}),
    ]
    source = load_boxes(f"bdd:{write_bdd(tmp_path, frames)}", "train", reading=WHOLE)
    assert len(source.classes) == 10
    first, second, third = source.records
    assert first.boxes.tolist() == [[1, 2, 11, 22], [5, 5, 9, 9]]
    assert [source.classes[label - 1] for label in first.labels] == ["pedestrian", "car"]
    assert first.ignore.tolist() == [False, True]
    assert (first.seq, first.frame, first.time) == ("v1", 4, "night")
    assert (second.time, third.time) == (None, "day")
    mapped = load_boxes(f"bdd:{tmp_path}", "train", reading=Reading(whole=True, map="bdd100k-4"))
    assert mapped.classes == ("pedestrian", "vehicle", "scooter", "bicycle")
    assert mapped.records[2].labels.tolist() == [4]


def test_bdd_of_a_file_for_each_image(tmp_path):
    """As the first release has it; a lane has no box."""
    for split, count in (("train", 3), ("val", 2)):
        for k in range(count):
            box = {"category": "motor", "id": 0, "box2d": {"x1": 1, "y1": 2, "x2": 9.5, "y2": 20}}
            lane = {"category": "lane/crosswalk", "id": 1, "poly2d": [[1.0, 2.0, "L"]]}
            page = {"name": f"{split}{k}-ab", "frames": [{"timestamp": 10000, "objects": [box, lane][k % 2 :]}]}
            page["attributes"] = {"weather": "clear", "timeofday": "night" if k else "daytime"}
            path = tmp_path / "labels" / "100k" / split / f"{split}{k}-ab.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(page))
            picture(tmp_path / "images" / "100k" / split / f"{split}{k}-ab.jpg")
    train, val = (load_boxes(f"boxes:{tmp_path}", split) for split in ("train", "val"))
    assert ([r.file for r in train.records], len(val)) == (["train0-ab.jpg", "train1-ab.jpg", "train2-ab.jpg"], 2)
    assert train.records[0].boxes.tolist() == [[1, 2, 9.5, 20]]
    assert [len(record.boxes) for record in train.records] == [1, 0, 1]
    assert [record.time for record in train.records] == ["day", "night", "night"]
    assert train.classes == OLD_NAMES and train.classes[train.records[0].labels[0] - 1] == "motor"
    alone = load_boxes(f"bdd:{tmp_path / 'labels' / '100k' / 'val'}", "val")
    assert [record.path for record in alone.records] == [record.path for record in val.records]
    chosen = load_boxes(f"bdd:{tmp_path},train=labels/100k/val", "train", reading=Reading(whole=True))
    assert [record.file for record in chosen.records] == ["val0-ab.jpg", "val1-ab.jpg"]
    path.write_text('{"name": "x", "frames": [{"objects": 7}]}')
    with pytest.raises(DataError, match="no list of frames"):
        load_boxes(f"bdd:{tmp_path}", "val")
    path.write_text('{"name": "x"}')
    with pytest.raises(DataError, match=r"val1-ab\.json has no frame with objects"):
        load_boxes(f"bdd:{tmp_path}", "val")


def test_formats_are_told_by_what_files_hold(tmp_path):
    write_coco(tmp_path / "coco")
    write_voc(tmp_path / "voc", {"a": voc_object("car", (1, 1, 9, 9))})
    write_yolo(tmp_path / "yolo", {"a": "0 0.5 0.5 0.2 0.2"})
    write_bdd(tmp_path / "bdd", [bdd_frame("a.jpg", bdd_label("car", (1, 1, 9, 9)))])
    for name in ("coco", "voc", "yolo", "bdd"):
        assert sniffed(tmp_path / name) == name
        assert load_boxes(f"boxes:{name}", "train", root=tmp_path, reading=WHOLE).kind == "boxes"
    assert sniffed(tmp_path / "coco" / "train.json") == "coco"
    assert sniffed(tmp_path / "bdd" / "labels" / "det_20" / "det_train.json") == "bdd"
    with pytest.raises(DataError, match="nowhere"):
        sniffed(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"classes\.txt"):
        load_boxes(f"boxes:{tmp_path / 'coco'}", "train", reading=Reading(format="yolo"))
    with pytest.raises(UsageError, match="--format yolo"):
        load_boxes(f"coco:{tmp_path / 'coco'}", "train", reading=Reading(format="yolo"))


MIX = """
classes: [vehicle, pedestrian]
sources:
  - {name: own, root: coco, ann: train.json, ratio: 0.7, map: {car: vehicle, person: pedestrian}, dedup: false}
  - {name: outside, root: voc, format: voc, ratio: 0.3, map: {car: vehicle, '*': drop}, time: day, labelled: [vehicle]}
  - {name: drawn, data: 'road-scenes:scenes=3', ratio: 0, map: {vehicle: vehicle, pedestrian: pedestrian, '*': ignore}}
"""


def mix(tmp_path, text=MIX):
    write_coco(tmp_path / "coco", coco_data(20))
    pages = {f"p{k:02d}": voc_object("car", (2, 2, 9, 9)) + voc_object("dog", (3, 3, 9, 9)) for k in range(3)}
    write_voc(tmp_path / "voc", pages, {"train": "\n".join(pages), "val": "p00", "test": "p00"})
    (tmp_path / "mix.yaml").write_text(text)
    return f"boxes:{tmp_path / 'mix.yaml'}", Reading(cache=Cache(tmp_path / "cache"))


def test_sources_are_mixed_with_their_own_maps(tmp_path):
    spec, reading = mix(tmp_path)
    source = load_boxes(spec, "train", reading=reading)
    assert source.classes == ("vehicle", "pedestrian")
    assert [(info.name, info.ratio, info.dedup) for info in source.sources] == [
        ("own", 0.7, False),
        ("outside", 0.3, True),
        ("drawn", 0.0, True),
    ]
    assert [row["n_images"] for row in source.summary()] == [16, 3, 3]
    outside = next(record for record in source.records if record.source == "outside")
    assert outside.labels.tolist() == [1]
    assert (outside.time, outside.labelled) == ("day", (1,))
    assert [record.image_id for record in source.records] == list(range(1, 23))
    assert len(set(source.ids)) == 22
    assert source.image(21).size == (256, 160)
    assert source.image(17).size == (40, 30)
    assert source.fingerprint() == load_boxes(spec, "train", reading=reading).fingerprint()


def test_only_the_first_source_is_evaluated_unless_another_asks_for_it(tmp_path):
    spec, reading = mix(tmp_path)
    assert {record.source for record in load_boxes(spec, "test", reading=reading).records} == {"own"}
    spec, reading = mix(tmp_path, MIX.replace("ratio: 0.3", "ratio: 0.3, eval: true"))
    assert {record.source for record in load_boxes(spec, "test", reading=reading).records} == {"own", "outside"}


def test_relative_folders_start_from_the_data_root(tmp_path, monkeypatch):
    mix(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "mix.yaml").rename(tmp_path / "lists" / "mix.yaml")
    monkeypatch.chdir(tmp_path)
    reading = Reading(cache=Cache(tmp_path / "cache"))
    assert len(load_boxes("boxes:lists/mix.yaml", "train", root=tmp_path, reading=reading)) == 22
    monkeypatch.chdir(tmp_path / "lists")
    assert len(load_boxes("boxes:mix.yaml", "train", root=tmp_path, reading=reading)) == 22


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("classes: [vehicle, pedestrian]", "", "classes"),
        ("ratio: 0.7", "ratio: -1", "ratio"),
        ("ratio: 0.7", "rate: 0.7", "rate"),
        ("root: coco, ", "", "root or data"),
        ("name: outside", "name: own", "own"),
        ("car: vehicle, person: pedestrian", "car: vehicle", "person"),
        ("labelled: [vehicle]", "labelled: [dog]", "dog"),
        ("time: day", "time: dusk", "dusk"),
        ("root: coco", "root: none", "none"),
        ("ratio: 0.7", "ratio: half", r"'half'\. Give a number from 0 on"),
        ("time: day", "time: dusk", "Give day or night"),
        ("[vehicle, pedestrian]", "[vehicle, pedestrian, vehicle]", "classes that stand more than once: vehicle"),
        ("[vehicle, pedestrian]", "[vehicle, pedestrian, ignore]", "'ignore' is no name of a class"),
        ("[vehicle, pedestrian]", "[vehicle, [pedestrian]]", "is no name of a class"),
        ("{car: vehicle, person: pedestrian}", "[car, person]", "map is .* Give the name of a class map"),
        ("person: pedestrian}", "person: }", "map is"),
        ("ann: train.json", "ann: [train.json]", "ann is .* Give a file or"),
        ("ann: train.json", "ann: {training: train.json}", "ann is .* one for each of train, val, test"),
        ("labelled: [vehicle]", "labelled: []", "labelled is"),
        ("root: coco", "root: ", "root is ''"),
        ("name: drawn, ", "name: drawn, format: coco, ", "has data and format"),
        ("data: 'road-scenes:scenes=3'", "data: 'boxes:mix.yaml'", "itself mixed of several"),
        ("root: voc, format: voc", "root: mix.yaml", "itself mixed of several"),
    ],
)
def test_faults_of_a_file_of_sources_name_it(tmp_path, old, new, word):
    spec, reading = mix(tmp_path, MIX.replace(old, new))
    with pytest.raises(DataError, match=word) as caught:
        load_boxes(spec, "train", reading=reading)
    assert "mix.yaml" in str(caught.value)
    assert caught.value.exit_code == 3


def test_sources_that_are_measured_alone_need_no_training_images(tmp_path):
    """A split that the first source lacks is missing; one that an outside source lacks is a fault of the file."""
    mix(tmp_path)
    write_coco(tmp_path / "far", coco_data(4), "test.json")
    line = "  - {name: far, root: far, eval: true, ratio: 0, map: {car: vehicle, person: pedestrian}}\n"
    spec, reading = mix(tmp_path, MIX + line)
    found = {split: load_boxes(spec, split, reading=reading) for split in ("train", "val", "test")}
    assert [[info.name for info in source.sources] for source in found.values()] == [
        ["own", "outside", "drawn"],
        ["own"],
        ["own", "far"],
    ]
    assert "far has no images for split train" in found["train"].remark
    spec, reading = mix(tmp_path, MIX + line.replace("ratio: 0, ", ""))
    with pytest.raises(DataError, match=r"'far': no annotations of split train\. .*eval: true and ratio: 0") as caught:
        load_boxes(spec, "train", reading=reading)
    assert not isinstance(caught.value, NoSplitError)
    first = "classes: [vehicle, pedestrian]\nsources:\n" + line + MIX.split("sources:\n")[1]
    spec, reading = mix(tmp_path, first)
    with pytest.raises(NoSplitError, match="'far': no annotations of split train"):
        load_boxes(spec, "train", reading=reading)


def test_what_contradicts_itself_between_sources_is_told(tmp_path):
    spec, reading = mix(
        tmp_path, MIX.replace("ratio: 0.3, ", "").replace("labelled: [vehicle]", "labelled: [pedestrian]")
    )
    remark = load_boxes(spec, "train", reading=reading).remark
    assert "outside has no ratio beside sources that have one, and none of its images is drawn" in remark
    assert "outside has boxes of vehicle (3), which labelled does not name" in remark
    assert "own has" not in remark
    again = "  - {name: again, root: voc, map: {car: vehicle, '*': drop}, time: day, labelled: [vehicle]}\n"
    spec, reading = mix(tmp_path, MIX + again)
    assert "outside and again have 3 images in common" in load_boxes(spec, "train", reading=reading).remark
    spec, reading = mix(tmp_path, MIX + again.replace("day", "night"))
    with pytest.raises(DataError, match="is of the day in source 'outside' and of the night in 'again'"):
        load_boxes(spec, "train", reading=reading)


def test_boxes_of_no_class_as_convert_writes_them_stay_such_in_a_mix(tmp_path):
    data = coco_data(4)
    data["categories"][1]["name"] = "ignore"
    write_coco(tmp_path / "set", data)
    text = "classes: [car]\nsources:\n  - {name: own, root: set}\n"
    spec, reading = mix(tmp_path, text)
    source = load_boxes(spec, "train", reading=replace(reading, whole=True))
    assert source.classes == ("car",)
    assert sum(int(record.ignore.sum()) for record in source.records) > 0


def test_annotation_files_can_be_chosen_for_each_split(tmp_path):
    write_coco(tmp_path, coco_data(4), "a.json")
    write_coco(tmp_path, coco_data(3), "b.json")
    spec = f"coco:{tmp_path},train=a.json,val=b.json,test=b.json"
    assert [len(load_boxes(spec, split)) for split in ("train", "val", "test")] == [4, 3, 3]
    assert json.loads((tmp_path / "a.json").read_text())["images"]


def test_classes_that_a_source_does_not_annotate_are_remarked(tmp_path):
    spec, reading = mix(tmp_path, MIX.replace(", labelled: [vehicle]", ""))
    remark = load_boxes(spec, "train", reading=reading).remark
    assert "outside has no box of pedestrian" in remark
    assert "drawn" not in remark  # it is not drawn from
    spec, reading = mix(tmp_path)
    assert "no box" not in load_boxes(spec, "train", reading=reading).remark


def test_a_fingerprint_does_not_depend_on_how_things_are_read(tmp_path):
    """Else a resumed run, which looks at the data as they are, would find them changed."""
    folder = write_coco(tmp_path / "coco", coco_data(120)).parent
    write_yolo(folder, {"a": "0 0.5 0.5 0.2 0.2"}, PAGE)  # both formats
    (folder / "images" / "img7.png").unlink()
    reading = Reading(
        format="coco", map="car=vehicle,person=ignore", seq_regex=r"img(?P<seq>\d)", on_bad="skip", drop_empty=True
    )
    for split in ("train", "val", "test"):
        source = load_boxes("boxes:coco", split, root=tmp_path, reading=reading)
        row = used_data.row_of(source, source.fingerprint())
        assert fingerprints(row["spec"], row["root"])[split] == row["fingerprint"]
    whole = load_boxes("coco:coco", "train", root=tmp_path, reading=Reading(whole=True, on_bad="skip"))
    before = fingerprints("coco:coco", tmp_path)
    assert before["train"] == whole.fingerprint()
    os.utime(folder / "images" / "img8.png", (1, 1))
    assert fingerprints("coco:coco", tmp_path)["train"] != before["train"]


def test_a_fingerprint_of_mixed_sources_and_of_lists(tmp_path):
    spec, reading = mix(tmp_path)
    for name in (spec, f"voc:{tmp_path / 'voc'}"):
        now = fingerprints(name)
        for split in ("train", "test"):
            assert now[split] == load_boxes(name, split, reading=reading).fingerprint()
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text("p00")
    assert fingerprints(name)["train"] != now["train"]
