"""`effvl detect tag`: the list, its accuracy, its picture, and that other commands can read it."""

import csv
from pathlib import Path

import pytest

from tests.engines.coco_files import scene, write_coco


def make(workdir: Path) -> None:
    def row(split, number, light, said, seq):
        return {
            "file_name": f"{split}_{number}.png",
            "pixels": scene(number, light),
            **({"timeofday": said} if said else {}),
            "scene": f"{split}_{seq}",
        }

    train = [
        row("train", k, 0.2 if k < 4 else 1, ("night" if k < 4 else "daytime") if k != 7 else None, k // 4)
        for k in range(8)
    ]
    train[3] = row("train", 3, 1, "night", 0)  # a bright frame by night: outvoted
    test = [row("test", k, 0.2, "night", 0) for k in range(2)] + [row("test", 2, 1, "day", 1)]
    write_coco(workdir / "set", {"train": train, "test": test, "val": [row("val", 0, 1, None, 0)]})


def test_tags_and_their_accuracy(here, report, workdir):
    make(workdir)
    outcome = here("detect", "tag", "--data", "coco:set", "--out", "r")
    assert "pixels say what metadata say" in outcome.out
    [total] = [line.split() for line in outcome.out.splitlines() if line.startswith("all ")]
    assert total[:4] == ["all", "12", "5", "6"]
    done = report("r")
    rows = {row["split"]: row for row in done.technique["splits"]}
    assert (rows["train"]["day"], rows["train"]["night"], rows["train"]["sequences"]) == (4, 4, 2)
    assert rows["train"]["rules"] == {"metadata": 7, "pixels": 1}
    assert rows["train"]["agree"]["frame"]["median"] == [6, 7]
    assert rows["train"]["agree"]["seq"]["median"] == [7, 7]
    assert rows["val"]["agree"] == {}
    assert done.metrics["accuracy_median_by_frame"].value == pytest.approx(9 / 10)
    assert done.metrics["accuracy_median_by_seq"].value == 1
    assert done.metrics["accuracy_median_by_seq"].n == 10
    with Path("r/tags.csv").open() as file:
        tags = {row["file"]: row for row in csv.DictReader(file)}
    assert (tags["train_3.png"]["time"], tags["train_3.png"]["rule"]) == ("night", "metadata")
    assert (tags["train_7.png"]["time"], tags["train_7.png"]["rule"], tags["train_7.png"]["metadata"]) == (
        "day",
        "pixels",
        "",
    )
    assert float(tags["train_0.png"]["median"]) < 40 < 90 < float(tags["train_3.png"]["median"])
    assert Path("r/plots/luminance.png").is_file()
    assert "luminance" in Path("r/report.html").read_text()


def test_pixels_alone_and_the_list_in_place_of_them(here, report, workdir):
    make(workdir)
    line = ("detect", "tag", "--data", "coco:set", "--split", "train")
    here(*line, "--time-from", "pixels", "--night-vote", "frame", "--out", "pixels")
    assert report("pixels").technique["splits"][0]["rules"] == {"pixels": 8}
    assert report("pixels").metrics["night_share"].value == 3 / 8
    assert report("pixels").technique["splits"][0]["outvoted"] == 0
    outcome = here(*line, "--time-from", "pixels", "--out", "voted")
    assert report("voted").metrics["night_share"].value == 4 / 8
    assert report("voted").technique["splits"][0]["outvoted"] == 1
    assert "1 image outvoted by the others of their sequence" in outcome.out
    here(*line, "--time-csv", "pixels/tags.csv", "--out", "listed")
    assert report("listed").technique["splits"][0]["rules"] == {"list": 8}
    assert report("listed").metrics["night_share"].value == 3 / 8


def test_a_split_that_is_missing_is_left_out_and_one_with_a_fault_stops_the_command(effvl, here, report, workdir):
    make(workdir)
    Path("set/val.json").write_text('{"images": [], "annotations": [], "categories": []}')
    here("detect", "tag", "--data", "coco:set", "--out", "r")
    assert [row["split"] for row in report("r").technique["splits"]] == ["train", "test"]
    assert "split val of coco:set is left out" in report("r").warnings[0]
    Path("set/val.json").write_text("{")
    for verb in (("tag",), ("convert", "--check-only"), ("dedup", "--leak-check", "coco:set")):
        outcome = effvl("detect", *verb, "--data", "coco:set", "--out", "s")
        assert outcome.code == 3
        assert "val.json" in outcome.error


def test_images_of_two_splits_count_once_and_remarks_are_on_the_terminal(here, report, workdir):
    make(workdir)
    Path("set/test.json").unlink()
    outcome = here("detect", "tag", "--data", "coco:set", "--out", "r")
    assert [row["split"] for row in report("r").technique["splits"]] == ["train", "val"]
    assert "split test of coco:set is left out: it has the images of val" in outcome.err
    outcome = here("detect", "tag", "--data", "coco:set", "--split", "test", "--out", "s")
    assert [row["images"] for row in report("s").technique["splits"]] == [1]
    (text,) = [line for line in outcome.err.splitlines() if line.startswith("warning")]
    assert "split test: no test images are named: those called val are measured" in text
    assert report("s").warnings == [text.removeprefix("warning: ")]


def test_a_preview_and_mistakes(effvl, here, workdir):
    make(workdir)
    assert "# train       8          1" in here("detect", "tag", "--data", "coco:set", "--dry-run").out
    for option, value, part in (
        ("--night-thresh", "light", "--night-thresh is light"),
        ("--night-thresh", "300", "--night-thresh is 300"),
        ("--night-regex", "(", "--night-regex ( is no regular expression"),
    ):
        outcome = effvl("detect", "tag", "--data", "coco:set", option, value)
        assert outcome.code == 2
        assert part in outcome.error


def test_the_given_times_of_real_roads(here, report, workdir, test_data):
    here("detect", "tag", "--data", f"coco:{test_data / 'road_daynight'}", "--split", "test", "--out", "r")
    done = report("r")
    for name in ("accuracy_median_by_frame", "accuracy_median_by_seq", "accuracy_sky_by_frame"):
        assert (done.metrics[name].value, done.metrics[name].n) == (1, 66)
