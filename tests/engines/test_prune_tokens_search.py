"""Searches and predictors of every kind through the real command, on two classes of small pictures."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from effvl_cli.config.prune_tokens import PredictConfig
from effvl_cli.core.checkpoint import load_model, read_manifest
from effvl_cli.core.run import unopened
from effvl_cli.engines.prune_tokens import rankings
from effvl_cli.engines.prune_tokens.context import build_context
from effvl_cli.engines.prune_tokens.predictor import predictor_inputs
from effvl_cli.models import network
from effvl_cli.models.token_pruned_clip import load_pruned
from effvl_cli.techniques.prune_tokens.predictor import make_predictor

SEARCHES = {
    "feature": (),
    "pre-proj": ("--feature-space", "pre-proj"),
    "label": ("--scorer", "label"),
    "label-prob": ("--scorer", "label", "--score-space", "prob"),
    "label-logit": ("--scorer", "label", "--score-space", "logit"),
    "maxconf": ("--scorer", "maxconf"),
    "maxconf-first": ("--scorer", "maxconf", "--maxconf-anchor", "first", "--score-space", "logit"),
    "taylor": ("--scorer", "taylor"),
    "taylor-pre-proj": ("--scorer", "taylor", "--feature-space", "pre-proj"),
    "windows": ("--block", 2, "--block-stride", 2),
    "shortlist": ("--group", 20, "--shortlist", 1),
    "rounds": ("--group", 20),
    "rounds of a share": ("--group-share", 0.5),
}


@pytest.fixture
def pictures(image_folder):
    """Options of a run on 24 training pictures: a random CLIP of 8 x 8 patches."""
    return ("--data", f"folder:{image_folder}", "--model", "tiny:clip-32px", "--weights", "none", "--layer", 1)


@pytest.fixture
def rank(effvl, pictures, report):
    def run(*more, out="run", shots=3):
        outcome = effvl("prune-tokens", "rank", *pictures, "--shots", shots, *more, "--out", out)
        assert outcome.code == 0, outcome.err
        return report(out)

    return run


def stored(cache):
    """Every ranked image by its digest, with its tensors, of a cache's only entry of rankings."""
    [entry] = (Path(cache) / "rankings").iterdir()
    rows = {}
    for path in entry.glob("*.safetensors"):
        tensors = load_file(path)
        for number, name in enumerate(tensors.pop("names")):
            rows[bytes(name.tolist())] = {key: value[number] for key, value in tensors.items()}
    return rows


def test_every_search_runs_and_has_rankings_of_its_own(rank, workdir):
    keys, fields = set(), []
    for name, options in SEARCHES.items():
        found = rank(*options, "--cache-dir", name, out=name, shots=1).technique["ranking"]
        assert found["searched_now"] == found["images"] == 2
        keys.add(found["key"])
        fields.append(tuple(map(str, found["fields"].values())))
        for row in stored(name).values():
            assert sorted(row["rank"].tolist()) == list(range(64))
            scores, kind = row["removal_score"], options[1] if "--scorer" in options else "feature"
            low, high = {"feature": (-2, 0), "taylor": (-2, 1e-4)}.get(kind, (-200, 0))
            if "prob" in options:
                low, high = -1, 0
            if "logit" in options:
                low, high = -100.001, 100.001
            assert scores.min() >= low and scores.max() <= high and scores.unique().numel() > 1
    assert len(keys) == len(set(fields)) == len(SEARCHES)


def test_passes_of_the_searches(rank):
    def passes_of(name):
        """Of two images."""
        return rank(*SEARCHES[name], out=name, shots=1).technique["ranking"]["passes"]

    passes = {name: passes_of(name) / 2 for name in ("feature", "taylor", "windows")}
    assert passes == {"feature": 64, "taylor": 35, "windows": 16}
    # 64, 44 and 24 alive, until 20 are; then these 20
    assert passes_of("rounds") == 2 * (64 + 44 + 24 + 20)
    shortlisted = 20 + 20 + 4 + 3 * 35 + 20
    assert passes_of("shortlist") == 2 * shortlisted


