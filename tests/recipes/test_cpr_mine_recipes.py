"""Recipes of cpr-mine run in miniature: other data, a tiny encoder, short lengths and small batches."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from effvl_cli.config.recipe_file import read_recipe
from effvl_cli.core import sweep
from effvl_cli.data import video_views
from effvl_cli.models import network as networks
from effvl_cli.models.clip_encoders import ClipInput, save_encoder
from tests.engines import few_clips

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted((ROOT / "cpr-mine").glob("*.yaml"))
TABLES = sorted((ROOT / "tables").glob("cpr-mine-*.yaml"))
TRAIN = {"model": "tiny3d", "frames": "4", "image-size": "20", "queue-size": "16", "batch-size": "8", "epochs": "1"}
EVAL = {
    **{"frames": "4", "image-size": "20", "finetune-epochs": "1", "linear-epochs": "1", "probe-epochs": "2"},
    **{"finetune-batch-size": "8", "linear-batch-size": "8", "probe-batch-size": "16"},
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Few small videos, and a flow that needs no package."""
    few_clips.register(monkeypatch)
    gradients = video_views.make_view("gradflow:1")
    monkeypatch.setitem(video_views._VIEWS, "flow", lambda name, *_: dataclasses.replace(gradients, name=name))


@pytest.fixture
def weights(tmp_path):
    """Encoders of both views, as VIEW=FOLDER."""
    for view, name in (("rgb", "tiny3d"), ("flow:tvl1", "tiny3d:channels=2")):
        clips = ClipInput(view, 4, size=20, crop=20)
        save_encoder(tmp_path / view.replace(":", "-"), networks.build(name, seed=0), clips)
    return f"rgb={tmp_path / 'rgb'},flow:tvl1={tmp_path / 'flow-tvl1'}"


def small(command):
    """Options in the place of those of a recipe."""
    lengths = TRAIN if command == "cpr-mine train" else EVAL
    return {"data": few_clips.NAME, "workers": "0", "stride": "1", **lengths}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_cpr_mine_runs_in_miniature(effvl, report, weights, path):
    recipe = read_recipe(path)
    options = small(recipe.command)
    if recipe.config.get("mine-with") != "none":
        options["weights"] = weights
    words = [f"--{key}={value}" for key, value in options.items()]
    outcome = effvl(*recipe.command.split(), "--recipe", path, *words, "--out", "run")
    assert outcome.code == 0, outcome.err
    found = report("run")
    assert found.recipe == str(path)
    assert all(row.actual is not None for row in found.comparison)  # what is compared is measured
    assert len(found.comparison) == len(recipe.reference.get("expected", []))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_arms_of_a_table_run_after_one_another(effvl, report, path, workdir):
    """InfoNCE of both views, the first training with mined positives, and what evaluates it."""
    shutil.copytree(ROOT, workdir / "recipes")
    recipe = sweep.read_sweep(path)
    first = next(arm for arm in recipe.arms if not arm.startswith("infonce"))
    of_first = [arm for arm in recipe.arms if recipe.arms[arm].get("run") == f"{{out}}/{first}-seed{{seed}}"]
    chosen = ["infonce-rgb", "infonce-flow", first, *of_first]
    arms = {arm: {**recipe.arms[arm], **small(recipe.arms[arm].get("command", recipe.command))} for arm in chosen}
    tiny = dataclasses.replace(recipe, config={}, arms=arms)
    for run in sweep.plan(tiny, Path("out")):
        outcome = effvl(*run.arguments)
        assert outcome.code == 0, outcome.err
    assert of_first and report(f"out/{of_first[0]}-seed0").metrics
