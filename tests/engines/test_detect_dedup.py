"""`effvl detect dedup`: what is left, what is written of it, and images that two splits share."""

import json
from pathlib import Path

import pytest

from effvl_cli.engines.detect import dedup
from tests.engines.coco_files import scene, write_coco


def make(workdir: Path) -> None:
    """Three scenes of four frames each in train, and a validation frame that train has too."""

    def row(name, seed, noise=2.0, **more):
        pixels = scene(seed, 0.3 if seed == 2 else 1, noise) + 0
        return {"file_name": f"{name}.png", "pixels": pixels, "scene": f"scene_{seed}", **more}

    train = [
        row(f"{seed}_{k}", seed, noise=1.0 + k / 10, timeofday="night" if seed == 2 else "day")
        for seed in range(3)
        for k in range(4)
    ]
    train[1]["boxes"] = [[10, 10, 20, 15], [40, 20, 10, 10]]
    val = [row("v_0", 1, noise=1.7), row("v_1", 7)]
    write_coco(workdir / "set", {"train": train, "val": val, "test": [row("t_0", 8)]})


LINE = ("detect", "dedup", "--data", "coco:set", "--cache-dir", "kept")


def test_what_is_left(here, report, workdir):
    make(workdir)
    outcome = here(*LINE, "--out", "r")
    assert "all 3 sequences      12     5" in outcome.out
    done = report("r")
    assert (done.technique["n_in"], done.technique["n_kept"], done.technique["n_written"]) == (12, 5, 5)
    assert done.metrics["kept_share"].value == pytest.approx(5 / 12)
    kept = ["0_0.png", "0_1.png", "0_2.png", "1_0.png", "2_0.png"]  # 0_1 has a box more
    assert Path("r/kept.txt").read_text().split() == kept
    summary = json.loads(Path("r/dedup.json").read_text())
    assert {(row["file"], row["kept_as"]) for row in summary["skipped"]} == {
        ("0_3.png", "0_2.png"),
        *((f"{seed}_{k}.png", f"{seed}_0.png") for seed in (1, 2) for k in (1, 2, 3)),
    }
    assert (summary["hist_day"]["n"], summary["hist_night"]["n"]) == (6, 3)
    assert summary["params"]["distance"] == 0.02
    written = json.loads(Path("r/train.json").read_text())
    assert [Path(image["file_name"]).name for image in written["images"]] == kept
    assert len(written["annotations"]) == 6
    for name in ("adjacent-bits", "adjacent-distances"):
        assert Path(f"r/plots/{name}.png").is_file()
    before = Path("r/dedup.json").read_bytes()
    here(*LINE, "--out", "r", "--fresh")
    assert Path("r/dedup.json").read_bytes() == before


def test_what_is_written_can_be_read(here, report, workdir):
    make(workdir)
    here(*LINE, "--no-label-guard", "--out", "r")
    here("detect", "dedup", "--data", "coco:r/train.json", "--whole", "--out", "again")
    assert report("again").technique["n_in"] == 3
    assert [row["seq"] for row in report("again").technique["per_seq"]] == ["scene_0", "scene_1", "scene_2"]


def test_shared_images_are_exit_8(effvl, here, report, workdir):
    make(workdir)
    outcome = effvl(*LINE, "--leak-check", "val", "--out", "r")
    assert outcome.code == 8
    for part in ("1 of 5 images of train are in val too", "1_0.png", "--fix", "r/leaks.json"):
        assert part in outcome.error
    [row] = json.loads(Path("r/leaks.json").read_text())["shared"]
    assert (row["file"], row["is"]) == ("1_0.png", "val/v_0.png")
    assert row["distance"] < 0.05
    here(*LINE, "--leak-check", "val", "--allow-leaks", "--out", "s")
    assert report("s").metrics["leaks"].value == 1
    assert report("s").technique["n_written"] == 5
    outcome = here(*LINE, "--leak-check", "val", "--fix", "--out", "t")
    assert "4 are left without these" in outcome.out
    assert Path("t/kept.txt").read_text().split() == ["0_0.png", "0_1.png", "0_2.png", "2_0.png"]
    assert len(json.loads(Path("t/train.json").read_text())["images"]) == 4
    for other in ("test", "coco:set/test.json", "set/test.json"):
        here(*LINE, "--leak-check", other, "--out", "u", "--fresh")
        assert (report("u").metrics["leaks"].value, report("u").technique["leaks"]["n_against"]) == (0, 1)
    here(*LINE, "--leak-check", "test", "--signature", "dhash", "--tau", "64", "--out", "w")  # not by the hash alone
    assert report("w").metrics["leaks"].value == 0
    outcome = effvl(*LINE, "--leak-check", "set/val.json", "--out", "v")
    assert outcome.code == 8


def test_a_leak_check_that_cannot_help_is_refused(effvl, workdir, monkeypatch):
    make(workdir)
    outcome = effvl(*LINE, "--leak-check", "coco:set", "--fix", "--out", "r")  # which has the split itself
    assert outcome.code == 8
    assert "--fix would leave nothing: each image of train is in coco:set too; see r/leaks.json" in outcome.error
    assert not Path("r/train.json").exists()
    monkeypatch.setattr(dedup, "deduplicated", None)  # refused before the images are looked at
    outcome = effvl(*LINE, "--leak-check", "nowhere.json", "--out", "s")
    assert outcome.code == 3
    assert "no file or folder --leak-check nowhere.json" in outcome.error


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--split val", "--allow-eval"),
        ("--fix", "--leak-check"),
        ("--leak-check val --fix --allow-leaks", "Give one of them"),
        ("--whole --leak-check val", "Leave --whole out"),
        ("--signature dhash --tau 1.5", "whole number"),
        ("--keep 0", "--keep is 0"),
        ("--leak-check train", "--leak-check train is the split that is thinned out itself"),
        ("--signature hash", "--signature is hash"),
    ],
)
def test_mistakes(effvl, workdir, line, part):
    make(workdir)
    outcome = effvl(*LINE, *line.split())
    assert outcome.code == 2
    assert part in outcome.error


def test_a_preview(here, workdir):
    make(workdir)
    shown = here(*LINE, "--leak-check", "val", "--dry-run").out
    assert "# coco:set  train      12          3" in shown
    assert "# coco:set  val         2          2" in shown


def test_real_roads(here, report, workdir, test_data):
    """Frames of fixed cameras: by the hash alone more than half of them go, unless the label guard holds them."""
    line = ("detect", "dedup", "--data", f"coco:{test_data / 'road_daynight'}", "--split", "test", "--allow-eval")
    for more, kept in ((("--signature", "dhash", "--no-label-guard"), 39), (("--no-label-guard",), 53), ((), 66)):
        here(*line, "--cache-dir", "c", *more, "--out", "r", "--fresh")
        assert report("r").technique["n_kept"] == kept
