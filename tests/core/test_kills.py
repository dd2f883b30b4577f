"""Killed after every write and gone on from it, each command ends with the bits of a run that was left alone."""

from pathlib import Path

import pytest

from effvl_cli.data import shape_captions
from tests.conftest import time_few_passes
from tests.kills import assert_same_result, run_with_kills

SUPERVISED = (
    *("pretrain", "--method", "supervised", "--model", "cifar-resnet:8,width=4", "--epochs", 1, "--batch-size", 16),
    *("--save-every", 1, "--log-every", 1),
)
SIMCLR = (
    *("pretrain", "--num-images", 24, "--num-bank", 24, "--batch-size", 8, "--budget", 60, "--log-every", 2),
    *("--save-every", 2, "--model", "vit:nano/8@16,mean", "--schedule", "0.5:keep=0.5;1:keep=1"),
)
BLOCKS = (
    *("prune-blocks", "--model", "cifar-resnet:14,width=4", "--baseline-epochs", 1, "--baseline-batch-size", 16),
    *("--finetune-batch-size", 16, "--final-epochs", 1, "--remove", 2, "--force", "--save-every", 1, "--log-every", 1),
    *("--latency-batch-size", 1, "--bn-recal", 8),
)
TOKENS = (
    *("prune-tokens", "--shots", 2, "--num-golden", 2, "--predictor-epochs", 2, "--predictor-batch-size", 8),
    *("--tune-epochs", 1, "--tune-batch-size", 8, "--save-every", 2),
)

PROMPTS = (
    *("prompt-tune", "--shots", 1, "--epochs", 2, "--batch-size", 15, "--num-folds", 2, "--save-every", 1),
    *("--method", "linear-probe,prompt", "--loss", "gce", "--noise-rate", "0.5", "--noise", "pair", "--log-every", 1),
    *("--grad-analysis", "--num-grad-samples", 1),
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little data, and two passes a measurement."""
    for split, count in (("val", 12), ("test", 12)):
        monkeypatch.setitem(shape_captions.SPLITS, split, count)
    time_few_passes(monkeypatch)


SLOW = {
    name: pytest.param(line, id=name, marks=pytest.mark.slow)
    for name, line in (("simclr", SIMCLR), ("blocks", BLOCKS), ("tokens", TOKENS), ("prompts", PROMPTS))
}


@pytest.mark.parametrize("line", [pytest.param(SUPERVISED, id="supervised"), *SLOW.values()])
def test_a_run_killed_after_each_of_its_writes_ends_with_the_same_bits(line, effvl, image_folder, monkeypatch):
    if line in (SUPERVISED, BLOCKS):
        line = (*line, "--data", f"folder:{image_folder}")
    monkeypatch.setattr("effvl_cli.engines.prune_tokens.job.CURVE", (0.5,))
    done = effvl(*line, "--out", "whole", "--cache-dir", "cache-whole")
    assert done.code == 0, done.err
    words = [str(word) for word in (*line, "--out", "parts", "--cache-dir", "cache-parts")]
    assert run_with_kills(monkeypatch, words) > 8
    assert_same_result(Path("whole"), Path("parts"))
