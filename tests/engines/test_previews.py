"""--dry-run says what a run will do and cost, and leaves nothing."""

import re
from pathlib import Path

import pytest

from effvl_cli.config.prune_tokens import RankConfig
from effvl_cli.core.run import unopened
from effvl_cli.engines.prune_tokens.context import build_context
from effvl_cli.engines.prune_tokens.preview import search_cost

LINES = {
    "prune-tokens --shots 2": ["ranking", "predictor", "prompts", "golden ranking", "evaluation"],
    "prune-tokens rank --shots 2": ["ranking"],
    "prune-blocks": ["original", "fine-tuning", "scoring", "at the end", "evaluation"],
    "prune-blocks score --weights none --model cifar-resnet:14,width=4 --data digits": ["scoring"],
    "pretrain --budget 2k": ["baseline", "accelerated", "features"],
    "pretrain search --budget 2k": ["pilot", "gradients"],
    "pretrain --method supervised --data digits --epochs 2": ["train", "evaluate"],
    "pretrain --method clip --steps 5": ["train", "evaluate"],
}


@pytest.mark.parametrize("line", LINES)
def test_a_dry_run_lists_the_parts_with_their_costs(line, effvl):
    outcome = effvl(*line.split(), "--dry-run")
    assert outcome.code == 0, outcome.err
    rows = [re.split(r"\s{2,}", text.strip()) for text in outcome.out.splitlines()]
    found = [row[0] for row in rows if len(row) == 4 and re.fullmatch(r"[\d.]+ (s|min|h|days)", row[-1])]
    assert [name for name in found if name != "all"] == LINES[line]
    assert "times by a short probe on cpu" in outcome.out and "memory" in outcome.out
    assert not Path("runs").exists()


def test_epochs_and_images_are_those_of_the_options(effvl):
    text = effvl("pretrain", "--method", "supervised", "--data", "digits", "--epochs", 3, "--dry-run").out
    steps = 3 * (1078 // 64)  # digits: 1,797 images, of which 1,078 train
    assert f"{steps} steps of 64 images" in text


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({"group": 0}, 64),  # each patch once
        ({"group": 1, "rank_until": 0.5}, sum(range(33, 65)) + 32),  # 64, 63, .. 33 candidates, then the rest once
        ({"group": 20, "rank_until": 0.5}, 64 + 44 + 32),
    ],
)
def test_candidates_of_a_search_by_hand(options, passes):
    config = RankConfig(device="cpu", **options)
    context = build_context(config, unopened("prune-tokens rank", config))
    found, macs = search_cost(context)
    assert found == passes
    shape = context.shape
    assert shape.dense() < macs <= shape.dense() + passes * shape.candidate(63, 0)
