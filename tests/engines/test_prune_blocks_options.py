"""Combinations of options and networks off the beaten track, through the real command."""

import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from effvl_cli.core.checkpoint import load_model
from effvl_cli.core.errors import ModelError
from effvl_cli.engines.prune_blocks import surgery
from effvl_cli.models import network as networks
from effvl_cli.techniques.prune_blocks import importance

MODEL = "cifar-resnet:14,width=4"
SHORT = ("--finetune-epochs", 0, "--final-epochs", 0, "--latency-batch-size", 1, "--score-size", 3)


pytestmark = pytest.mark.usefixtures("shared_cache", "few_digits")  # one training of the network for all jobs here


@pytest.fixture
def trained(blocks_run):
    """A run that has lost two blocks."""
    return blocks_run


@pytest.fixture
def exploding():
    """Weights of a network whose second block takes off what the first adds: without it, everything overflows."""
    network = networks.build(MODEL, seed=0, num_classes=10).module
    with torch.no_grad():
        network.layer1[0].bn2.bias.fill_(1e38)
        network.layer1[1].conv1.weight.zero_()
        network.layer1[1].bn2.bias.fill_(-1e38)
    torch.save(network.state_dict(), "exploding.pt")
    return ("--model", MODEL, "--weights", "exploding.pt", "--data", "digits", "--force")