def test_the_label_scorer_gets_the_labels_of_its_images(rank, monkeypatch):
    seen = []
    search = rankings.golden_ranking

    def spy(tower, images, *, scorer, **options):
        seen.extend(zip(images[:, 0].mean((1, 2)).tolist(), scorer.labels.tolist(), strict=True))
        return search(tower, images, scorer=scorer, **options)

    monkeypatch.setattr(rankings, "golden_ranking", spy)
    rank("--scorer", "label")
    assert len(seen) == 6
    assert all((label == 1) == (red > 0) for red, label in seen)  # classes: blue thing, red thing


@pytest.mark.parametrize(("scorer", "again"), [("label", 12), ("feature", 0)])
def test_another_label_is_another_ranking_only_where_it_counts(effvl, report, image_folder, scorer, again):
    paths = sorted(image_folder.glob("train/*/*.jpg"))[::2]

    def ranked(flip, out):
        rows = [f"{p},{'ab'[(p.parent.name < 'm') ^ flip]},train" for p in paths]
        Path("table.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
        options = ("--model", "tiny:clip-32px", "--weights", "none", "--scorer", scorer, "--shots", "all")
        outcome = effvl("prune-tokens", "rank", "--data", "csv:table.csv", *options, "--out", out)
        assert outcome.code == 0, outcome.err
        return report(out).technique["ranking"]["searched_now"]

    assert ranked(False, "one") == 12
    assert ranked(True, "two") == again


def test_other_templates_are_another_ranking_only_for_scorers_by_class(rank):
    for scorer, again in (("feature", 0), ("maxconf", 6)):
        assert rank("--scorer", scorer, out=f"{scorer}1").technique["ranking"]["searched_now"] == 6
        other = rank("--scorer", scorer, "--templates", "no {}.", out=f"{scorer}2")
        assert other.technique["ranking"]["searched_now"] == again


def test_shards_meet_in_the_cache_and_equal_the_whole(rank):
    for shard, name in (("0/2", "a"), ("1/2", "b")):
        found = rank("--sample-shard", shard, "--cache-dir", "parts", out=name, shots=4).technique["ranking"]
        assert found["searched_now"] == found["images"] == 4 and found["sample_shard"] == shard
    assert rank("--cache-dir", "parts", out="c", shots=4).technique["ranking"]["searched_now"] == 0
    rank("--cache-dir", "whole", out="d", shots=4)
    parts, whole = stored("parts"), stored("whole")
    assert len(whole) == 8 and parts.keys() == whole.keys()
    assert all(torch.equal(parts[name][key], row[key]) for name, row in whole.items() for key in row)


def test_all_shots(rank, effvl):
    assert rank(shots="all", out="all").technique["ranking"]["images"] == 24
    outcome = effvl("prune-tokens", "rank", "--shots", "all", "--out", "endless")
    assert outcome.code == 2 and "--shots is all" in outcome.error


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--shots", 0), 2, "or all"),
        (("--shots", "some"), 2, "or all"),
        (("--sample-shard", "2/2"), 2, "--sample-shard is 2/2"),
        (("--sample-shard", "half"), 2, "Write i/n"),
        (("--sample-shard", "7/9"), 3, "holds none of the 6 images"),
        (("--score-space", "prob"), 2, "--score-space is prob"),
        (("--scorer", "label", "--maxconf-anchor", "first"), 2, "--maxconf-anchor is first"),
        (("--scorer", "maxconf", "--feature-space", "pre-proj"), 2, "--feature-space is pre-proj"),
        (("--shortlist", 2), 2, "--shortlist is 2"),
        (("--scorer", "taylor", "--group", 2, "--shortlist", 2), 2, "--shortlist is 2"),
        (("--scorer", "features"), 2, "did you mean feature?"),
        (("--block", 9), 2, "--block is 9, and the tower has 8 x 8 patches"),
        (("--layer", 4), 2, "--layer is 4"),
    ],
)
def test_a_search_that_cannot_be_is_refused(effvl, pictures, words, code, text):
    options = pictures[:-2] if "--layer" in words else pictures
    outcome = effvl("prune-tokens", "rank", *options, *(() if "--shots" in words else ("--shots", 3)), *words)
    assert outcome.code == code and text in outcome.error


