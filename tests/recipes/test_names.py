"""Recipes are found by name, from anywhere."""

from pathlib import Path

import pytest

from effvl_cli.config import recipes
from effvl_cli.config.prune_tokens import PruneTokensConfig
from effvl_cli.config.resolve import resolve


@pytest.mark.parametrize("given", ["vit-b16-dtd", "prune-tokens/vit-b16-dtd", "recipes/prune-tokens/vit-b16-dtd.yaml"])
def test_a_recipe_by_name(workdir, given):
    resolved = resolve(PruneTokensConfig, {}, command="prune-tokens", recipe=given)
    assert resolved.config.data == "dtd" and resolved.origins["data"] == f"recipe {given}"


def test_a_file_that_is_there_wins(workdir):
    Path("vit-b16-dtd").write_text("effvl: 1\n")
    assert recipes.find("vit-b16-dtd") == Path("vit-b16-dtd")


def test_a_sweep_by_name(effvl, workdir):
    shown = effvl("sweep", "mini/prune-tokens", "--dry-run")
    assert shown.code == 0 and "runs, 0 done" in shown.out
    outcome = effvl("sweep", "prune-tokens", "--dry-run")
    assert outcome.code == 2 and "2 recipes are called 'prune-tokens'" in outcome.error
    assert "mini/prune-tokens or tables/prune-tokens" in outcome.error
    outcome = effvl("table", "mini/prune-tokens")
    assert outcome.code == 3 and "no completed run of" in outcome.error


def test_none_of_that_name(effvl, workdir):
    outcome = effvl("prune-tokens", "--recipe", "vit-b16-dtt")
    assert outcome.code == 2 and "no recipe at vit-b16-dtt" in outcome.error and "'vit-b16-dtd'" in outcome.error


def test_they_are_listed_anywhere(effvl, workdir):
    shown = effvl("list", "recipes").out
    assert "prune-tokens/vit-b16-dtd" in shown and "mini/pretrain" in shown and "unusable" not in shown
