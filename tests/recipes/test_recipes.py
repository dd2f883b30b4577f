"""Every shipped recipe resolves, and runs in miniature."""

import shutil
from pathlib import Path

import pytest

from effvl_cli.cli import commands
from effvl_cli.cli.flags import config_class
from effvl_cli.config.resolve import read_recipe, resolve
from effvl_cli.core import claims, sweep

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
}


METRICS = {
    "prune-tokens": ("top1_dense", "top1_predictor", "top1_predictor_tuned", "gain_over_random", "gain_over_cls_attn"),
    "pretrain": ("knn20", "knn20_raw_pixels", "knn20_random_init", "compressed_stages", "bias2_growth_patch8"),
}


def name(path):
    return str(path.relative_to(ROOT / "recipes"))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_resolves_and_says_what_it_is(path):
    recipe = read_recipe(path)
    command = next(c for c in commands.COMMANDS if c.title == recipe.command)
    resolved = resolve(config_class(command.config), {}, command=recipe.command, recipe=str(path))
    assert recipe.description and resolved.config
    for row in recipe.reference.get("expected", []):
        assert set(row) == {"metric", "value", "tolerance", "split"}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_runs_in_miniature(effvl, few_images, image_folder, report, path):
    recipe = read_recipe(path)
    more = list(SMALL[recipe.command])
    if recipe.command == "pretrain":
        more += ["--steps", 3] if "steps" in recipe.config else ["--epochs", 1]
    if "folder:" in recipe.config.get("data", ""):
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
    assert "minutes" in recipe.description  # what it takes is said
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
        resolve(config_class(command.config), options, command=command.title, recipe=recipe_file)
    metrics = METRICS[recipe.command]
    figures = {arm: {m: 0.5 for m in metrics} | {f"{m}.se": 0.1 for m in metrics} for arm in recipe.arms}
    assert all(claims.judge(text, {0: figures, 1: figures}).seeds == 2 for text in recipe.claims)
