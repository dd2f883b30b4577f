"""`cpr-mine embed` and `eval` through the command line, on small encoders and a small data set."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from effvl_cli.engines.common.view_folder import read_views
from effvl_cli.engines.cpr_mine import window_features
from effvl_cli.models import network as networks
from effvl_cli.models.clip_encoders import ClipInput, load_encoder, save_encoder
from tests.data.video_files import write_video
from tests.engines import few_clips


@pytest.fixture(autouse=True)
def _data(monkeypatch):
    few_clips.register(monkeypatch)


@pytest.fixture
def encoders(tmp_path):
    """--weights of two random encoders."""
    for view, channels in (("rgb", ""), ("gradflow", ":channels=2")):
        network = networks.build(f"tiny3d{channels}", seed=1)
        save_encoder(tmp_path / view, network, ClipInput(view, 6, size=20, crop=20))
    return f"rgb={tmp_path / 'rgb'},gradflow={tmp_path / 'gradflow'}"


def test_embeddings_are_those_of_the_middle_clips(here, report, encoders):
    here("cpr-mine", "embed", "--weights", encoders, "--data", "few-clips", "--windows", "center", "--out", "run")
    found = read_views(Path("run"))
    source = few_clips.build("", "train")
    assert list(found.views) == ["rgb", "gradflow"] and list(found.ids) == source.ids
    assert np.load(found.labels).tolist() == source.labels.tolist()
    assert np.load(found.groups).tolist() == source.groups.tolist()
    network, _ = load_encoder(encoders.split(",")[0].partition("=")[2], default="s3d")
    rows = np.load(found.views["rgb"])
    frames = torch.from_numpy(source.read(5, 3, 6))[:, 2:22, 2:22]
    with torch.no_grad():
        clip = frames.permute(3, 0, 1, 2)[None].float() / 255
        expected = network.module.eval()(clip)[0]
    torch.testing.assert_close(torch.from_numpy(rows[5]), expected, atol=1e-5, rtol=1e-4)
    assert found.about["data"] == "few-clips" and found.about["of"]["gradflow"]["frames"] == 6
    assert set(report("run").metrics) == {"nearest_class_rgb", "nearest_class_flow"}


def test_windows_are_rows_of_their_own_or_a_mean(here, encoders):
    common = (
        "cpr-mine",
        "embed",
        "--weights",
        encoders,
        "--data",
        "few-clips",
        "--layer",
        "features",
        "--views",
        "rgb",
    )
    here(*common, "--window-step", 2, "--out", "mean")
    here(*common, "--window-step", 2, "--window-ids", "--out", "rows")
    mean, rows = (read_views(Path(name)) for name in ("mean", "rows"))
    assert list(rows.ids[:5]) == ["train000#0", "train000#2", "train000#4", "train000#6", "train001#0"]
    each = np.load(rows.views["rgb"]).reshape(40, 4, 48)
    np.testing.assert_allclose(np.load(mean.views["rgb"]), each.mean(1), atol=1e-5)
    assert np.load(rows.groups)[:5].tolist() == [0, 0, 0, 0, 1]


def test_two_windows_of_a_video_find_each_other(here, report, encoders):
    here(
        "cpr-mine",
        "embed",
        "--weights",
        encoders,
        "--data",
        "few-clips",
        "--window-ids",
        "--window-step",
        3,
        "--out",
        "run",
    )
    metric = report("run").metrics["window_r1_rgb"]
    assert metric.n == 120 and metric.value > 0.2  # the ground tells a video
    assert report("run").technique["chance"]["window_r1_rgb"] == pytest.approx(2 / 119)


def test_bad_videos_are_left_out_and_counted(effvl, report, encoders):
    common = ("cpr-mine", "embed", "--weights", encoders, "--views", "rgb", "--windows", "center")
    outcome = effvl(*common, "--data", "few-clips:count=40,bad=1,short=3", "--out", "run")
    assert outcome.code == 0, outcome.err
    found = report("run")
    assert found.technique["bad_videos"] == {"few-clips train": {"too_short": 3, "open_failed": 1}}
    assert found.technique["rows"] == 36 and found.data[0].bad_files == 1
    rows = json.loads(Path("run/bad_videos.json").read_text())
    assert rows[0] == {"id": "train000", "reason": "open_failed", "message": "train000 cannot be opened"}
    assert Path("run/ids.txt").read_text().split()[0] == "train004"
    outcome = effvl(*common, "--data", "few-clips:count=40,bad=2", "--out", "more")
    assert outcome.code == 3 and "more than 1%" in outcome.error and "--on-bad skip-all" in outcome.error
    outcome = effvl(*common, "--data", "few-clips:count=9,bad=5", "--on-bad", "skip-all", "--out", "all")
    assert outcome.code == 0 and len(Path("all/ids.txt").read_text().split()) == 4, outcome.err
    assert len(json.loads(Path("all/bad_videos.json").read_text())) == 5
    outcome = effvl(*common, "--data", "few-clips:count=40,bad=1", "--on-bad", "error", "--out", "stop")
    assert outcome.code == 3 and "train000 cannot be opened" in outcome.error
    outcome = effvl(*common, "--data", "few-clips:count=3,short=3", "--out", "none")
    assert outcome.code == 3 and "too_short: 3" in outcome.error


def test_features_are_computed_once(here, effvl, encoders, monkeypatch):
    data = "few-clips:count=40,bad=1"
    common = ("--weights", encoders, "--views", "rgb", "--windows", "center", "--data", data)
    here("cpr-mine", "embed", *common, "--out", "a")
    monkeypatch.setattr(window_features, "_computed", None)
    here("cpr-mine", "embed", *common, "--layer", "features", "--out", "b")
    assert Path("b/ids.txt").read_text() == Path("a/ids.txt").read_text()
    outcome = effvl("cpr-mine", "embed", *common, "--on-bad", "error", "--out", "c")
    assert outcome.code == 3 and "train000 cannot be opened" in outcome.error


def test_eval_measures_retrieval_and_probes(here, report, encoders, drawn):
    outcome = here(
        *(
            "cpr-mine",
            "eval",
            "--weights",
            encoders,
            "--data",
            "few-clips",
            "--protocols",
            "retrieval,linear,linear-features",
        ),
        *("--probe-epochs", 20, "--probe-lr", "0.1,1", "--probe-weight-decay", "1e-3", "--out", "run"),
    )
    found = report("run")
    kinds = [f"retrieval_r{k}" for k in (1, 5, 10, 20, 50)]
    views = [f"{kind}_{view}" for kind in (*kinds, "linear", "linear_features") for view in ("rgb", "flow")]
    assert set(found.metrics) == {*views, "linear_two_stream", "linear_features_two_stream"}
    assert found.metrics["retrieval_r50_rgb"].value == 1 and found.metrics["linear_rgb"].n == 16
    assert found.technique["chance"]["retrieval_r1_flow"] == pytest.approx(0.25)
    assert set(found.technique["settings"]["few-clips"]["linear_features"]) == {"rgb", "flow"}
    assert "mean of both" in outcome.out and "R@5" in outcome.out
    assert Path("run/plots/retrieval.png").is_file()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--weights", "rgb"), 2, "--weights holds 'rgb'"),
        ((), 3, "no completed run of cpr-mine"),
        (
            ("--views", "flow:dis"),
            2,
            "--views names the view 'flow:dis', and there are encoders of rgb, gradflow alone",
        ),
        (("--views", "diff"), 2, "Add --weights diff=FILE, or train one: effvl cpr-mine train --view diff"),
        (("--views", "dif"), 2, "unknown view 'dif'. Did you mean 'diff'?"),
        (("--splits", "all"), 2, "--splits is for video:ucf101"),
        (("--data", "digits"), 2, "this command works on clips"),
    ],
)
def test_what_cannot_be_done_is_refused(effvl, encoders, options, code, text):
    more = () if "--weights" in options or not options else ("--weights", encoders)
    data = () if "--data" in options else ("--data", "few-clips")
    outcome = effvl("cpr-mine", "eval", *more, *data, *options, "--out", "run")
    assert outcome.code == code and text in outcome.error


def test_the_preview_says_what_it_costs(here, encoders):
    outcome = here("cpr-mine", "eval", "--weights", encoders, "--data", "few-clips", "--dry-run")
    assert "gradflow of few-clips test" in outcome.out and "windows of 6 frames" in outcome.out
    outcome = here("cpr-mine", "embed", "--weights", encoders, "--data", "few-clips", "--dry-run")
    assert "rgb of few-clips train" in outcome.out


def test_clips_are_classified_by_frozen_and_by_fine_tuned_backbones(here, report, encoders):
    here(
        *("cpr-mine", "eval", "--weights", encoders, "--data", "few-clips", "--protocols", "linear-video,finetune"),
        *("--linear-epochs", 2, "--finetune-epochs", 3, "--finetune-batch-size", 8, "--linear-batch-size", 8),
        *("--crops", "five", "--no-flip", "--finetune-dropout", 0, "--eval-every", 1, "--out", "run"),
    )
    found = report("run")
    kinds = ("linear_video", "finetune", "finetune_best")
    assert set(found.metrics) == {f"{kind}_{view}" for kind in kinds for view in ("rgb", "flow", "two_stream")}
    assert all(metric.n == 16 for metric in found.metrics.values())


def test_fine_tuning_learns_the_classes_and_the_frozen_backbone_stays(here, report, records, encoders):
    here(
        *(
            "cpr-mine",
            "eval",
            "--weights",
            encoders,
            "--views",
            "flow",
            "--data",
            "few-clips",
            "--protocols",
            "finetune",
        ),
        *("--finetune-epochs", 25, "--finetune-batch-size", 8, "--finetune-backbone-lr", 0.005, "--finetune-lr", 0.01),
        *("--finetune-dropout", 0, "--finetune-held-out", 0, "--no-flip", "--crops", "center", "--out", "run"),
    )
    assert report("run").metrics["finetune_flow"].value > 0.6  # chance: 0.25
    assert "finetune_best_flow" not in report("run").metrics
    losses = [record["loss"] for record in records("run") if record["event"] == "train"]
    assert losses[-1] < losses[0]


def test_an_interrupted_fine_tuning_ends_alike(effvl, here, report, encoders, monkeypatch):
    from effvl_cli.core import signals

    common = (
        *(
            "cpr-mine",
            "eval",
            "--weights",
            encoders,
            "--views",
            "rgb",
            "--data",
            "few-clips",
            "--protocols",
            "finetune",
        ),
        *("--finetune-epochs", 2, "--finetune-batch-size", 8, "--save-every", 1, "--crops", "center"),
    )
    here(*common, "--out", "whole")
    asked = iter([None] * 3 + [15] * 2)
    with monkeypatch.context() as patch:
        patch.setattr(signals, "requested", lambda: next(asked, None))
        assert effvl(*common, "--out", "parts").code == 75
    here(*common, "--out", "parts")
    assert report("parts").metrics == report("whole").metrics and report("parts").resume.count == 1


def test_what_embed_writes_is_mined_and_shown(here, report, encoders):
    here("cpr-mine", "embed", "--weights", encoders, "--data", "few-clips", "--windows", "center", "--out", "run")
    here("cpr-mine", "mine", "run", "--cascade", "gradflow:20,rgb:10,gradflow", "--top-k", 3, "--out", "mined")
    found = report("mined")
    assert found.technique["stages"][1]["view"] == "rgb" and found.metrics["mining_precision_mean"].n == 40
    assert sorted(path.name for path in Path("mined/plots").glob("positives-*")) == [
        f"positives-{number}.png" for number in (1, 2, 3)
    ]


def test_items_whose_videos_are_gone_are_mined_without_sheets(here, encoders, monkeypatch):
    here("cpr-mine", "embed", "--weights", encoders, "--data", "few-clips", "--windows", "center", "--out", "run")
    about = json.loads(Path("run/views.json").read_text())
    Path("run/views.json").write_text(json.dumps({**about, "data": "folder:nowhere"}))
    outcome = here("cpr-mine", "mine", "run", "--num-stages", 1, "--main", "rgb", "--out", "mined")
    assert not list(Path("mined/plots").glob("positives-*")) and "no contact sheets" in outcome.err


def test_windows_of_real_videos_find_each_other(here, report, test_data, tmp_path):
    """By a random tiny3d, so that it is the reading which is tested; a damaged and a rotated video among them."""
    names = ("test.avi", "demo.mp4", "corrupted.mp4", "video_90.mov", "flipping_a_pancake.mkv")
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(test_data / "videos" / name)
    here(
        *("cpr-mine", "embed", "--weights", "rgb=none", "--model", "tiny3d", "--frames", 4, "--image-size", 56),
        *("--data", f"video:{folder}", "--windows", "all", "--window-step", 22, "--window-ids", "--layer", "features"),
        *("--on-bad", "error", "--out", "run"),
    )
    found = report("run")
    assert found.technique["bad_videos"] == {"video:videos train": {"too_short": 1}}  # video_90.mov has 3 frames
    ids = Path("run/ids.txt").read_text().split()
    counts = {name: sum(row.startswith(Path(name).stem) for row in ids) for name in names}
    assert counts["test.avi"] == len(range(0, 161, 22)) and counts["demo.mp4"] == len(range(0, 277, 22))
    assert counts["corrupted.mp4"] == len(range(0, 46, 22)) and not counts["video_90.mov"]  # 49 frames
    metric, chance = found.metrics["window_r1_rgb"], found.technique["chance"]["window_r1_rgb"]
    assert metric.n == len(ids) and metric.value > 0.8 > 2 * chance


def test_motion_of_the_codec_through_every_verb(here, report, tmp_path):
    """A view whose name has a colon: embedded, mined, measured, trained, and trained with."""
    for name in ("train/a/0", "train/a/1", "train/b/2", "train/b/3", "test/a/4", "test/b/5"):
        grey = np.arange(8)[:, None, None, None] * 4 + np.arange(32)[None, :, None, None] * (1 + int(name[-1]))
        write_video(
            tmp_path / f"v/{name}.avi", np.broadcast_to(grey % 250, (8, 32, 32, 3)).astype(np.uint8), codec="mpeg4"
        )
    data = ("--data", f"video:{tmp_path / 'v'}")
    clips = ("--frames", 4, "--image-size", 16)
    both = ("--weights", "rgb=none,flow:mv=none", "--model", "tiny3d", *clips, "--crop", 24, "--windows", "center")
    here("cpr-mine", "embed", *both, *data, "--out", "e")
    assert dict(read_views(Path("e")).views) == {"rgb": Path("e/rgb.npy"), "flow:mv": Path("e/flow-mv.npy")}
    here("cpr-mine", "mine", "e", "--top-k", 1, "--cascade", "flow:mv:2,rgb:1,flow:mv", "--out", "m")
    assert "mining_precision_flow" in report("m").metrics
    here("cpr-mine", "eval", *both, *data, "--protocols", "retrieval", "--views", "flow:mv", "--out", "v")
    assert "retrieval_r1_flow" in report("v").metrics
    short = (*data, "--queue-size", 4, "--batch-size", 2, "--steps", 1, "--top-k", 1)
    line = ("cpr-mine", "train", "--weights", "rgb=none", "--model", "tiny3d", *clips)
    here(*line, "--view", "flow:mv", "--mine-with", "rgb", "--cascade", "rgb:2,flow:mv", *short, "--out", "t")
    assert report("t").technique["turns"][0]["stages"] == "rgb:2,flow:mv:1"
    here(
        "cpr-mine",
        "train",
        "t",
        "--view",
        "rgb",
        "--mine-with",
        "flow",
        "--cascade",
        "flow:2,rgb",
        *short,
        "--out",
        "u",
    )
    assert report("u").technique["turns"][0]["mined_with"] == ["flow:mv"]
    here("cpr-mine", "embed", "u", "--views", "flow-mv", *data, "--windows", "center", "--out", "f")
    assert list(read_views(Path("f")).views) == ["flow:mv"]


def test_half_precision_and_official_jitter_change_what_they_say(here, encoders):
    """Full precision, half of it, and colours that change in some clips of what has colours, by the seed."""
    line = ("cpr-mine", "embed", "--weights", encoders, "--data", "few-clips", "--windows", "center")
    more = {"plain": (), "half": ("--precision", "bf16")}
    more |= {name: ("--official-jitter", "--seed", seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))}
    found = {}
    for name, words in more.items():
        here(*line, *words, "--cache-dir", name, "--out", f"of-{name}")
        found[name] = {view: np.load(path) for view, path in read_views(Path(f"of-{name}")).views.items()}
    plain = found["plain"]
    for view, rows in plain.items():
        assert 0 < np.abs(found["half"][view] - rows).max() < 0.02  # of unit rows
    changed = {name: (np.abs(found[name]["rgb"] - plain["rgb"]) > 1e-4).any(1) for name in "abc"}
    assert 2 < changed["a"].sum() < 30 and (changed["a"] != changed["c"]).any()  # 0.3 of 40 are expected
    assert np.array_equal(found["a"]["rgb"], found["b"]["rgb"])
    assert all(np.allclose(found[name]["gradflow"], plain["gradflow"], atol=1e-6) for name in "abc")


def test_all_official_splits_are_measured_and_averaged(here, effvl, report, encoders, tmp_path):
    names = [f"{kind}/v_{kind}_g0{group}_c01.avi" for kind in ("Archery", "YoYo") for group in (1, 2, 3)]
    draw = np.random.default_rng(0)
    for name in names:
        frames = draw.integers(0, 250, (8, 24, 24, 3), dtype=np.uint8)
        write_video(tmp_path / "ucf101/videos" / name, frames, codec="mpeg4")
    lists = tmp_path / "ucf101/ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    for split in (1, 2, 3):
        tested = [name for name in names if f"_g0{split}_" in name][: 1 if split == 3 else 2]
        (lists / f"testlist0{split}.txt").write_text("".join(f"{name}\n" for name in tested))
        train = [name for name in names if name not in tested]
        (lists / f"trainlist0{split}.txt").write_text(
            "".join(f"{name} {1 + name.startswith('YoYo')}\n" for name in train)
        )
    line = (
        "cpr-mine",
        "eval",
        "--weights",
        encoders,
        "--views",
        "rgb",
        "--protocols",
        "retrieval",
        "--windows",
        "center",
    )
    line = (*line, "--data", "video:ucf101", "--data-root", tmp_path)
    here(*line, "--splits", "all", "--out", "all")
    found = report("all")
    splits = found.technique["splits"]
    assert list(splits) == [f"video:ucf101:{split}" for split in (1, 2, 3)]
    each = []
    for split in (1, 2, 3):
        here(*line, "--splits", split, "--out", f"s{split}")
        each.append(report(f"s{split}").metrics["retrieval_r1_rgb"])
        assert splits[f"video:ucf101:{split}"]["retrieval_r1_rgb"] == each[-1].value
    whole = found.metrics["retrieval_r1_rgb"]
    assert whole.value == pytest.approx(sum(metric.value for metric in each) / 3)
    assert [metric.n for metric in each] == [2, 2, 1] and whole.n == 5
    assert whole.se == pytest.approx(sum(metric.se**2 for metric in each) ** 0.5 / 3)
    outcome = effvl(*line, "--splits", "4", "--out", "s4")
    assert outcome.code == 2 and "4" in outcome.error
