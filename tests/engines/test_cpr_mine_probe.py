"""`effvl cpr-mine probe`: frames, sizes, and what cannot be used, by reason."""

import csv
import json
from pathlib import Path

from effvl_cli.data import video_index
from tests.data.video_files import greys, write_sound, write_video


def make_videos():
    write_video(Path("v/long.mkv"), greys(20))
    write_video(Path("v/short.mkv"), greys(5))
    write_sound(Path("v/sound.mkv"))
    Path("v/text.mp4").write_text("no video")


def test_reasons_and_what_is_kept(here, report, workdir, monkeypatch):
    make_videos()
    line = ("cpr-mine", "probe", "--data", "video:v", "--split", "train", "--frames", 8, "--cache-dir", "kept")
    outcome = here(*line, "--out", "r")
    assert "unusable: 1 open_failed, 1 no_video_stream" in outcome.out
    assert "too short: 1 with fewer than 6 frames" in outcome.out
    done = report("r")
    assert done.metrics["usable_share"].value == 0.25
    assert done.technique["reasons"] == {
        "open_failed": 1,
        "no_video_stream": 1,
        "zero_frames": 0,
        "too_short": 1,
        "decode_error": 0,
    }
    (split,) = done.technique["splits"]
    assert (split["frames"], split["frames_min"], split["frames_median"], split["sizes"]) == (
        25,
        5,
        12.5,
        {"64 x 48": 2},
    )
    assert done.data[0].bad_files == 2  # too short ones apart
    bad = json.loads(Path("r/bad_videos.json").read_text())
    assert [(row["id"], row["reason"]) for row in bad] == [
        ("short.mkv", "too_short"),
        ("sound.mkv", "no_video_stream"),
        ("text.mp4", "open_failed"),
    ]
    with Path("r/videos.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert (rows["long.mkv"]["frames"], rows["long.mkv"]["height"], rows["long.mkv"]["width"]) == ("20", "48", "64")
    monkeypatch.setattr(video_index, "index_video", lambda path: 1 / 0)  # later runs decode nothing
    here(*line, "--out", "again")
    assert report("again").technique["splits"] == done.technique["splits"]


def test_splits_and_mistakes(here, effvl, report, workdir):
    for split, count in (("train", 2), ("test", 1)):
        for number in range(count):
            write_video(Path(f"v/{split}/run/{number}.mkv"), greys(20))
    here("cpr-mine", "probe", "--data", "video:v", "--out", "r")
    found = [(row["split"], row["videos"]) for row in report("r").technique["splits"]]
    assert found == [("train", 2), ("val", 1), ("test", 1)] and report("r").technique["videos"] == 3
    here("cpr-mine", "probe", "--data", "video:v/test/run/0.mkv", "--split", "train", "--out", "one")
    found = report("one")
    assert (found.technique["videos"], found.technique["splits"][0]["frames"]) == (1, 20)
    assert found.data[0].name == "video:0"
    for data, code, said in (
        ("video:absent.mkv", 3, "no folder or table at absent.mkv"),
        ("video:absent", 3, "no folder or table at absent"),
        ("moving-shapes", 2, "not made of video"),
    ):
        outcome = effvl("cpr-mine", "probe", "--data", data)
        assert outcome.code == code and said in outcome.err
    assert "train" in here("cpr-mine", "probe", "--data", "video:v", "--dry-run").out
