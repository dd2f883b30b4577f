"""The claims of the miniature experiment, on the shipped default."""

import shutil
from pathlib import Path

import pytest

from effvl_cli.core.sweep_table import tabulate
from tests.processes import run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_claims_of_token_pruning_hold(workdir):
    shutil.copytree(ROOT / "recipes", "recipes")
    run("sweep", "recipes/mini/prune-tokens.yaml", timeout=1500)
    claims = tabulate([Path("recipes/mini/prune-tokens.yaml")])[1]
    assert len(claims.rows) == 6
    assert [row[1] for row in claims.rows if row[0] != "PASS"] == []
