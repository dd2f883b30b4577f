"""Every shipped recipe resolves, and runs in miniature."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from effvl_cli.cli import commands
from effvl_cli.cli.flags import config_class
from effvl_cli.config import recipes
from effvl_cli.config.recipe_file import read_recipe
from effvl_cli.config.resolve import resolve
from effvl_cli.core import claims, probe, sweep
from effvl_cli.models import torchvision
from effvl_cli.models.network import build
from tests.engines.conftest import little_beside, no_programs

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes").rglob("*.yaml"))
SWEEPS = [path for path in FILES if "arms:" in path.read_text()]
RECIPES = [path for path in FILES if path not in SWEEPS]
# A test may change only data, model, lengths, batch sizes and workers.
SMALL = {
    "prune-tokens": (
        *("--shots", 2, "--num-golden", 2, "--predictor-epochs", 1, "--tune-epochs", 1, "--tune-batch-size", 8),
        *("--predictor-batch-size", 8),
    ),
    "pretrain": ("--batch-size", 8),
    "prompt-tune": ("--shots", 2, "--epochs", 1, "--batch-size", 8, "--num-context", 2, "--precision", "fp32"),
    "prune-blocks apply": (
        *("--weights", "none", "--finetune-epochs", 1, "--final-epochs", 0, "--finetune-batch-size", 8),
        *("--latency-batch-size", 1, "--force"),
    ),
}


TABLES = sorted((ROOT / "recipes" / "tables").glob("pretrain-*.yaml"))
LENGTHS = {"budget", "epochs", "batch-size"}

METHODS = ("prompt", "classifier_r", "classifier_c", "full_prompt", "cls_tuning", "tenc_ft", "rn50_ft")
RATES = ("", "_clean", "_noise12_5", "_noise25", "_noise37_5", "_noise50", "_noise62_5")
ARMS_OF_NOISE = ("zero_shot", "linear_probe", *(f"{method}_{loss}" for method in METHODS for loss in ("ce", "gce")))
METRICS = {
    "cpr-mine": (
        *("r1_infonce", "r1_coclr", "r1_cpr", "same_palette_infonce", "same_palette_cpr"),
        *(
            f"mining_{figure}_{way}{when}"
            for figure in ("precision", "recall")
            for way in ("rgb", "flow", "cascade", "cascade_rgb", "cascade_flow")
            for when in ("", "_pre")
        ),
    ),
    "continual": (
        *("avg_acc", "bwt", "individual_avg_acc", "individual_matched_avg_acc", "finetune_avg_acc", "finetune_bwt"),
        *("expansion_factor", "tensor_digest_equal", "logits_equal"),
    ),
    "cpr-mine train": ("retrieval_r1_rgb", "finetune_rgb"),
    "detect train": ("ap", "ap50", "ap75", "ap50_car", "ap50_car_night", "ap50_vehicle"),
    "prompt-tune": (
        *(f"{kind}_{arm}{rate}" for kind in ("top1", "gain", "grad_ratio") for arm in ARMS_OF_NOISE for rate in RATES),
        *(f"auc_{arm}" for arm in ARMS_OF_NOISE),
    ),
    "prune-tokens": (
        *("top1_dense", "top1_predictor", "top1_predictor_tuned", "top1_cls_attn", "top1_random"),
        *("top1_golden", "top1_dense_golden", "top1_grid", "top1_evit", "top1_tome"),
        *("gain_over_random", "gain_over_cls_attn"),
    ),
    "prune-blocks": (
        *("top1", "top1_baseline", "top1_pruned", "top1_before_ft_mean"),
        *("scoring_bit_equal", "scoring_speedup", "scoring_mac_ratio"),
        *("tau_top1", "tau_loss"),
    ),
    "pretrain": (
        "knn20",
        "knn20_raw_pixels",
        "knn20_random_init",
        "compressed_stages",
        "bias2_growth_patch8",
        "search_units",
    ),
}


def name(path):
    return str(path.relative_to(ROOT / "recipes"))


@pytest.fixture(autouse=True)
def _little_beside(monkeypatch):
    """As in the tests of engines: jobs time few passes, and those of prune-blocks write no torch.export programs."""
    little_beside(monkeypatch)
    no_programs(monkeypatch)


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_resolves_and_says_what_it_is(path):
    recipe = read_recipe(path)
    command = next(c for c in commands.COMMANDS if c.title == recipe.command)
    resolved = resolve(config_class(command.config), {}, command=recipe.command, recipe=str(path))
    assert recipe.description and resolved.config
    for row in recipe.reference.get("expected", []):
        assert {"metric", "value", "tolerance"} <= set(row) <= {"metric", "value", "tolerance", "split"}
        assert float(row["value"]) and float(row["tolerance"])  # what could not be read is left out, not empty
    assert re.search(r"\b(minutes?|hours?)\b.*\b(core|cores|H100)\b", recipe.description)
    if recipe.reference:
        line = re.search("`effvl ([^`]*)`", recipe.description)[1].split()
        assert line[: len(recipe.command.split())] == recipe.command.split()
        assert recipes.find(line[line.index("--recipe") + 1]) == path


def kinds():
    """One recipe of those that differ in data, published figures and a trained network alone: the same in miniature."""
    seen = {}
    for path in RECIPES:
        recipe = read_recipe(path)
        if recipe.command.startswith(("cpr-mine", "continual", "detect")):  # tests of their own
            continue
        same = {key: value for key, value in recipe.config.items() if key != "data" or ":" in value}
        if recipe.config.get("method") == "supervised":
            same.pop("model")
        seen.setdefault((recipe.command, str(same), len(recipe.reference.get("expected", []))), path)
    return list(seen.values())


NETWORKS = sorted({read_recipe(p).config["model"] for p in RECIPES if "supervised" in p.name})


@pytest.mark.parametrize("model", NETWORKS)
def test_networks_of_recipes_are_built(model):
    module = build(model, seed=0, num_classes=7).module
    assert [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)] == [7]


@pytest.fixture
def small_pictures(monkeypatch):
    """Networks of ImageNet see pictures of 64 px."""
    whole = torchvision._preprocess
    monkeypatch.setattr(torchvision, "_preprocess", lambda name: dataclasses.replace(whole(name), size=(64, 64)))


@pytest.mark.parametrize("path", kinds(), ids=name)
def test_a_recipe_runs_in_miniature(effvl, few_images, quick_figures, small_pictures, image_folder, report, path):
    recipe = read_recipe(path)
    more = list(SMALL[recipe.command])
    if recipe.command == "pretrain":
        more += ["--steps", 3] if "steps" in recipe.config else ["--epochs", 1]
    foreign = recipe.config.get("weights") == "openai" or recipe.command.startswith("prune-blocks")
    if "folder:" in recipe.config.get("data", "") or foreign or recipe.config.get("method") == "supervised":
        more += ["--data", f"folder:{image_folder}"]
    if recipe.config.get("weights") == "openai":
        more += ["--model", "tiny:clip", "--weights", "none"]
    outcome = effvl(*recipe.command.split(), "--recipe", path, *more, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert report("run").recipe == str(path)
    assert len(report("run").comparison) == len(recipe.reference.get("expected", []))


@pytest.mark.parametrize("path", SWEEPS, ids=name)
def test_a_sweeps_arms_resolve_and_its_claims_can_be_judged(path, workdir):
    shutil.copytree(ROOT / "recipes", "recipes")
    recipe = sweep.read_sweep(path)
    assert re.search("minutes|hours", recipe.description)  # what it takes is said
    if path.parent.name == "tables":
        assert f"`effvl sweep tables/{path.stem}`" in recipe.description
    assert all(row["value"] != "null" for row in recipe.reference.get("expected", []))
    for run in sweep.plan(recipe, Path("out")):
        words, options = run.arguments, {}
        titles = (" ".join(words[:2]), words[0])
        command = next(c for title in titles for c in commands.COMMANDS if c.title == title)
        recipe_file = None
        for word in words[1:]:
            if word.startswith("--") and "=" in word:
                key, _, value = word[2:].partition("=")
                if key == "recipe":
                    recipe_file = value
                else:
                    options[key.replace("-", "_")] = value
            elif word.startswith("--") and word not in ("--seed", "--out"):
                options[word[2:].removeprefix("no-").replace("-", "_")] = str(not word.startswith("--no-")).lower()
        resolve(config_class(command.config), options, command=command.title, recipe=recipe_file)
    metrics = METRICS[recipe.command]
    figures = {arm: {m: 0.5 for m in metrics} | {f"{m}.se": 0.1 for m in metrics} for arm in recipe.arms}
    assert all(claims.judge(text, {0: figures, 1: figures}).seeds == 2 for text in recipe.claims)


def few_of_each(recipe, data, candidates=""):
    """Arms that differ in their length alone are one; networks, data and lengths are tiny.

    With `candidates` pictures are small too, of as few patches as fit the patches of the arms.
    """
    arms, twins = {}, {}
    for arm, options in recipe.arms.items():
        kept = {key: value for key, value in options.items() if key not in LENGTHS}
        twins[arm] = next((other for other in arms if _same(kept, recipe.arms[other])), arm)
        if twins[arm] != arm:
            continue
        if "run" in kept:
            name = re.search(r"{out}/(.*)-seed", kept["run"])[1]
            kept["run"] = f"{{out}}/{twins[name]}-seed{{seed}}"
            kept |= {"num-grad-batches": "4", "candidates": candidates}
        else:
            heads = ("prototypes", "head-hidden") if kept.get("method") == "dino" else ("head-hidden",)
            kept |= {"budget": "200", **dict.fromkeys(heads, "64")}
        arms[arm] = kept
    model = re.sub(r"vit:\w+", "vit:nano", recipe.config["model"])
    if candidates:
        model = re.sub(r"/16@2\d\d", "/15@60", model).replace("@32", "@16")
    config = {key: value for key, value in recipe.config.items() if key not in LENGTHS}
    config |= {"head-hidden": "64"} if "head-hidden" in config else {}
    config |= {"data": data, "batch-size": "8", "model": model}
    config |= {"compile": "false", "precision": "fp32"}  # a CPU without bf16 takes long for them; tested elsewhere
    return dataclasses.replace(recipe, config=config, arms=arms)


def _same(options, others):
    return options == {key: value for key, value in others.items() if key not in LENGTHS}


def twin_of(path):
    """An earlier table with the same arms at another size of the pictures."""
    arms = list(sweep.read_sweep(path).arms)
    return next(other for other in TABLES if list(sweep.read_sweep(other).arms) == arms)


@pytest.mark.parametrize("path", TABLES, ids=name)
def test_a_tables_arms_are_previewed_at_their_size(effvl, image_folder, path, monkeypatch):
    """Sizes and patches fit; arms that read what an earlier one wrote are run below, on smaller pictures."""
    monkeypatch.setattr(probe, "SHORTEST", 0.0)
    recipe = few_of_each(sweep.read_sweep(path), f"folder:{image_folder}")
    runs = [run for run in sweep.plan(recipe, Path("out")) if "search" not in run.arm]
    assert len(runs) >= 3
    for run in runs:
        outcome = effvl(*run.arguments, "--dry-run")
        assert outcome.code == 0, outcome.err


def slow_if_large(path):
    """Pictures of 224 px are previewed at their size above; the others run the same arms."""
    return pytest.param(path, marks=pytest.mark.slow) if "224px" in path.name else path


@pytest.mark.parametrize("path", [slow_if_large(path) for path in TABLES if twin_of(path) == path], ids=name)
def test_a_tables_arms_run_in_miniature(effvl, image_folder, report, path, workdir):
    (workdir / "candidates.yaml").write_text("- {patch: 15, keep_q: 0.5}\n- {patch: 20, keep_q: 1}\n")
    if "@32" in path.read_text():
        (workdir / "candidates.yaml").write_text("- {patch: 8, keep_q: 0.5}\n")
    recipe = few_of_each(sweep.read_sweep(path), f"folder:{image_folder}", "candidates.yaml")
    for run in sweep.plan(recipe, Path("out")):
        outcome = effvl(*run.arguments)
        assert outcome.code == 0, outcome.err
        figures = report(run.folder).metrics
        assert "knn20" in figures or "compressed_stages" in figures
    names = {arm.replace("-", "_").replace(".", "_") for arm in sweep.read_sweep(path).arms}
    assert all(text.split(".knn20")[0] in names for text in recipe.claims)


def few_of_searches(recipe, data):
    """Searches and trainings under what they found, on few pictures; of trainings that differ in the file alone one."""
    arms, seen = {}, set()
    for arm, options in recipe.arms.items():
        small = {key: value for key, value in options.items() if key not in LENGTHS}
        kind = str(small | {"schedule": "found"} if small.get("schedule", "").startswith("{out}") else small)
        if kind in seen:
            continue
        seen.add(kind)
        if "run" not in small:
            small |= {"budget": "200", "batch-size": "8", "head-hidden": "64"}
        if "data" in small:
            small["data"] = data
        if "model" in small:
            small["model"] = small["model"].replace("tiny", "nano")
        if "search" in small.get("command", ""):
            small |= {"candidate-keeps": "0.5", "measure-at": "0.25", "num-grad-batches": "4"}
        arms[arm] = small
    return dataclasses.replace(recipe, config=recipe.config | {"data": data}, arms=arms, seeds=(0,), arm_seeds={})


@pytest.mark.parametrize("name", ["pretrain-search", "pretrain-transfer"])
def test_schedule_searches_run_in_miniature(effvl, image_folder, report, name):
    recipe = few_of_searches(sweep.read_sweep(ROOT / "recipes" / "mini" / f"{name}.yaml"), f"folder:{image_folder}")
    searches = [arm for arm, options in recipe.arms.items() if "search" in options.get("command", "")]
    assert len(searches) == (9 if name == "pretrain-search" else 1)
    runs = sweep.plan(recipe, Path("out"))
    for run in runs:
        outcome = effvl(*run.arguments)
        assert outcome.code == 0, outcome.err
    for run in runs:  # a search without RUN has none of the sweep's options: it once ran on the embedded data
        found = report(run.folder)
        assert found.data[0].name == f"folder:{image_folder.name}"
        assert ("search_units" in found.metrics) == (run.arm in searches)
        if run.arm in searches:
            assert found.technique["batch_size"] == 8
    if name == "pretrain-transfer":
        stages = report("out/searched-seed0").technique["arms"]["train"]["schedule"]
        found = report("out/search-seed0").technique["schedule"]
        assert {row["patch"] for row in stages} <= {2 * row["patch"] for row in found}


def kinds_of_block_removal():
    """One sweep of those that differ in data and the trained network alone."""
    seen = {}
    for path in SWEEPS:
        if "prune-blocks" in path.name and "published" not in path.name:
            recipe = sweep.read_sweep(path)
            train = recipe.arms["train"]
            train = train | (
                read_recipe(ROOT / "recipes" / f"{train['recipe']}.yaml").config if "recipe" in train else {}
            )
            other = {key: value for key, value in train.items() if key not in ("recipe", "model", "data")}
            config = {key: value for key, value in recipe.config.items() if key != "data"}
            seen.setdefault(str((other, config)), path)
    return list(seen.values())


@pytest.mark.parametrize("path", kinds_of_block_removal(), ids=name)
def test_arms_of_block_removal_run_in_miniature(effvl, image_folder, report, path, workdir):
    """The training and one arm that builds on it; another network, so that blocks named by path are left out."""
    shutil.copytree(ROOT / "recipes", "recipes")
    recipe = sweep.read_sweep(path)
    first = next(arm for arm in recipe.arms if arm.startswith("direct"))
    data = {"data": f"folder:{image_folder}"}
    train = recipe.arms["train"] | data | {"model": "cifar-resnet:20,width=4", "batch-size": "8"}
    train |= {"steps": "2"} if "epochs" not in recipe.arms["train"] and "cifar" in path.name else {"epochs": "1"}
    lengths = {"finetune-epochs": "1", "final-epochs": "1", "finetune-batch-size": "8", "score-size": "2"}
    config = {key: value for key, value in recipe.config.items() if key != "finetune-steps"}
    config |= data | lengths | {"latency-batch-size": "1", "force": "true"}
    small = dataclasses.replace(recipe, config=config, arms={"train": train, first: recipe.arms[first]}, arm_seeds={})
    for run in sweep.plan(dataclasses.replace(small, seeds=(0,)), Path("out")):
        outcome = effvl(*run.arguments)
        assert outcome.code == 0, outcome.err
    figures = report("out/" + first + "-seed0").metrics
    assert figures["params_removed"].value >= float(recipe.arms[first].get("target-params", 0))


LITTLE = {
    **{"model": "tiny:clip", "weights": "none", "shots": "2", "epochs": "1", "batch-size": "8", "num-context": "2"},
    **{"rn50-model": "tiny:resnet", "rn50-weights": "none", "download": "false", "noise-rate": "0.5"},
    **{"pseudo-models": "tiny:clip", "precision": "fp32"},  # processors are slow at bfloat16
}


def kinds_of_prompt_tuning():
    """An arm of each table that does not differ in data, network and lengths alone from one of another table."""
    seen = {}
    for path in SWEEPS:
        if path.name.startswith("prompt-tune") and path.parent.name == "tables":
            recipe = sweep.read_sweep(path)
            for arm in recipe.arms:
                options = sweep.options_of(recipe, recipe.arms[arm])
                other = {key: options[key] for key in options if key not in ("data", "noise", "select", *LITTLE)}
                seen.setdefault(str(sorted(other.items())), (path, arm))
    return list(seen.values())


@pytest.mark.parametrize(("path", "arm"), kinds_of_prompt_tuning(), ids=lambda value: getattr(value, "stem", value))
def test_an_arm_of_prompt_tuning_runs_in_miniature(effvl, image_folder, report, path, arm):
    recipe = sweep.read_sweep(path)
    options = sweep.options_of(recipe, recipe.arms[arm])
    little = {key: value for key, value in LITTLE.items() if key in options or key in ("model", "rn50-model")}
    little |= {"data": f"folder:{image_folder}"}
    small = dataclasses.replace(recipe, arms={arm: {**recipe.arms[arm], **little}}, arm_seeds={}, seeds=(0,))
    (run,) = sweep.plan(small, Path("out"))
    outcome = effvl(*run.arguments)
    assert outcome.code == 0, outcome.err
    methods = {row["method"] for row in report(run.folder).technique["results"]}
    assert methods == set(options["method"].split(","))


def test_an_arm_on_published_weights_runs_in_miniature(effvl, image_folder, report):
    """A file like the published ones, of two classes, and one removal."""
    recipe = sweep.read_sweep(ROOT / "recipes" / "mini" / "prune-blocks-published.yaml")
    state = build("cifar-resnet:20,pad=both", seed=0, num_classes=2).module.state_dict()
    renamed = {f"module.{key.replace('fc.', 'linear.')}": value for key, value in state.items() if "num_" not in key}
    torch.save({"state_dict": renamed, "best_prec1": 91.7}, "resnet20.th")
    config = recipe.config | {"data": f"folder:{image_folder}", "weights": "resnet20.th", "force": "true"}
    config |= {"remove": "1", "finetune-steps": "1", "finetune-batch-size": "8", "score-size": "2"}
    first = {"r20-direct": recipe.arms["r20-direct"]}
    (run,) = sweep.plan(dataclasses.replace(recipe, config=config, arms=first, arm_seeds={}), Path("out"))
    outcome = effvl(*run.arguments)
    assert outcome.code == 0, outcome.err
    found = report("out/r20-direct-seed0")
    assert found.model.name == "cifar-resnet:20,pad=both" and len(found.technique["steps"]) == 1
