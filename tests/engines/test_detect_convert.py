"""`effvl detect convert`: what was read is written, and reads as the same again; faults stop it or are shown."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from effvl_cli.core.cache import Cache
from effvl_cli.core.run import Run
from effvl_cli.data.box_writers import coco_json, yolo_lines
from effvl_cli.data.boxes import Reading, load_boxes
from effvl_cli.engines.detect import convert
from tests.data.box_files import coco_data, voc_object, write_coco, write_voc

WHOLE = Reading(whole=True)


def rich():
    """COCO data with all the keys that are kept."""
    data = coco_data(3)
    data["images"][0] |= {"timeofday": "night", "sequence": "north", "frame_id": 4}
    data["images"][1] |= {"timeofday": "day", "sequence": "north", "frame_id": 5}
    data["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 0, "bbox": [5.25, 6.5, 10.13, 12.0], "area": 60.5, "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 7, "bbox": [1.0, 2.0, 4.0, 8.5], "area": 34.0, "iscrowd": 1},
        {
            "id": 3,
            "image_id": 2,
            "category_id": 7,
            "bbox": [1.0, 2.0, 4.0, 8.5],
            "area": 34.0,
            "iscrowd": 0,
            "ignore": 1,
        },
    ]
    return data


def test_coco_is_written_as_it_was_read(tmp_path):
    data = rich()
    source = load_boxes(f"coco:{write_coco(tmp_path, data)}", "train", reading=WHOLE)
    written = coco_json(source)
    assert written["annotations"] == data["annotations"]
    assert written["categories"] == data["categories"]
    for row, original in zip(written["images"], data["images"], strict=True):
        assert original.items() <= row.items()


def same(one, other):
    assert one.classes == other.classes
    for left, right in zip(one.records, other.records, strict=True):
        np.testing.assert_allclose(left.boxes, right.boxes, atol=1e-3)
        assert left.labels.tolist() == right.labels.tolist()
        assert left.ignore.tolist() == right.ignore.tolist()
        assert (left.frame, left.time, left.image_id) == (right.frame, right.time, right.image_id)
        assert left.seq_known == right.seq_known
        assert left.seq == right.seq or not left.seq_known  # of names, those of the written files count


def test_command_writes_coco_with_links_that_reads_again(here, report, workdir):
    write_coco(workdir / "set", rich())
    write_coco(workdir / "set", rich(), "val.json")
    write_coco(workdir / "set", rich(), "test.json")
    outcome = here("detect", "convert", "--data", "coco:set", "--out", "r")
    assert "person" in outcome.out
    done = report("r")
    assert done.metrics["images"].value == 9
    assert [row["split"] for row in done.technique["splits"]] == ["train", "val", "test"]
    assert Path("r/data/images/train/img0.png").is_symlink()
    for split in ("train", "val", "test"):
        again = load_boxes("boxes:r/data", split)
        same(load_boxes("coco:set", split), again)
        assert again.category_ids == (0, 7)
        assert again.image(0).size == (40, 30)


def test_command_maps_classes_and_keeps_ignore_boxes_of_no_class(here, workdir):
    write_coco(workdir / "set", coco_data(4))
    arguments = ("--data", "coco:set/train.json", "--map", "car=vehicle,person=ignore", "--split", "train")
    here("detect", "convert", *arguments, "--out", "r")
    categories = json.loads(Path("r/data/train.json").read_text())["categories"]
    assert categories == [{"id": 1, "name": "vehicle"}, {"id": 2, "name": "ignore"}]
    again = load_boxes("coco:r/data", "train", reading=WHOLE)
    assert again.classes == ("vehicle",)
    assert again.category_ids == (1,)
    assert any(record.ignore.any() for record in again.records)


def test_command_writes_yolo_that_reads_again(here, report, workdir):
    pages = {f"p{k}": voc_object("car", (1 + k, 3, 20, 17)) + voc_object("dog", (2, 2, 9, 30)) for k in range(3)}
    pages["p2"] += voc_object("dog", (4, 4, 9, 9), "<difficult>1</difficult>")
    write_voc(workdir / "set", pages, {"train": "p0\np1\np2", "val": "p0", "test": "p1"})
    here("detect", "convert", "--data", "voc:set", "--to", "yolo", "--images", "copy", "--out", "r")
    assert any("1 ignore boxes are left out" in text for text in report("r").warnings)
    assert not Path("r/data/images/train/p0.jpg").is_symlink()
    first, again = (load_boxes(spec, "train") for spec in ("voc:set", "boxes:r/data"))
    assert again.name == "yolo:data"
    for left, right in zip(first.records, again.records, strict=True):
        np.testing.assert_allclose(left.boxes[~left.ignore], right.boxes, atol=1e-3)
        assert left.labels[~left.ignore].tolist() == right.labels.tolist()


def test_many_classes_do_not_widen_the_table():
    rows = [
        {
            **{"split": split, "name": "set", "n_images": 3, "n_boxes": 66, "n_ignore": 0, "n_day": 2, "n_night": 1},
            "n_untagged": 0,
            "per_class": {f"c{k}": k + (split == "val") for k in range(12)},
        }
        for split in ("train", "val")
    ]
    table = convert._table("title", rows, {})
    assert table.columns[4:-4] == (*(f"c{k}" for k in range(4, 12)), "4 others")
    assert [row[4:-4] for row in table.rows] == [(*range(4, 12), 0 + 1 + 2 + 3), (*range(5, 13), 1 + 2 + 3 + 4)]
    few = [{**row, "per_class": {"a": 1, "b": 2}} for row in rows]
    assert convert._table("title", few, {}).columns[4:-4] == ("a", "b")


def test_drawn_scenes_become_files(here, workdir):
    spec = "road-scenes:scenes=3,val=1,test=1"
    here("detect", "convert", "--data", spec, "--split", "train", "--out", "r", "--cache-dir", "c")
    again = load_boxes("coco:r/data", "train", reading=WHOLE)
    scenes = load_boxes(spec, "train", reading=Reading(cache=Cache("c")))
    same(scenes, again)
    assert again.image(2).tobytes() == scenes.image(2).tobytes()


def test_a_check_counts_and_writes_nothing(here, report, workdir):
    data = coco_data(200)
    data["annotations"][0]["bbox"] = [35, 5, 10, 10]
    data["annotations"][1]["bbox"] = [35, 5, 0, 10]
    write_coco(workdir / "set", data)
    outcome = here("detect", "convert", "--data", "coco:set", "--check-only", "--out", "r")
    assert "1 clipped" in outcome.out
    assert "img1.png [35.0, 5.0, 35.0, 15.0]" in outcome.out
    assert not Path("r/data").exists()
    done = report("r")
    assert sum(row["n_images"] for row in done.technique["splits"]) == 200
    assert sum(found.get("clipped", {"count": 0})["count"] for found in done.technique["problems"].values()) == 1


def test_a_check_decodes_every_image(effvl, here, report, workdir):
    data = coco_data(6)
    for image in data["images"]:
        image["file_name"] = image["file_name"].replace("png", "jpg")
    path = write_coco(workdir / "set", data, "train.json")
    write_coco(workdir / "set", data, "test.json")
    for name in ("img1.jpg", "img4.jpg"):
        whole = (path.parent / "images" / name).read_bytes()
        (path.parent / "images" / name).write_bytes(whole[: len(whole) // 2])
    line = ("detect", "convert", "--data", "coco:set", "--split", "test", "--check-only")
    outcome = effvl(*line, "--out", "r")
    assert outcome.code == 3
    for part in ("2 of 6 images cannot be decoded", "img1.jpg", "img4.jpg", "--on-bad skip"):
        assert part in outcome.error
    outcome = here(*line, "--on-bad", "skip", "--out", "s")
    assert "test: 2 damaged, e.g." in outcome.out
    assert report("s").technique["problems"]["test"]["damaged"]["count"] == 2
    assert report("s").data[0].bad_files == 2
    assert "decode every image" in " ".join(effvl("detect", "convert", "--help").out.split())


def test_day_and_night_are_counted_where_they_are_said(here, report, workdir):
    plain, said = coco_data(3), coco_data(3)
    said["images"][0]["timeofday"] = "night"
    for name, data in (("plain", plain), ("said", said)):
        for split in ("train", "val", "test"):
            write_coco(workdir / name, data, f"{split}.json")
        here("detect", "convert", "--data", f"coco:{name}", "--check-only", "--out", f"r_{name}")
    counts = ("n_day", "n_night", "n_untagged")
    of = lambda name: [[row[key] for key in counts] for row in report(f"r_{name}").technique["splits"]]  # noqa: E731
    assert of("plain") == [[None, None, 3]] * 3
    assert of("said") == [[0, 1, 2]] * 3


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_a_conversion_stops_when_it_is_asked_to(effvl, workdir, monkeypatch, kind):
    write_coco(workdir / "set", coco_data(10))
    heard = iter([0, 0, signal.SIGTERM])
    monkeypatch.setattr(Run, "stop_signal", lambda self: next(heard))
    outcome = effvl("detect", "convert", "--data", "coco:set", "--split", "train", "--to", kind, "--out", "r")
    assert outcome.code == 75
    assert len(list(Path("r/data").rglob("*.*"))) <= 3


def test_faults_end_with_exit_code_3_and_the_name_of_the_file(effvl, workdir):
    (workdir / "empty.json").write_text("")
    data = coco_data()
    (workdir / "set" / "images").mkdir(parents=True)
    (workdir / "set" / "train.json").write_text(json.dumps(data))
    for spec, word in (("coco:empty.json", "empty.json"), ("coco:set", "img0.png is missing"), ("voc:none", "none")):
        outcome = effvl("detect", "convert", "--data", spec, "--check-only")
        assert outcome.code == 3
        assert word in outcome.err
    assert effvl("detect", "convert", "--data", "coco:set", "--format", "yolo").code == 2


def test_yolo_lines_are_shares_of_the_image(tmp_path):
    record = load_boxes(f"coco:{write_coco(tmp_path)}", "train", reading=WHOLE).records[1]
    assert yolo_lines(record) == ("0 0.250000 0.400000 0.250000 0.400000\n", 0)


def test_the_length_of_an_epoch_can_be_given(here, workdir):
    data = ("--data", "road-scenes:scenes=12,val=2,test=2", "--cache-dir", "c")
    outcome = here("detect", "train", *data, "--epoch-size", 8, "--epochs", 3, "--batch-size", 4, "--dry-run")
    assert "6 steps of 4 images" in outcome.out
