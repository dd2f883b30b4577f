"""Tags and near-duplicates of a split: which rule decides, the order of the walk, the cache, unreadable images."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from effvl_cli.config.detect_dedup import DedupOptions
from effvl_cli.config.detect_tag import TagOptions
from effvl_cli.config.options import DataOptions
from effvl_cli.core import signals
from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import DataError, Preempted, UsageError
from effvl_cli.core.report import ReportBuilder
from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxRecord, BoxSource, SourceInfo
from effvl_cli.engines.detect import frame_features as frame_features_module
from effvl_cli.engines.detect import frame_rows, near_duplicates
from effvl_cli.engines.detect.near_duplicates import deduplicated, frames_of, rule_of, skipped, walk_order
from effvl_cli.engines.detect.tags import Tagger
from effvl_cli.techniques.detect.dedup import Signatures


class Loading:
    workers = 0

    def __init__(self, on_bad="error"):
        self.on_bad = on_bad


LOADING = Loading()
assert DataOptions().on_bad == LOADING.on_bad


@pytest.fixture
def run(tmp_path) -> Run:
    device = torch.device("cpu")
    report = ReportBuilder(command="detect", run_id="x", seed=0, config_sha256="", recipe=None, device=device)
    folder = tmp_path / "run"
    folder.mkdir()
    return Run(folder, "detect", device, Cache(tmp_path / "cache"), report)


def picture(seed: int, light: float = 1.0, noise: float = 0.0) -> np.ndarray:
    """A smooth random scene of mean luminance about 127 times `light`."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(60, 195, (5, 8, 3), dtype=np.uint8)).resize(
        (80, 50), Image.Resampling.BICUBIC
    )
    fresh = np.random.default_rng().normal(0, noise, (50, 80, 3)) if noise else 0
    return (np.asarray(coarse) * light + fresh).clip(0, 255).astype(np.uint8)


def record(path, *, seq="s", frame=None, time=None, boxes=(), source="set") -> BoxRecord:
    found = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    flags = np.zeros(len(found), dtype=bool)
    return BoxRecord(
        image_id=1,
        file=path.name,
        path=path,
        width=80,
        height=50,
        boxes=found,
        labels=np.ones(len(found), dtype=np.int64),
        iscrowd=flags,
        ignore=flags,
        area=(found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1]),
        seq=seq,
        frame=frame,
        time=time,
        source=source,
    )


def source_of(records, split="train", **more) -> BoxSource:
    return BoxSource("set", split, classes=("car",), records=records, content=lambda: "content", **more)


@pytest.fixture
def image(tmp_path):
    def write(name: str, pixels: np.ndarray):
        path = tmp_path / name
        Image.fromarray(pixels).save(path)
        return path

    return write


def tags_of(source, options, run, loading, *others) -> list:
    """Of a split of a data set that has these others."""
    return Tagger(options, run, loading, lambda: [source, *others]).tags_of(source)


def tagged(source, options, run, loading, *others) -> BoxSource:
    return Tagger(options, run, loading, lambda: [source, *others]).tagged(source)


def times(source) -> list:
    return [one.time for one in source.records]


# --- tags ------------------------------------------------------------------------------------------------------------


def test_the_order_of_the_rules(run, image, tmp_path):
    dark = picture(0, 0.2)
    names = ["listed.png", "said.png", "night_1.png", "bright.png", "dark.png"]
    paths = [image(name, picture(1) if name == "bright.png" else dark) for name in names]
    records = [record(path, seq=path.stem, time="day" if path.stem in ("listed", "said") else None) for path in paths]
    listing = tmp_path / "times.csv"
    listing.write_text("file,time,rule\nlisted.png,night,hand\n")
    options = TagOptions(time_csv=str(listing), night_thresh=65)
    found = tags_of(source_of(records), options, run, LOADING)
    assert [(tag.time, tag.rule) for tag in found] == [
        ("night", "list"),
        ("day", "metadata"),
        *[("night", "pixels"), ("day", "pixels"), ("night", "pixels")],
    ]
    assert found[0].value is None
    assert found[3].value == pytest.approx(127, abs=30)
    by_name = TagOptions(night_regex="night_")
    assert times(tagged(source_of(records), by_name, run, LOADING)) == ["day", "day", "night", "day", "day"]
    pixels = TagOptions(time_from="pixels")
    assert times(tagged(source_of(records), pixels, run, LOADING)) == ["night", "night", "night", "day", "night"]


