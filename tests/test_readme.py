"""The README's commands are understood, and its make targets are there."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
LINES = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [shlex.split(line)[1:] for line in LINES if line.startswith("effvl ")]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_resolves(effvl, workdir, words):
    if "eval" in words:  # it works on a run: a stored one with nothing but its options
        run = workdir / "runs" / "prune-tokens" / "flowers"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("effvl: 1\ncommand: prune-tokens\nconfig: {keep: 0.6}\n")
        words = [*words, str(run)] if "runs/prune-tokens/flowers" not in words else words
    outcome = effvl(*words, "--dry-run")
    assert outcome.code == 0, outcome.err


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", text))
    assert {"demo", "test", "lint", "assets", "mini-prune-tokens", "bench-prune-tokens"} <= targets
    for target in targets:
        known = f"\n{target}:" in makefile
        known |= target.startswith("mini-") and (ROOT / "recipes" / "mini" / f"{target[5:]}.yaml").is_file()
        known |= target.startswith("table-") and (ROOT / "recipes" / "tables" / f"{target[6:]}.yaml").is_file()
        known |= (
            target.startswith("bench-")
            and (ROOT / "tests" / "bench" / f"bench_{target[6:].replace('-', '_')}.py").is_file()
        )
        assert known, target