def _csv(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


@pytest.mark.parametrize("metric", ["loss", "top1"])
def test_a_candidate_without_a_finite_answer_goes_last_and_is_flagged(metric, exploding, effvl, report):
    outcome = effvl("prune-blocks", *exploding, *SHORT, "--metric", metric, "--remove", 1, "--out", "r")
    assert outcome.code == 0, outcome.err
    done = report("r")
    rows = {row["path_original"]: row for row in done.technique["steps"][0]["importance"]}
    assert [name for name, row in rows.items() if row["nan"]] == ["layer1.1"]
    assert rows["layer1.1"]["impact_loss"] is None and rows["layer1.1"]["ci95_loss"] is None
    assert (rows["layer1.1"]["importance"] is None) == (metric == "loss")
    assert done.technique["steps"][0]["removed"][0]["original_path"] != "layer1.1"
    assert done.metrics["scoring_bit_equal"].value == 1  # NaN is equal to NaN


def test_scores_from_a_file_are_finite_numbers(trained, effvl, report):
    last = report(trained).technique["steps"][-1]
    gone = {removal["original_path"] for removal in last["removed"]}
    left = [row["path_original"] for row in last["importance"] if row["path_original"] not in gone]
    Path("s.json").write_text(json.dumps(dict.fromkeys(left, 1.0) | {left[-1]: float("nan")}))
    outcome = effvl("prune-blocks", "score", trained, "--criterion", "file:s.json", "--force", "--out", "r")
    assert outcome.code == 3 and "a value is not finite" in outcome.error


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("--race", "halving", "--impact-per", "params"), 2, "--race halving with --impact-per params"),
        (("--criterion", "l1", "--score-bn", "recal", "--bn-recal", 9), 2, "--score-bn recal needs --criterion direct"),
        (("--criterion", "l1", "--score-stack", 2), 2, "--score-stack 2 needs --criterion direct"),
        (("--criterion", "l1", "--tie", "loss-ci"), 2, "--tie loss-ci needs --criterion direct"),
        (("--metric", "loss", "--tie", "loss-ci"), 2, "--tie loss-ci with --metric loss"),
        (("--bn-recal", 5000), 2, "--bn-recal is 5000, and there are 719 training images"),
        (("--finetune-batch-size", 5000), 2, "--finetune-batch-size is 5000, and there are 719 training images"),
        (("--baseline-batch-size", 5000), 2, "--baseline-batch-size is 5000, and there are 719 training images"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_refused(words, code, part, effvl):
    outcome = effvl("prune-blocks", "--model", MODEL, "--remove", 1, "--baseline-epochs", 1, *words, "--out", "r")
    assert outcome.code == code and part in outcome.error


def test_recalibration_needs_batch_norm(effvl, image_folder):
    line = ("--data", f"folder:{image_folder}", "--model", "timm:test_vit", "--baseline-epochs", 1, "--remove", 1)
    small = ("--baseline-batch-size", 8, "--finetune-batch-size", 8)
    outcome = effvl("prune-blocks", *line, *small, "--bn-recal", 4, "--out", "r")
    assert outcome.code == 4 and "--bn-recal: the network has no batch norm" in outcome.error


def test_recalibrated_networks_are_the_same_each_time_and_what_a_lookahead_begins_with(effvl, report):
    words = ("--model", MODEL, "--baseline-epochs", 1, "--remove", 1, "--force", *SHORT)
    look = ("--lookahead", "2:0.05", "--finetune-batch-size", 30)
    for name, more in {"a": (), "b": (), "plain": ("--bn-recal", 0)}.items():
        outcome = effvl("prune-blocks", *words, *look, *(more or ("--bn-recal", 64)), "--out", name)
        assert outcome.code == 0, outcome.err
    a, b, plain = (load_model(Path(name) / "checkpoint.safetensors")[0] for name in ("a", "b", "plain"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert a.keys() != plain.keys() or not all(torch.equal(a[key], plain[key]) for key in a)


def test_scores_taken_up_whole_keep_how_they_were_made(trained, effvl, report, monkeypatch):
    line = ("prune-blocks", "--weights", trained, *SHORT, "--score-stack", 2, "--remove", 1, "--force", "--out", "r")
    with monkeypatch.context() as patch:
        patch.setattr(importance, "_images_needed", lambda *_: 1 / 0)  # dies when all scores are saved
        assert effvl(*line).code == 1
    outcome = effvl(*line)
    assert outcome.code == 0, outcome.err
    (step,) = report("r").technique["steps"]
    assert (step["sharing"], step["bit_exact"]) == ("stack", 0) and step["score_seconds"] > 0


def test_fields_of_a_step_that_were_not_measured_are_null(trained, effvl, report):
    outcome = effvl("prune-blocks", "apply", trained, "--units", 0, *SHORT, "--out", "a")
    assert outcome.code == 0, outcome.err
    (applied,) = report("a").technique["steps"]
    named = ("importance", "criterion", "metric", "sharing", "bit_exact", "score_seconds", "score_images", "latency")
    assert [applied[name] for name in named] == [None] * len(named)
    assert applied["flops"] == 2 * applied["macs"]
    once = ("--rescore", "once", "--remove", 2, "--baseline-epochs", 1, "--force")
    assert effvl("prune-blocks", "--model", MODEL, *once, *SHORT, "--out", "once").code == 0
    first, second = report("once").technique["steps"]
    assert first["score_images"] == 30 and first["score_seconds"] > 0
    assert second["score_images"] is None and second["score_seconds"] is None
    row = first["importance"][0]
    assert row["eliminated_at"] is None and len(row["ci95_to_chosen"]) == len(row["ci95_loss"]) == 2
    correct = load_file("once/scores/step_1.safetensors")["correct"][1:].bool()
    names = [row["path_original"] for row in first["importance"]]
    chosen = names.index(first["removed"][0]["original_path"])
    shares = [float((correct[chosen] != row).float().mean()) for row in correct]
    assert first["images_needed"]["to_half_a_point"] in {
        math.ceil(1.959963984540054**2 * share / 0.005**2) for share in shares
    }


def test_the_front_of_a_run_that_began_with_a_pruned_network_begins_there(trained, effvl, report):
    assert effvl("prune-blocks", "apply", trained, "--units", 0, *SHORT, "--out", "a").code == 0
    outcome = effvl("prune-blocks", "bench", "a", "--batch-size", 1, "--no-onnx", "--out", "b")
    assert outcome.code == 0, outcome.err
    measured = {row["arm"]: row["median_ms"] for row in report("b").technique["bench"]}
    rows = _csv("b/pareto.csv")
    assert set(measured) == {"original", "step 1", "step 2", "step 3"}
    assert float(rows[0]["latency_torch"]) == measured["step 2"]
    assert float(rows[1]["latency_torch"]) == measured["step 3"] and rows[1]["step"] == "3"


def test_leaked_scores_are_marked_in_every_table(trained, effvl):
    leak = ("--score-split", "test", "--allow-test-leak", "--force")
    outcome = effvl("prune-blocks", "score", trained, *leak, "--score-size", 2, "--out", "s")
    assert outcome.out.startswith("LEAKED, no result: importance")
    assert effvl("prune-blocks", "--weights", trained, *leak, *SHORT, "--remove", 1, "--out", "r").code == 0
    assert [row["leak"] for row in _csv("r/table.csv")] == ["1"]


def test_without_data_those_of_the_weights_are_taken(effvl, report, image_folder):
    few = ("--baseline-batch-size", 8, "--finetune-batch-size", 8, "--baseline-epochs", 1, "--force", "--remove", 1)
    words = ("--finetune-epochs", 0, "--final-epochs", 0, "--latency-batch-size", 1)
    line = ("prune-blocks", "--data", f"folder:{image_folder}", "--model", MODEL, *few, *words)
    assert effvl(*line, "--out", "first").code == 0
    outcome = effvl("prune-blocks", "--weights", "first", "--remove", 1, "--force", *words, "--out", "second")
    assert outcome.code == 0, outcome.err
    assert report("second").data[0].name == report("first").data[0].name


class Window(nn.Module):
    """Children of a ViT's block, run in another way."""

    def __init__(self, scale, fails=False):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(4), nn.Linear(4, 4)
        self.norm2, self.mlp = nn.LayerNorm(4), nn.Linear(4, 4)
        self.ls1, self.drop_path1, self.ls2, self.drop_path2 = (nn.Identity() for _ in range(4))
        self.scale, self.fails = scale, fails

    def forward(self, x, bias=None):
        x = x + self.scale * self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    def __init__(self, *blocks, biased=False):
        super().__init__()
        self.blocks, self.biased = nn.ModuleList(blocks), biased

    def forward(self, images):
        x = images[:, :1, :4, :4].flatten(1, 2)
        for block in self.blocks:
            x = block(x, bias=1) if self.biased else block(x)
        return x.mean(1)


@pytest.mark.parametrize(
    ("scale", "biased", "why"),
    [(1.0, False, ""), (2.0, False, "their halves give different logits"), (1.0, True, "their halves cannot be run")],
)
def test_halves_must_make_the_network(scale, biased, why):
    network = SimpleNamespace(module=Tokens(Window(scale), biased=biased).eval(), edits=[], name="toy")
    context = SimpleNamespace(network=network, noise=lambda n: torch.randn(n, 3, 8, 8))
    if why:
        with pytest.raises(ModelError, match=why):
            surgery._split(context)
    else:
        surgery._split(context)
        assert [name for name, _ in network.module.blocks.named_children()] == ["0_attention", "0_mlp"]
        assert network.edits == [{"kind": "halves"}]


def test_a_network_without_whole_blocks_is_not_split(trained, effvl):
    outcome = effvl("prune-blocks", "score", trained, "--unit", "half", "--force", "--out", "r")
    assert outcome.code == 4 and "whole blocks of cifar-resnet:20,width=4 have been removed before" in outcome.error
    assert json.loads((trained / "manifest.json").read_text())["edits"][0]["kind"] == "blocks removed"