def test_known_times_need_no_pixels(run, tmp_path):
    missing = [record(tmp_path / "nowhere.png", time="night")]
    assert times(tagged(source_of(missing), TagOptions(), run, LOADING)) == ["night"]


def test_a_sequence_votes_in_its_source_alone(run, image):
    dark, light = picture(0, 0.2), picture(0)
    paths = [image(f"{k}.png", dark if k in (0, 1, 3) else light) for k in range(6)]
    records = [record(path, source="a" if k < 3 else "b") for k, path in enumerate(paths)]
    source = source_of(records, sources=(SourceInfo("a"), SourceInfo("b")))
    assert times(tagged(source, TagOptions(), run, LOADING)) == ["night"] * 3 + ["day"] * 3
    by_frame = TagOptions(night_vote="frame")
    assert times(tagged(source, by_frame, run, LOADING)) == ["night", "night", "day", "night", "day", "day"]


def test_a_vote_that_overrules_many_is_said(run, image):
    """Numbered files of a set that is no video: two dark ones among six."""
    dark, light = picture(0, 0.2), picture(0)
    records = [record(image(f"f{k}.png", dark if k < 2 else light), seq="f") for k in range(6)]
    assert times(tagged(source_of(records), TagOptions(), run, LOADING)) == ["day"] * 6
    (text,) = run.report.warnings
    for part in ("set, split train, has 1 sequence", "f (4 day, 2 night, tagged day)", "--night-vote frame"):
        assert part in text
    tagged(source_of(records), TagOptions(night_vote="frame"), run, LOADING)
    assert len(run.report.warnings) == 1


def test_a_sequence_of_mixed_lighting_is_said_among_many_others(run, image):
    """Of 36 images a sixth is outvoted, but of one sequence a half."""
    dark, light = image("d.png", picture(0, 0.2)), image("l.png", picture(0))
    records = [record(dark if k % 2 else light, seq="mixed") for k in range(12)]
    records += [record(light, seq="day")] * 24
    tagged(source_of(records), TagOptions(), run, LOADING)
    (text,) = run.report.warnings
    assert "1 sequence of mixed lighting" in text and "mixed (6 day, 6 night" in text


def test_a_name_that_all_images_share_has_no_vote(run, image):
    dark, light = picture(0, 0.2), picture(0)
    paths = [image(f"f{k}.png", dark if k < 2 else light) for k in range(6)]
    records = [dataclasses.replace(record(path, seq="f"), seq_known=False) for path in paths]
    assert times(tagged(source_of(records), TagOptions(), run, LOADING)) == ["night"] * 2 + ["day"] * 4
    assert not run.report.warnings


def test_the_automatic_threshold_and_its_fallback(run, image):
    lights = [0.75, 0.8, 0.85, 1.4, 1.45, 1.5]
    records = [record(image(f"{k}.png", picture(0, light)), seq=str(k)) for k, light in enumerate(lights)]
    auto = TagOptions(night_thresh="auto")
    assert times(tagged(source_of(records), auto, run, LOADING)) == ["night"] * 3 + ["day"] * 3
    assert not run.report.warnings
    assert times(tagged(source_of(records[:1]), auto, run, LOADING)) == ["day"]
    assert "two groups" in run.report.warnings[0]


