"""--dry-run says what a run will do and cost, and leaves nothing."""

import re
from pathlib import Path

import pytest

from effvl_cli.config.prune_tokens import RankConfig
from effvl_cli.core import bench
from effvl_cli.core.run import unopened
from effvl_cli.data import decoded
from effvl_cli.engines.common.cost_table import timings
from effvl_cli.engines.prune_tokens.context import build_context
from effvl_cli.engines.prune_tokens.preview import candidates_of

LINES = {
    "prune-tokens --shots 2": ["ranking", "predictor", "prompts", "golden ranking", "evaluation"],
    "prune-tokens rank --shots 2": ["ranking"],
    "prune-blocks": ["original", "fine-tuning", "scoring", "at the end", "evaluation"],
    "prune-blocks score --weights none --model cifar-resnet:14,width=4 --data digits": ["scoring"],
    "pretrain --budget 2k": ["baseline", "accelerated", "features"],
    "pretrain search --budget 2k --along pilot": ["pilot", "gradients"],
    "pretrain search --budget 2k --along accelerated --lookahead 2": ["training", "gradients", "look-ahead"],
    "pretrain --method supervised --data digits --epochs 2": ["train", "evaluate"],
    "pretrain --method clip --steps 5": ["train", "evaluate"],
}


@pytest.mark.parametrize("line", LINES)
def test_a_dry_run_lists_the_parts_with_their_costs(line, effvl):
    outcome = effvl(*line.split(), "--dry-run")
    assert outcome.code == 0, outcome.err
    assert _parts(outcome.out) == LINES[line]
    assert "times from a short probe on cpu" in outcome.out and "memory" in outcome.out
    assert not Path("runs").exists()


@pytest.mark.parametrize("technique", ["prune-tokens", "prompt-tune"])
def test_the_memory_is_that_of_decoded_images_while_they_are_held(technique, effvl, monkeypatch):
    monkeypatch.setattr(decoded, "physical_memory", lambda: 2 << 30)

    def told(shots):
        outcome = effvl(technique, "--shots", shots, "--dry-run")
        assert outcome.code == 0 and f"{30 * shots:,} images" in outcome.out
        return int(re.search(r"memory about ([\d,]+) MiB", outcome.out)[1].replace(",", ""))

    training, test = 30 * 1000 * 3 * 64 * 64 / 2**20, 4000 * 3 * 64 * 64 / 2**20
    held = training + test if technique == "prune-tokens" else training  # prompt-tune keeps features, one split a time
    assert held <= told(1000) < held + 10
    assert test <= told(100_000) < test + 10  # read when they are needed


OF_RUNS = {
    "prune-tokens rank --shots 1": {
        "predict": ["ranking", "predictor"],
        "tune": ["prompts", "evaluation"],
        "eval --selector predictor,golden --keep 0.5,0.3": ["golden ranking", "evaluation"],
        "bench --selector predictor,random --batch-size 1,8": ["latency"],
        "export --format state,onnx": ["files"],
        "viz --selector golden,random": ["golden ranking", "pictures"],
    },
    "pretrain --method supervised --data digits --steps 1 --batch-size 8 --model cifar-resnet:14,width=4": {},
    "pretrain --data digits --budget 30 --batch-size 4 --num-bank 20 --no-baseline": {
        "eval --sgd-epochs 2": ["features", "SGD probe"],
    },
}


@pytest.mark.parametrize("line", OF_RUNS)
def test_verbs_tell_what_they_will_do_with_a_run(line, effvl):
    assert effvl(*line.split(), "--out", "run").code == 0
    technique = line.split()[0]
    verbs = OF_RUNS[line] or {"apply --units 0 --force": ["fine-tuning", "at the end", "evaluation"]}
    for verb, expected in verbs.items():
        name, *options = verb.split()
        if name == "apply":
            outcome = effvl("prune-blocks", name, "--weights", "run", "--data", "digits", *options, "--dry-run")
        else:
            outcome = effvl(technique, name, "run", *options, "--dry-run")
        assert outcome.code == 0, outcome.err
        assert _parts(outcome.out) == expected


@pytest.mark.parametrize(
    ("verb", "expected"),
    [("bench", ["latency", "in onnxruntime"]), ("bench --no-onnx", ["latency"]), ("export", ["files"])],
)
def test_verbs_on_a_pruned_network_tell_what_they_cost(blocks_run, few_digits, verb, expected, effvl):
    name, *options = verb.split()
    outcome = effvl("prune-blocks", name, blocks_run, *options, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert _parts(outcome.out) == expected


def test_latencies_take_as_many_passes_as_the_protocol_by_hand(monkeypatch):
    """Two arms of 1 and 0.5 G, batch 2, at 1 G a second: 3 s a turn, 7 turns until 10 s an arm, 2 to warm up."""
    for name, value in (("MIN_PASSES", 5), ("MAX_PASSES", 50), ("WARM_UPS", 2)):  # those of the protocol
        monkeypatch.setattr(bench, name, value)
    found = timings([1e9, 5e8], [2], 1e9, seconds=10)
    assert (found.macs, found.seconds) == (27e9, 27)
    assert timings([1e9], [1], 1e9, seconds=1).seconds == 2 + 5  # never fewer than five
    assert timings([1e6], [1], 1e9, seconds=1).seconds == pytest.approx(52e-3)  # never more than fifty


def _parts(text):
    """Names of the rows of a table of costs, but for the sum."""
    rows = [re.split(r"\s{2,}", line.removeprefix("#").strip()) for line in text.splitlines()]
    found = [row[0] for row in rows if len(row) == 4 and re.fullmatch(r"[\d.]+ (s|min|h|days)", row[-1])]
    return [name for name in found if name != "all"]


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
    found, macs = candidates_of(context)
    assert found == passes
    shape = context.shape
    assert shape.dense() < macs <= shape.dense() + passes * shape.candidate(63, 0)
