"""The tables of token pruning: their arms run in miniature, and their claims are those of the paper."""

from pathlib import Path

import pytest

from effvl_cli.config import recipes
from effvl_cli.config.recipe_file import read_recipe
from effvl_cli.core import sweep
from effvl_cli.data import DATASETS

ROOT = Path(__file__).parents[2]
SEVEN = ("caltech101", "oxford_pets", "flowers102", "food101", "fgvc_aircraft", "dtd", "ucf101")
# Top-1 % of the official repository's table, by row.
PUBLISHED = {
    "evit": (92.5, 87.1, 67.1, 80.3, 23.3, 43.3, 63.3, 58.1),
    "tome": (91.5, 87.2, 67.7, 82.4, 20.4, 41.5, 64.9, 58.3),
    "predictor_tuned": (93.4, 88.1, 67.9, 82.8, 22.9, 43.7, 65.2, 59.5),
}
TABLES = {
    "prune-tokens": ("imagenet", "imagenet-simple", "imagenet-rates", "speed"),
    "prune-tokens-transfer": ("imagenet", "dtd-transfer-simple"),
}


def recipe_of(data):
    return read_recipe(ROOT / "recipes" / "prune-tokens" / f"vit-b16-{data.replace('_', '-')}.yaml")


def test_the_recipes_have_the_published_rows_beside_them():
    for place, data in enumerate((*SEVEN, "imagenet")):
        recipe = recipe_of(data)
        DATASETS.find(data)
        assert recipe.config["data"] == data
        expected = {row["metric"]: row["value"] for row in recipe.reference["expected"]}
        assert {f"top1_{row}": values[place] / 100 for row, values in PUBLISHED.items()} == {
            metric: pytest.approx(float(value)) for metric, value in expected.items()
        }


def test_both_prompt_sets_of_every_data_set_are_in_the_tables():
    arms = sweep.read_sweep(ROOT / "recipes" / "tables" / "prune-tokens.yaml").arms
    transfer = sweep.read_sweep(ROOT / "recipes" / "tables" / "prune-tokens-transfer.yaml").arms
    for data in (*SEVEN, "imagenet"):
        name = data.replace("_", "-")
        assert (arms[name]["templates"], arms[f"{name}-simple"]["templates"]) == ("coop", "simple")
        assert str(recipes.find(arms[name]["recipe"])) == recipe_of(data).path
        assert arms[f"{name}-rates"]["keep"] == "0.9,0.8,0.7,0.6,0.5,0.4,0.3"
        assert arms[f"{name}-rates"]["selector"] == "predictor,cls-attn,evit,tome,grid,random"
        assert {transfer[f"{name}-transfer{end}"]["templates"] for end in ("", "-simple")} == {"coop", "simple"}
        assert transfer[f"{name}-transfer"]["data"] == data


def test_a_mean_drop_counts_the_seven_alike():
    for table, tuned in (("prune-tokens", "predictor_tuned"), ("prune-tokens-transfer", "predictor")):
        claims = sweep.read_sweep(ROOT / "recipes" / "tables" / f"{table}.yaml").claims
        drops = [claim for claim in claims if claim.endswith(">= -0.005")]
        assert len(drops) == 2
        for claim in drops:
            assert claim.count(f".top1_{tuned} - ") == 7 and "imagenet" not in claim and ") / 7 " in claim


@pytest.mark.parametrize("table", TABLES)
def test_the_arms_run_in_miniature(effvl, few_images, image_folder, report, quick_figures, monkeypatch, table):
    """One of each kind, on two classes and the shipped model, which a test may put in the place of the paper's."""
    monkeypatch.chdir(ROOT)
    out = image_folder.parent / "out"
    small = (*("--shots", 2, "--predictor-epochs", 1, "--predictor-batch-size", 4), *("--tune-epochs", 1))
    recipe = sweep.read_sweep(ROOT / "recipes" / "tables" / f"{table}.yaml")
    for run in sweep.plan(recipe, out):
        if run.seed != 1 or run.arm not in TABLES[table]:
            continue
        words = [word for word in run.arguments if not word.startswith(("--data=", "--batch-size=", "--precision="))]
        is_job = "--recipe" in " ".join(words)
        more = ("--model", "tiny:clip", "--weights", "none", "--num-golden", 2, *small) if is_job else ()
        batch = ("--batch-size", 2) if "bench" in words else ()
        outcome = effvl(*words, "--data", f"folder:{image_folder}", *more, *batch)
        assert outcome.code == 0, outcome.err
        done = report(run.folder)
        assert ("top1_dense" in done.metrics) == (run.arm != "speed")
        if is_job and table == "prune-tokens":
            assert {row.metric for row in done.comparison} == {f"top1_{row}" for row in PUBLISHED}