def test_the_automatic_threshold_is_one_for_all_splits_of_a_source(run, image):
    """The split alone has one dark image, or none: 66 and 71 of them are the night of a bright set."""
    lights = [0.75, 0.8, 0.85, 1.4, 1.45, 1.5]
    records = [record(image(f"{k}.png", picture(0, light)), seq=str(k)) for k, light in enumerate(lights)]
    parts = [source_of(records[3:] + records[:1]), source_of(records[1:2], "val"), source_of(records[2:3], "test")]
    auto = TagOptions(night_thresh="auto")
    tagger = Tagger(auto, run, LOADING, lambda: parts)
    assert [times(tagger.tagged(part)) for part in parts] == [["day"] * 3 + ["night"], ["night"], ["night"]]
    assert not run.report.warnings
    alike = Tagger(auto, run, LOADING, lambda: [parts[2], source_of(records[2:3], "val")])
    assert times(alike.tagged(parts[2])) == ["day"]
    assert "the 2 images of set (test, val) do not fall into two groups" in run.report.warnings[0]


def test_sources_have_automatic_thresholds_of_their_own(run, image):
    lights = [0.2, 0.3, 0.7, 0.8]
    records = [record(image(f"{k}.png", picture(0, light)), seq=str(k), source="a") for k, light in enumerate(lights)]
    lights = [0.7, 0.8, 1.4, 1.5]
    records += [record(image(f"b{k}.png", picture(0, light)), seq=str(k), source="b") for k, light in enumerate(lights)]
    found = times(tagged(source_of(records), TagOptions(night_thresh="auto"), run, LOADING))
    assert found == ["night", "night", "day", "day"] * 2


