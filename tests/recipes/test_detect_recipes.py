"""Recipes and sweeps of `detect` run in miniature, on tiny copies of their data in the true layouts."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from effvl_cli.config.recipe_file import read_recipe
from effvl_cli.core import sweep
from effvl_cli.data import road_scenes
from tests.recipes.road_sets import SETS

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted((ROOT / "detect").glob("*.yaml"))
TABLES = sorted((ROOT / "tables").glob("detect-*.yaml"))
MINIATURES = sorted((ROOT / "mini").glob("detect*.yaml"))
# data, network, lengths, batch sizes and workers; bf16 takes long on a CPU without it
NETWORK = {"preset": "tiny", "weights": "none", "min-size": "64", "max-size": "96"}
LITTLE = {**NETWORK, "epochs": "1", "batch-size": "4", "workers": "0", "precision": "fp32", "num-pictures": "1"}


@pytest.fixture
def roads(workdir, monkeypatch):
    """A working folder with the recipes, the data sets as `runs/data/NAME`, few drawn scenes."""
    shutil.copytree(ROOT, "recipes")
    for name, make in SETS.items():
        make(Path("runs/data") / name)
    whole = road_scenes.Plan.parse
    few = lambda argument: dataclasses.replace(whole(argument), scenes=4, frames=2, val=2, test=4)  # noqa: E731
    monkeypatch.setattr(road_scenes.Plan, "parse", few)


def flags(options):
    return [f"--{key}={value}" for key, value in options.items()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_detect_runs_in_miniature(effvl, report, roads, path):
    recipe = read_recipe(path)
    options = LITTLE | ({"data-root": "runs/data"} if "--data-root" in recipe.description else {})
    outcome = effvl(*recipe.command.split(), "--recipe", path, *flags(options), "--out", "run")
    assert outcome.code == 0, outcome.err
    found = report("run")
    assert found.recipe == str(path)
    assert found.metrics["ap"].n


def in_little(recipe):
    """The arms with a tiny network, few images and one epoch."""
    config = {key: value for key, value in recipe.config.items() if key not in ("epochs", "steps")}
    arms = {}
    for arm, options in recipe.arms.items():
        own = {key: value for key, value in options.items() if key not in ("epochs", "steps")}
        command = own.get("command", recipe.command)
        if command == "detect train":
            own |= LITTLE
        elif command == "detect bench":
            own |= {"size": "64x96", "batch-size": "1", "seconds": "0.01", "onnx": "false"}
        arms[arm] = own
    return dataclasses.replace(recipe, config=config, arms=arms)


# of the others there is one that differs in few options
ARMS = {
    "detect": ("single-torchvision", "subclass", "subclass-sum", "dedup", "outside"),
    "detect-ladder": ("base", "full", "bench-full"),
    "detect-bdd100k": ("subclass-dedup", "full"),
    "detect-daynight": ("tag-auto", "near-duplicates", "single", "outside"),
}


@pytest.mark.parametrize("path", [*MINIATURES, *TABLES], ids=lambda path: path.stem)
def test_arms_run_after_one_another(effvl, report, roads, path):
    """One seed; each figure that is claimed something of is measured."""
    recipe = in_little(sweep.read_sweep(path))
    arms = {arm: options for arm, options in recipe.arms.items() if arm in ARMS.get(path.stem, recipe.arms)}
    runs = sweep.plan(dataclasses.replace(recipe, arms=arms, seeds=(0,)), Path("out"))
    for run in runs:
        outcome = effvl(*run.arguments)
        assert outcome.code == 0, f"{run.arm}: {outcome.err}"
    trained = next(run for run in runs if run.arguments[:2] == ["detect", "train"])
    claimed = set(re.findall(r"\.(ap\w*)", " ".join(recipe.claims)))
    assert claimed and claimed <= set(report(trained.folder).metrics)
