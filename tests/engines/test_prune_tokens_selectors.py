"""Selectors side by side through the real command, on few images."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from effvl_cli.config import prune_tokens as options
from effvl_cli.config.prune_tokens import EvalConfig, SearchOptions
from effvl_cli.data.fewshot import spread
from effvl_cli.engines.prune_tokens import pictures
from effvl_cli.engines.prune_tokens.selectors import asked_for
from effvl_cli.techniques.prune_tokens import selector_table
from effvl_cli.techniques.prune_tokens.scorer_table import SCORERS
from tests.conftest import keep_few_images
from tests.data import layouts
from tests.engines.conftest import copy_of

SELECTORS = ("predictor", "golden", "cls-attn", "evit", "tome", "random", "grid", "center", "norm", "taylor")


# A whole job in seconds, without tuning and without an oracle.
SMALL = ("--shots", 1, "--predictor-epochs", 2, "--predictor-batch-size", 8, "--prompts", "none", "--num-golden", 0)


@pytest.fixture
def trained(shared, few_images, shared_cache):
    """A predictor that was trained to keep 30 of 64 patches, in the folder `run`."""
    ranked = shared.run("tokens-ranked-once", "prune-tokens", "rank", "--shots", 1)
    words = ("predict", ranked, *SMALL[2:6], "--num-keep", 30, "--dropped", "discard")
    copy_of(shared.run("tokens-30", "prune-tokens", *words, prepare=keep_few_images, pictures=False), "run")


def test_the_table_of_selectors_is_what_the_options_offer():
    """And a picture or a benchmark offers those that it can show or time."""
    assert set(get_args(options.Selector)) == set(selector_table.SELECTORS)
    assert set(get_args(options.Timed)) == {name for name, spec in selector_table.SELECTORS.items() if spec.deployable}
    assert set(get_args(get_type_hints(SearchOptions)["scorer"])) == set(SCORERS)


def test_every_selector_at_every_number_of_patches(trained, effvl, report, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "curves", lambda path, series, **_: drawn.update({path.name: series}))
    outcome = effvl(
        *("prune-tokens", "eval", "run", "--selector", ",".join(SELECTORS), "--num-keep", "45,20", "--num-golden", 4),
        *("--out", "eval"),
    )
    assert outcome.code == 0, outcome.err
    rows = report("eval").technique["results"]
    assert [row["selector"] for row in rows] == [
        *("dense", "dense-golden"),
        *(name for name in SELECTORS for _ in range(2)),
    ]
    least = {"tome": 23}  # four blocks that merge half of their patches each cost as much as dropping to 23
    assert [row["K"] for row in rows[2:]] == [k for name in SELECTORS for k in (45, least.get(name, 20))]
    assert {row["selector"] for row in rows if row["oracle"]} == {"golden"}
    found = {(row["selector"], row["K"]): row for row in rows}
    dense = found["dense", 64]["macs"]

    # Dropping at block 0 of 4, width 64, MLP 128: the tower's part, and what each selector adds.
    def dropped(n):
        return 64 * 192 * 64 + 4 * (n * (4 * 64**2 + 2 * 64 * 128) + 2 * n * n * 64) + 64 * 64

    attention = 66 * 64**2 + 65 * 64
    assert {name: found[name, 20]["macs"] - dropped(21) for name in ("random", "grid", "center", "norm")} == {
        **dict.fromkeys(("random", "grid", "center"), 0),
        "norm": 64 * 64,
    }
    assert found["cls-attn", 20]["macs"] == dropped(21) + attention
    assert found["evit", 20]["macs"] == dropped(22) + attention + 64 * 64
    assert found["predictor", 20]["macs"] == dropped(21) + 2 * 65 * 64 * 32 + 2 * 65 * 64 * 256 + 64 * 64
    assert found["tome", 45]["macs"] == pytest.approx(dropped(46), rel=0.01)
    assert sum(found["tome", 45]["merges"]) > 20 and max(found["tome", 45]["merges"]) < 12
    assert found["taylor", 20]["macs"] > 10 * dense
    for row in rows:
        assert row["flops"] == 2 * row["macs"]
        assert row["ci95"][0] <= row["top1"] <= row["ci95"][1] + 1e-12
        assert 0.2 < row["cosine"] <= 1 + 1e-6 and 0 <= row["agreement"] <= 1
    assert any(
        "tome cannot merge down to keep 0.3125: a block merges at most" in text for text in report("eval").warnings
    )
    assert "taylor's forward and backward passes" in outcome.out and "tome merges tokens" in outcome.out
    accuracy, cost = drawn["accuracy.png"], drawn["cost.png"]
    assert set(accuracy) == {*SELECTORS, "golden (oracle)"} - {"golden"}
    assert list(cost) == [name for name in accuracy if name not in ("golden (oracle)", "taylor")]
    assert accuracy["random"][1] == (20 / 64, 100 * found["random", 20]["top1"], 100 * found["random", 20]["se"])
    assert [point[0] for point in cost["tome"]] == [found["tome", k]["macs"] / dense for k in (45, 23)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_selector_scores_in_full_precision_whatever_the_tower_runs_in(precision, trained, effvl, report):
    half = ("--precision", precision, "--selector", ",".join(SELECTORS), "--keep", 0.5, "--num-golden", 4)
    outcome = effvl("prune-tokens", "eval", "run", *half, "--out", "half")
    assert outcome.code == 0, outcome.err
    rows = report("half").technique["results"]
    assert [row["selector"] for row in rows[2:]] == list(SELECTORS)
    assert all(row["cosine"] > 0.2 for row in rows)


def test_each_selector_is_measured_once_and_shown_where_it_belongs(trained, effvl, report):
    twice = ("--selector", "random,predictor,random", "--keep", "0.5,0.5", "--num-golden", 0)
    outcome = effvl("prune-tokens", "eval", "run", *twice, "--out", "eval")
    assert outcome.code == 0, outcome.err
    assert [row["selector"] for row in report("eval").technique["results"]] == ["dense", "random", "predictor"]
    lines = [line.split()[0] for line in outcome.out.splitlines() if line.startswith(("dense", "random", "predictor"))]
    assert lines == ["dense", "predictor", "random"]
    assert report("eval").metrics["mac_ratio"].value < 1


def test_without_a_class_token_the_default_leaves_out_what_reads_it():
    shape = SimpleNamespace(num_prefix=0)
    default = SimpleNamespace(config=EvalConfig(run="r"), shape=shape)
    assert asked_for(default) == ["predictor", "tome", "grid", "random"]
    asked = SimpleNamespace(config=EvalConfig(run="r", selector=("evit", "random")), shape=shape)
    assert asked_for(asked) == ["evit", "random"]  # and is refused by name


def test_other_data_need_test_images_alone(trained, effvl, report, image_folder, tmp_path):
    validation = tmp_path / "imagenet" / "images" / "val"
    for number, folder in enumerate(sorted((image_folder / "test").iterdir())):
        shutil.copytree(folder, validation / f"n0000000{number}")
    (tmp_path / "imagenet" / "classnames.txt").write_text("n00000000 blue thing\nn00000001 red thing\n")
    words = ("--data", "imagenet", "--data-root", tmp_path, "--selector", "predictor,golden", "--keep", 0.5)
    outcome = effvl("prune-tokens", "eval", "run", *words, "--num-golden", 3, "--out", "eval")
    assert outcome.code == 0, outcome.err
    assert report("eval").metrics["top1_golden"].n == 3 and report("eval").metrics["top1_predictor"].n == 12


def test_aircraft_is_averaged_over_classes_too(trained, effvl, report, tmp_path):
    layouts.fgvc_aircraft(tmp_path / "fgvc_aircraft")
    words = ("--data", "fgvc_aircraft", "--data-root", tmp_path, "--selector", "predictor", "--keep", 0.5, "--force")
    outcome = effvl("prune-tokens", "eval", "run", *words, "--out", "eval")
    assert outcome.code == 0, outcome.err
    done = report("eval")
    for name in ("dense", "predictor"):
        row = next(row for row in done.technique["results"] if row["selector"] == name)
        assert done.metrics[f"top1_{name}_per_class"].value == row["top1_per_class"]


def test_a_damaged_manifest_is_refused_in_one_line(trained, effvl):
    path = Path("run/manifest.json")
    whole = json.loads(path.read_text())
    for number, (damage, part) in enumerate(
        (
            (lambda m: m.pop("fields"), "lacks fields"),
            (lambda m: m["fields"].pop("patches"), "lacks fields.patches"),
            (lambda m: m["fields"].update(layer="0"), "no usable fields.layer"),
            (lambda m: m.update(base=[]), "no usable base"),
            (lambda m: m["predictor"].update(kind="mixed"), "damaged"),
            (lambda m: m.update(predictor={"width": 64}), "damaged"),
            (lambda m: m["choice"].update(dropped="auto"), "damaged"),
            (lambda m: m["choice"].update(diversity=0.01), "damaged"),
            (lambda m: m["choice"].update(diversity="2"), "damaged"),
            (lambda m: m.update(choice=[1]), "damaged"),
        )
    ):
        broken = json.loads(json.dumps(whole))
        damage(broken)
        path.write_text(json.dumps(broken))
        outcome = effvl("prune-tokens", "eval", "run", "--selector", "random", "--num-golden", 0, "--out", f"e{number}")
        assert outcome.code == 4 and part in outcome.error, outcome.err


def test_the_runs_number_of_patches_is_taken_over_or_replaced(effvl, few_images, quick_figures, shared_cache, report):
    assert effvl("prune-tokens", *SMALL, "--num-keep", 30, "--out", "run").code == 0
    rows = report("run").technique["results"]
    assert {row["K"] for row in rows} == {64, 30}
    names = [row["selector"] for row in rows]
    assert names == ["dense", "predictor", "cls-attn", "evit", "tome", "grid", "center", "random"]
    assert effvl("prune-tokens", "eval", "run", "--selector", "predictor,grid", "--out", "a").code == 0
    assert report("a").metrics["top1_predictor"] == report("run").metrics["top1_predictor"]
    assert effvl("prune-tokens", "eval", "run", "--selector", "grid", "--keep", 0.5, "--out", "b").code == 0
    assert [row["K"] for row in report("b").technique["results"]] == [64, 32]
    outcome = effvl("prune-tokens", "eval", "--recipe", "a/config.yaml", "--out", "c")
    assert outcome.code == 0, outcome.err
    assert report("c").metrics == report("a").metrics


def test_what_cannot_be_is_refused_before_anything_is_measured(trained, effvl):
    def refused(code, *arguments):
        outcome = effvl("prune-tokens", "eval", "run", *arguments)
        assert outcome.code == code
        return outcome.error

    assert "--keep and --num-keep set the same thing" in refused(2, "--keep", 0.6, "--num-keep", 30)
    assert "--num-keep is 65, and the tower has 64 patches" in refused(2, "--num-keep", 65)
    assert "--cls-block is prev, and --layer 0" in refused(2, "--cls-block", "prev", "--selector", "random,evit")
    assert "--num-golden is 0" in refused(2, "--selector", "grid,golden", "--num-golden", 0)
    assert "did you mean" in refused(2, "--selector", "cls-atn")
    Path("both.yaml").write_text("effvl: 1\ncommand: prune-tokens\nconfig: {keep: 0.5, num-keep: 30}\n")
    outcome = effvl("prune-tokens", "--recipe", "both.yaml", "--out", "both")
    assert outcome.code == 2 and "keep and num-keep set the same thing" in outcome.error


def test_attention_of_the_previous_block(effvl, few_images, report):
    assert effvl("prune-tokens", "rank", "--shots", 1, "--layer", 1, "--out", "own").code == 0
    common = ("prune-tokens", "eval", "own", "--keep", 0.3, "--selector", "cls-attn,evit,random")
    assert effvl(*common, "--out", "a").code == effvl(*common, "--cls-block", "prev", "--out", "b").code == 0
    own, previous = (report(name).technique["results"] for name in ("a", "b"))
    assert own[3] == previous[3]  # random
    for index in (1, 2):
        assert own[index]["cosine"] != previous[index]["cosine"]
        assert own[index]["macs"] == previous[index]["macs"]


def test_merging_is_shown_at_what_it_reaches(trained, effvl, report):
    """A rate below it would repeat the same tower under another name."""
    words = ("prune-tokens", "eval", "run", "--selector", "tome,grid", "--keep", "0.01,0.3,0.6", "--out", "e")
    outcome = effvl(*words)
    assert outcome.code == 0 and "tome cannot merge down to keep 0.01, 0.3" in outcome.err
    rows = [row for row in report("e").technique["results"] if row["selector"] == "tome"]
    assert [(row["keep"], row["K"]) for row in rows] == [(23 / 64, 23), (0.6, 38)]
    assert len({row["macs"] for row in rows}) == 2 and rows[0]["merges"] == [32, 16, 8, 4]
    assert set(report("e").metrics) >= {"top1_tome_keep0.359375", "top1_tome_keep0.6", "top1_grid_keep0.01"}
    assert "top1_tome_keep0.3" not in report("e").metrics


def test_heat_maps_say_how_often_each_place_is_kept(trained, effvl, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "heat_maps", lambda path, maps, **_: drawn.update(maps))
    monkeypatch.setattr(pictures, "image_grid", lambda *_, **__: None)
    words = ("prune-tokens", "viz", "run", "--selector", "predictor,center,tome,random", "--num-images", 3)
    assert effvl(*words, "--num-keep", 20, "--out", "v").code == 0
    assert list(drawn) == ["predictor", "center", "random"]
    for shares in drawn.values():
        assert shares.shape == (8, 8)
        assert shares.sum() == pytest.approx(20)
        assert shares.min() >= 0 and shares.max() <= 1
    assert set(np.unique(drawn["center"])) == {0.0, 1.0}
    assert drawn["center"][3:5, 3:5].all() and not drawn["center"][0].any()
    assert (drawn["random"] > 0).mean() > 0.5


def test_every_selector_can_be_seen(trained, effvl, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "image_grid", lambda path, images, **about: drawn.update(about, images=images))
    monkeypatch.setattr(pictures, "heat_maps", lambda path, maps, **_: drawn.update(maps=list(maps)))
    words = ("prune-tokens", "viz", "run", "--selector", "golden,evit,tome,center", "--num-images", 3, "--keep", 0.6)
    outcome = effvl(*words, "--out", "v")
    assert outcome.code == 0, outcome.err
    assert drawn["row_labels"] == ["image", "golden\n(oracle)", "evit", "tome", "center"]
    assert drawn["maps"] == ["evit", "center"]  # golden was searched for three images only, and tome drops none
    assert len(set(drawn["column_labels"])) == 3
    whole, *rows = drawn["images"]
    for name, row in zip(drawn["row_labels"][1:], rows, strict=True):
        share = (row == whole).all(-1).mean((1, 2))  # 38 of 64 patches; merged ones have one colour, and outlines
        assert (share < 0.3).all() if name == "tome" else share == pytest.approx(38 / 64, abs=0.02)


def test_shown_images_are_of_many_classes_however_they_are_ordered():
    """Also where every 25th image is of one class, which evenly spread positions would pick."""
    periodic, sorted_ = np.arange(200) % 25, np.arange(200) // 8
    for labels in (periodic, sorted_, periodic[::-1].copy()):
        picked = labels[spread(labels, 8).numpy()]
        assert len(set(picked)) == 8 and picked.min() == 0 and picked.max() == 24
    assert sorted(spread(np.array([1, 0, 1]), 8).tolist()) == [0, 1, 2]


def test_pictures_are_drawn(trained, effvl, drawn):
    assert effvl("prune-tokens", "eval", "run", "--keep", "0.9,0.3", "--out", "e").code == 0
    assert effvl("prune-tokens", "viz", "run", "--keep", "0.9,0.3", "--num-images", 2, "--out", "v").code == 0
    for path in ("e/plots/accuracy.png", "e/plots/cost.png", "v/plots/keep.png", "v/plots/patches.png"):
        assert np.asarray(Image.open(path).convert("RGB")).std() > 10