def test_a_wrong_list(run, tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("file,time\na.png,dusk\n")
    with pytest.raises(DataError, match=r"--time-csv .*times\.csv has 1 line without day or night: a\.png,dusk"):
        tagged(source_of([record(tmp_path / "a.png")]), TagOptions(time_csv=str(path)), run, LOADING)


def test_a_list_of_another_split_is_a_warning(run, image, tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("file,time,split\na.png,night,val\n")
    source = source_of([record(image("a.png", picture(0)))])
    assert times(tagged(source, TagOptions(time_csv=str(path)), run, LOADING)) == ["day"]
    assert "names no image of set train" in run.report.warnings[0]


def test_an_unreadable_image(run, image, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    records = [record(image("a.png", picture(0))), record(tmp_path / "bad.png")]
    with pytest.raises(DataError, match=r"bad\.png"):
        tagged(source_of(records), TagOptions(), run, LOADING)
    source = tagged(source_of(records), TagOptions(), run, Loading("skip"))
    assert times(source) == ["day", None]
    kept, summary = deduplicated(source, DedupOptions(), run, Loading("skip"))
    assert (len(kept), summary["n_kept"]) == (2, 2)


def test_images_are_decoded_once_and_again_when_they_change(run, image, monkeypatch):
    decoded = []
    original = frame_features_module.figures
    monkeypatch.setattr(frame_features_module, "figures", lambda image: decoded.append(1) or original(image))
    records = [record(image(f"{k}.png", picture(k))) for k in range(3)]
    source = source_of(records)
    first = tags_of(source, TagOptions(), run, LOADING)
    deduplicated(source, DedupOptions(), run, LOADING)
    assert tags_of(source, TagOptions(), run, LOADING) == first
    assert len(decoded) == 3
    image("1.png", picture(7, 0.1))
    again = tags_of(source, TagOptions(), run, LOADING)
    assert len(decoded) == 4
    assert again[1].value != first[1].value


def test_a_request_to_stop_is_answered_between_images_and_what_is_known_is_kept(run, image, monkeypatch):
    decoded = []
    original = frame_features_module.figures
    monkeypatch.setattr(frame_features_module, "figures", lambda image: decoded.append(1) or original(image))
    monkeypatch.setattr(frame_rows, "CHUNK", 2)
    source = source_of([record(image(f"{k}.png", picture(k))) for k in range(9)])
    with monkeypatch.context() as patch:
        patch.setattr(signals, "requested", lambda: signal.SIGTERM if len(decoded) >= 4 else 0)
        with pytest.raises(Preempted):
            tags_of(source, TagOptions(), run, LOADING)
    assert len(decoded) == 4
    assert times(tagged(source, TagOptions(), run, LOADING)) == ["day"] * 9
    assert len(decoded) == 4 + 9 - 2  # the two that were decoded when it was noticed are decoded again


# --- near-duplicates -------------------------------------------------------------------------------------------------


def files(source) -> list[str]:
    return [one.file for one in source.records]


def test_near_duplicates_go_and_the_order_stays(run, image):
    records = [
        record(image(f"{name}.png", picture(seed, noise=1)), seq=seq, frame=frame)
        for name, seed, seq, frame in [
            ("d", 1, "t", 3),
            ("a", 0, "s", 0),
            ("c", 1, "t", 1),
            ("b", 0, "s", 1),
            ("e", 2, "t", 2),
        ]
    ]
    kept, summary = deduplicated(source_of(records), DedupOptions(), run, LOADING)
    assert files(kept) == ["d.png", "a.png", "c.png", "e.png"]
    assert (summary["n_in"], summary["n_kept"]) == (5, 4)
    assert summary["per_seq"] == [
        {"source": "set", "seq": "s", "n_in": 2, "n_kept": 1},
        {"source": "set", "seq": "t", "n_in": 3, "n_kept": 3},
    ]
    [skip] = summary["skipped"]
    assert (skip["file"], skip["kept_as"]) == ("b.png", "a.png")
    assert 0 < skip["distance"] < 0.02
    assert summary["hist_day"]["n"] == 3
    assert sum(summary["hist_day"]["bits"]) == sum(summary["hist_day"]["distance"]) == 3
    assert summary["hist_night"]["n"] == 0
    again, second = deduplicated(source_of(records[::-1]), DedupOptions(), run, LOADING)
    assert sorted(files(again)) == sorted(files(kept))
    assert json.dumps(second) == json.dumps(summary)
    everything, _ = deduplicated(source_of(records), DedupOptions(scope="all"), run, LOADING)
    assert files(everything) == ["a.png", "c.png", "e.png"]


def test_frame_numbers_that_occur_twice_do_not_order(tmp_path):
    def order(*names_and_frames):
        source = source_of([record(tmp_path / name, frame=frame) for name, frame in names_and_frames])
        return [source.records[k].file for k in walk_order(source)]

    assert order(("x_3_A10", 10), ("x_9_B2", 2), ("x_1_A2", 2)) == ["x_1_A2", "x_3_A10", "x_9_B2"]
    assert order(("x_3", 1), ("x_20", 0), ("x_1", 2)) == ["x_20", "x_3", "x_1"]
    assert order(("x_3", None), ("x_20", 0), ("x_1", 2)) == ["x_1", "x_3", "x_20"]


def test_the_guard_and_its_option(run, image):
    paths = [image(f"{k}.png", picture(0, noise=1)) for k in range(3)]
    box = [10, 10, 30, 30]
    records = [record(paths[0], boxes=[box]), record(paths[1], boxes=[[18, 10, 38, 30]]), record(paths[2], boxes=[])]
    assert len(deduplicated(source_of(records), DedupOptions(), run, LOADING)[0]) == 3
    assert len(deduplicated(source_of(records), DedupOptions(guard_iou=0.4), run, LOADING)[0]) == 2
    assert len(deduplicated(source_of(records), DedupOptions(label_guard=False), run, LOADING)[0]) == 1


def test_a_source_that_is_not_thinned_out(run, image):
    records = [record(image(f"{k}.png", picture(0)), source="ab"[k % 2]) for k in range(6)]
    source = source_of(records, sources=(SourceInfo("a", dedup=False), SourceInfo("b")))
    for scope in ("seq", "all"):
        kept, _ = deduplicated(source, DedupOptions(scope=scope), run, LOADING)
        assert files(kept) == ["0.png", "1.png", "2.png", "4.png"]


@pytest.mark.parametrize("signature", ["dhash", "ncc", "phash"])
def test_a_share_to_keep(run, image, signature):
    records = [record(image(f"{k}.png", picture(k // 4, noise=4))) for k in range(12)]
    options = DedupOptions(signature=signature, keep=0.25)
    kept, summary = deduplicated(source_of(records), options, run, LOADING)
    assert len(kept) == 3
    used = summary["params"]["bits" if signature != "ncc" else "distance"]
    below = rule_of(options, used - 1 if signature != "ncc" else used * 0.99)
    frames = frames_of(source_of(records), options, run, LOADING)
    assert sum(skip is None for skip in skipped(frames, below, options, run)) > 3


def test_a_share_that_cannot_be_reached(run, image):
    records = [record(image(f"{k}.png", picture(k))) for k in range(4)]
    with pytest.raises(UsageError, match=r"--keep 0\.25 cannot be reached: .* 1\.000"):
        deduplicated(source_of(records), DedupOptions(keep=0.25), run, LOADING)


@pytest.mark.parametrize("scope", ["seq", "all"])
@pytest.mark.parametrize("keep", [None, 0.25])
def test_a_request_to_stop_is_answered_in_the_walk(run, image, monkeypatch, scope, keep):
    monkeypatch.setattr(near_duplicates, "LOOK", 2)
    source = source_of([record(image(f"{k}.png", picture(k // 4, noise=4))) for k in range(12)])
    options = DedupOptions(signature="ncc", scope=scope, keep=keep)
    frames = frames_of(source, options, run, LOADING)
    alike, compared = Signatures.alike, []
    monkeypatch.setattr(Signatures, "alike", lambda *given: compared.append(1) or alike(*given))
    monkeypatch.setattr(near_duplicates, "frames_of", lambda *given: frames)
    monkeypatch.setattr(signals, "requested", lambda: signal.SIGTERM if compared else 0)
    with pytest.raises(Preempted):
        deduplicated(source, options, run, LOADING)
    assert len(compared) <= 2


def test_too_many_to_compare_each_with_each(run, image, monkeypatch):
    monkeypatch.setattr("effvl_cli.engines.detect.near_duplicates.MOST_COMPARED", 1)
    source = source_of([record(image(f"{k}.png", picture(0))) for k in range(2)])
    with pytest.raises(UsageError, match="--scope all"):
        deduplicated(source, DedupOptions(scope="all"), run, LOADING)
    for more in ({"force": True}, {"signature": "dhash", "tau": 3}):
        assert len(deduplicated(source, DedupOptions(scope="all", **more), run, LOADING)[0]) == 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"keep": 0.5, "tau": 3}, "--keep chooses --tau"),
        ({"signature": "dhash", "tau": 2.5}, "whole number"),
        ({"signature": "embed"}, "--embed-model"),
        ({"embed_model": "tiny:clip"}, "--signature embed"),
    ],
)
def test_options_that_contradict(options, part):
    with pytest.raises(ValueError, match=part):
        DedupOptions(**options)


def test_features_of_a_network(run, image):
    """tiny:clip, and a classifier by what its last layer gets."""
    records = [record(image(f"{k}.png", picture(k // 3, noise=1))) for k in range(6)]
    for model, weights in (("tiny:clip", None), ("tiny:resnet", "none")):
        options = DedupOptions(signature="embed", embed_model=model, embed_weights=weights)
        kept, summary = deduplicated(source_of(records), options, run, LOADING)
        assert files(kept)[0] == "0.png"
        assert summary["params"]["distance"] == 0.02
        vectors = frames_of(source_of(records), options, run, LOADING).signatures.vectors
        assert vectors.square().mean(1).numpy() == pytest.approx(np.ones(6), abs=1e-4)
        cosine = torch.nn.functional.cosine_similarity(vectors[0], vectors[3], dim=0)
        half = (vectors[0] - vectors[3]).square().mean() / 2
        assert float(half) == pytest.approx(1 - float(cosine), abs=1e-5)
        within = (vectors[0] - vectors[1]).square().mean() / 2
        assert within < half
