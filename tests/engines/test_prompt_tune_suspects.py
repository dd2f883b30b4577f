"""Suspect labels as a verb, previews, and a tower that prune-tokens has pruned."""

import csv

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from effvl_cli.data import load
from effvl_cli.models.network import load as load_network
from effvl_cli.models.token_pruned_clip import load_pruned
from tests.conftest import keep_few_images
from tests.engines.conftest import FEW_PROMPTS


@pytest.fixture(autouse=True)
def few(monkeypatch):
    keep_few_images(monkeypatch)


def test_the_verb_ranks_the_labels_of_run_as_run_did(effvl, shared_cache, prompts_run, report):
    outcome = effvl("prompt-tune", "suspects", prompts_run, "--shots", 2, "--out", "s")
    assert outcome.code == 0, outcome.err
    with open("s/suspects.csv") as ours, (prompts_run / "suspects.csv").open() as theirs:  # noqa: PTH123
        assert ours.read() == theirs.read()
    assert "known to be wrong" in outcome.out and "AUROC" in outcome.out
    figures = {name: figure.value for name, figure in report("s").metrics.items()}
    assert figures == {name: report(prompts_run).metrics[name].value for name in figures} and len(figures) == 4


def test_labels_as_they_are_are_ranked_without_a_run(effvl, image_folder, report):
    line = ("prompt-tune", "suspects", "--data", f"folder:{image_folder}", "--force", "--epochs", 1, "--num-folds", 2)
    outcome = effvl(*line, "--out", "s")
    assert outcome.code == 0, outcome.err
    rows = list(csv.DictReader(open("s/suspects.csv")))  # noqa: PTH123, SIM115
    assert len(rows) == 24 and {row["flipped"] for row in rows} == {""}
    assert "known to be wrong" not in outcome.out
    assert not report("s").metrics  # nothing is known to be wrong


def test_one_rate_and_only_the_options_that_are_read(effvl):
    outcome = effvl("prompt-tune", "suspects", "--noise-rate", "0.25,0.5")
    assert outcome.code == 2 and "Give one rate" in outcome.error
    shown = effvl("prompt-tune", "suspects", "--help-all").out
    assert "--gce-q" in shown
    common = effvl("prompt-tune", "suspects", "--help").out
    assert all(option in common for option in ("--labels", "--shots", "--noise-rate")) and "newest" not in common
    for option in ("--split", "--sce-alpha", "--sce-beta", "--phuber-tau", "--ls-eps"):
        assert option not in shown
        assert effvl("prompt-tune", "suspects", option, 1).code == 2
    assert "--sce-alpha" in effvl("prompt-tune", "--help-all").out


def test_a_preview_says_what_is_trained_and_writes_nothing(effvl, shared_cache, workdir):
    outcome = effvl("prompt-tune", *FEW_PROMPTS, "--dry-run")
    assert outcome.code == 0, outcome.err
    for words in ("4 trainings of 4 steps", "2 trainings of 2 steps", "48 images", "60 images"):
        assert words in outcome.out
    outcome = effvl("prompt-tune", "suspects", "--shots", 2, "--dry-run")
    assert outcome.code == 0 and "5 trainings" in outcome.out
    assert not (workdir / "runs").exists()


def test_a_run_without_folds_is_ranked_by_the_default(effvl, shared_cache):
    line = ("prompt-tune", "--shots", 1, "--method", "zero-shot", "--noise-rate", 0, "--num-folds", 0)
    assert effvl(*line, "--out", "r").code == 0
    outcome = effvl("prompt-tune", "suspects", "r", "--shots", 2, "--dry-run")
    assert outcome.code == 0 and "5 trainings" in outcome.out, outcome.err


def test_a_pruned_tower_is_tuned_and_measured(effvl, shared_cache, plain_tokens_run, report):
    line = ("prompt-tune", *FEW_PROMPTS, "--data", "shape-captions", "--weights", plain_tokens_run)
    outcome = effvl(*line, "--method", "zero-shot,prompt", "--loss", "ce", "--noise-rate", 0, "--out", "p")
    assert outcome.code == 0, outcome.err
    pruned, source = load_pruned(plain_tokens_run), load("shape-captions", "test")
    preprocess = load_network("tiny:clip", None, default="", kind="clip").preprocess
    pixels = torch.stack([preprocess.to_uint8(source.image(place)) for place in range(48)])
    with torch.no_grad():
        logits = normalize(pruned.encode_image(preprocess.normalise(pixels)), dim=-1) @ pruned.class_weights
    right = (logits.argmax(1) == torch.as_tensor(source.labels[np.arange(48)])).float().mean()
    done = report("p")
    assert done.metrics["top1_zero_shot"].value == pytest.approx(float(right))
    assert done.technique["pruned"]["keep"] == 0.6 and "top1_prompt_ce" in done.metrics