def test_gradients_of_a_tower_that_pools_patches_are_refused(effvl, pictures, monkeypatch):
    from effvl_cli.models.openclip_tower import OpenClipTower

    monkeypatch.setattr(OpenClipTower, "pools_prefix_only", False)
    outcome = effvl("prune-tokens", "rank", *pictures, "--scorer", "taylor", "--shots", 3)
    assert outcome.code == 4 and "reads its embedding from patches" in outcome.error


def test_steps_in_a_row_keep_the_options_of_the_search(effvl, few_images, report):
    """tune has no options of the search, and what starts from its run still knows them."""
    search = ("--block", 2, "--group", 30, "--rank-until", 0.6)
    assert effvl("prune-tokens", "rank", "--shots", 1, *search, "--out", "ranked").code == 0
    short = ("--predictor-epochs", 1, "--predictor-batch-size", 8)
    assert effvl("prune-tokens", "predict", "ranked", *short, "--out", "base").code == 0
    tune = ("--tune-epochs", 1, "--tune-batch-size", 30, "--prompts", "visual")
    assert effvl("prune-tokens", "tune", "base", *tune, "--out", "tuned").code == 0
    golden = ("--selector", "golden", "--num-golden", 2, "--keep", 0.5)
    outcome = effvl("prune-tokens", "eval", "tuned", *golden, "--out", "eval")
    assert outcome.code == 0, outcome.err
    outcome = effvl("prune-tokens", "predict", "tuned", *short, "--out", "again")
    assert outcome.code == 0, outcome.err
    found = report("again").technique["ranking"]
    assert (found["block"], found["stride"], found["group"], found["searched_now"]) == (2, 1, 30, 0)
    outcome = effvl("prune-tokens", "predict", "tuned", *short, "--group", 10, "--out", "other")
    assert outcome.code == 4 and "group: 30 there, 10 here" in outcome.error


def test_a_share_of_the_patches_is_that_many(rank, effvl, pictures, workdir):
    """Of 64 patches 0.3 are 19: the rankings of the one are those of the other, by their key."""
    ranked = rank("--group-share", 0.3, "--cache-dir", "c", out="share", shots=1).technique["ranking"]
    again = rank("--group", 19, "--cache-dir", "c", out="number", shots=1).technique["ranking"]
    assert (ranked["group"], again["group"], again["searched_now"]) == (19, 19, 0) and ranked["key"] == again["key"]
    outcome = effvl("prune-tokens", "rank", *pictures, "--group", 4, "--group-share", 0.1)
    assert outcome.code == 2 and "--group and --group-share set the same thing" in outcome.error
    Path("both.yaml").write_text("effvl: 1\ncommand: prune-tokens rank\nconfig: {group: 4, group-share: 0.1}\n")
    outcome = effvl("prune-tokens", "rank", *pictures, "--recipe", "both.yaml")
    assert outcome.code == 2 and "group and group-share set the same thing" in outcome.error


def test_an_audit_compares_with_the_exact_search(rank, effvl):
    done = rank("--audit", "--scorer", "taylor", "--group", 30, "--rank-until", 0.8, shots=1)
    rows = {row["search"]: row for row in done.technique["ranking"]["audit"]}
    assert list(rows) == ["exact greedy", "this search", "one shot", "10 a round"]
    exact = rows["exact greedy"]
    assert exact["tau"] == 1 and exact["overlap"] == {"51": 1, "38": 1, "26": 1} and exact["images"] == 2
    assert exact["passes"] == 2 * (sum(range(21, 65)) + 20)  # one by one from 64 to 20, and those 20
    assert rows["10 a round"]["passes"] == 2 * (64 + 54 + 44 + 34 + 24 + 20) and rows["one shot"]["passes"] == 2 * 64
    assert rows["this search"]["passes"] == 2 * 2 * 35
    assert rows["one shot"]["tau"] < 1
    assert (
        "10 a round: 240 passes per image"
        in effvl("table", "run").out + effvl("prune-tokens", "rank", "--recipe", "run/config.yaml", "--out", "run").out
    )


# --- predictors ------------------------------------------------------------------------------------------------------


PREDICTORS = {
    "mixer": ("--predictor", "mixer"),
    "mlp": ("--predictor", "mlp"),
    "linear": ("--predictor", "linear"),
    "keepset": ("--predictor-loss", "keepset"),
    "keepsets": ("--predictor-loss", "keepset", "--predictor-keeps", "0.25,0.5"),
    "pairwise": ("--predictor-loss", "pairwise"),
    "mse": ("--predictor-loss", "mse"),
}


def test_every_predictor_and_loss_runs_and_is_found_again(rank, effvl, report):
    rank(shots=4)
    states = {}
    for name, options in PREDICTORS.items():
        short = ("--predictor-epochs", 2, "--predictor-batch-size", 4, "--keep", 0.5)
        outcome = effvl("prune-tokens", "predict", "run", *short, *options, "--out", name)
        assert outcome.code == 0, outcome.err
        done = report(name)
        assert {"overlap", "tau", "top1_val_dense", "top1_val_predictor"} == set(done.metrics)
        assert done.metrics["top1_val_predictor"].split == "val" and done.metrics["top1_val_predictor"].n == 8
        about = done.technique["predictor"]
        kind = name if name in ("mlp", "linear") else "mixer"
        width = 64 if kind == "mixer" else None
        assert read_manifest(Path(name))["predictor"] == {"kind": kind, "width": width, "prompted": False}
        assert about["kind"] == kind and about["loss"] == (
            dict(zip(options[::2], options[1::2], strict=True)).get("--predictor-loss", "listwise")
        )
        states[name], _ = load_model(Path(name) / "checkpoint.safetensors")
        assert about["params"] == sum(v.numel() for k, v in states[name].items() if k.startswith("predictor."))
    same_kind = [states[name]["predictor.head.weight"] for name in PREDICTORS if name not in ("mlp", "linear")]
    assert all(not torch.equal(a, b) for i, a in enumerate(same_kind) for b in same_kind[:i])
    for name, macs in (("mlp", 64 * (96 * 128 + 128 * 64 + 64)), ("linear", 64 * 96)):
        assert (
            effvl("prune-tokens", "eval", name, "--selector", "predictor", "--keep", 0.5, "--out", f"e-{name}").code
            == 0
        )
        rows = {row["selector"]: row for row in report(f"e-{name}").technique["results"]}
        assert rows["predictor"]["macs"] - macs < rows["dense"]["macs"]
        assert report(f"e-{name}").technique["predictor"]["macs"] == report(name).technique["predictor"]["macs"] == macs


def test_mirrored_images_are_learned_from_too(rank, effvl, pictures, report):
    rank(shots=4)
    short = ("--predictor-epochs", 2, "--predictor-batch-size", 3, "--keep", 0.5)
    for name, more in (("plain", ()), ("flip", ("--predictor-flip",))):
        outcome = effvl("prune-tokens", "predict", "run", *short, *more, "--out", name)
        assert outcome.code == 0, outcome.err
    plain, flip = (report(name).technique["predictor"] for name in ("plain", "flip"))
    assert (plain["trained_on"], plain["steps"]) == (flip["trained_on"], flip["steps"] / 2)
    options = dict(zip([word.strip("-") for word in pictures[::2]], pictures[1::2], strict=True))
    config = PredictConfig(**options, shots=4)
    context = build_context(config, unopened("prune-tokens predict", config))
    images = context.few_shot()
    mirror = dataclasses.replace(images, held=images.held.flip(-1))
    module = make_predictor("mlp", num_patches=64, num_prefix=1, dim=96)
    expected = predictor_inputs(context, mirror, module, None)
    assert torch.equal(predictor_inputs(context, images, module, None, flip=True), expected)
    assert not torch.equal(predictor_inputs(context, images, module, None), expected)


def test_what_becomes_of_dropped_patches_is_chosen_by_embeddings(rank, effvl, pictures, report):
    rank(shots=4)
    short = ("--predictor-epochs", 2, "--predictor-batch-size", 4, "--keep", 0.5)
    arms = {
        "auto": (),
        "discard": ("--dropped", "discard"),
        "merge": ("--dropped", "merge"),
        "four": ("--diversity", 4),
    }
    for name, more in arms.items():
        outcome = effvl("prune-tokens", "predict", "run", *short, *more, "--out", name)
        assert outcome.code == 0, outcome.err
    found = report("auto").technique["dropped"]
    assert [(row["dropped"], row["diversity"]) for row in found["tried"]] == [("discard", 0), ("merge", 2)]
    assert [row["diversity"] for row in report("four").technique["dropped"]["tried"]] == [4, 4]
    assert "dropped" not in report("merge").technique
    options = dict(zip([word.strip("-") for word in pictures[::2]], pictures[1::2], strict=True))
    context = build_context(config := PredictConfig(**options), unopened("prune-tokens predict", config))
    images = context.validation()
    pixels = context.network.preprocess.normalise(images[torch.arange(len(images))])
    unit = torch.nn.functional.normalize(context.tower.module(pixels).double(), dim=-1)
    for row in found["tried"]:
        pruned = torch.nn.functional.normalize(load_pruned(row["dropped"]).visual(pixels).double(), dim=-1)
        assert row["damage"] == pytest.approx(float(1 - (pruned * unit).sum(1).mean()), rel=1e-4)
        assert row["top1"] == report(row["dropped"]).metrics["top1_val_predictor"].value
    best = min(found["tried"], key=lambda row: row["damage"])
    assert found["chosen"] == best["dropped"] and found["images"] == len(images)
    assert read_manifest(Path("auto"))["choice"] == {name: best[name] for name in ("dropped", "diversity")}
    for name in ("auto", best["dropped"]):
        outcome = effvl(
            "prune-tokens", "eval", name, "--selector", "predictor", "--num-golden", 0, "--out", f"e-{name}"
        )
        assert outcome.code == 0, outcome.err
    assert report("e-auto").technique["results"] == report(f"e-{best['dropped']}").technique["results"]


def test_budgets_are_for_keepset_alone(effvl, pictures):
    outcome = effvl("prune-tokens", *pictures, "--predictor-keeps", "0.5")
    assert outcome.code == 2 and "--predictor-keeps is for --predictor-loss keepset" in outcome.error


def test_a_predictor_of_labels_is_warned_of(effvl, quick_figures, pictures, miniature, report):
    few = ("--shots", 4, "--num-golden", 2, "--prompts", "none", "--predictor-epochs", 1, "--predictor-batch-size", 4)
    outcome = effvl("prune-tokens", *pictures, *few, "--scorer", "label", "--out", "run")
    assert outcome.code == 0, outcome.err
    assert any("--scorer label uses the label, which a predictor cannot see" in text for text in report("run").warnings)
    assert report("run").technique["ranking"]["scorer"] == "label"
    refused = effvl("prune-tokens", "predict", "run", "--scorer", "maxconf", "--out", "other")
    assert refused.code == 4 and "scorer: 'label' there, 'maxconf' here" in refused.error


def test_the_saved_network_of_the_tests_is_what_they_say():
    visual = network.build("tiny:clip-32px", seed=0).module.visual
    assert tuple(visual.grid_size) == (8, 8) and visual.transformer.width == 96


def test_rankings_by_older_scores_are_not_taken_for_todays(rank, monkeypatch):
    """The scores changed when they became differences from 1 in float64: format 2 holds those before."""
    with monkeypatch.context() as earlier:
        earlier.setattr(rankings, "FORMAT", 2)
        assert rank(out="old").technique["ranking"]["searched_now"] == 6
    assert rank(out="new").technique["ranking"]["searched_now"] == 6
    assert rank(out="again").technique["ranking"]["searched_now"] == 0
