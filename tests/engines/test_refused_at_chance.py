"""Weights that do not know their classes, through the real command: no verb goes on with them without a word."""

from pathlib import Path

import pytest
import torch

from effvl_cli.core.checkpoint import CHECKPOINT, save_model
from effvl_cli.models import network as networks

SHORT = ("--finetune-epochs", 0, "--final-epochs", 0, "--latency-batch-size", 1, "--score-size", 3)


@pytest.fixture
def one_answer(workdir):
    """A classifier that gives every image the same class."""
    network = networks.load("cifar-resnet:20,width=2", "none", default="", kind="classifier", num_classes=10)
    with torch.no_grad():
        network.module.fc.weight.zero_()
        network.module.fc.bias.copy_(torch.arange(10.0))
    torch.save(network.module.state_dict(), "one.pt")
    return ("--model", "cifar-resnet:20,width=2", "--weights", "one.pt", "--data", "digits")


@pytest.mark.parametrize("verb", [("apply", "--units", 0, *SHORT), ("score",), ("--remove", 1, *SHORT)])
def test_no_verb_of_prune_blocks_goes_on_at_chance(effvl, report, one_answer, verb):
    outcome = effvl("prune-blocks", *verb, *one_answer, "--out", "r")
    assert outcome.code == 4 and "chance is 10.0%" in outcome.error and "--force" in outcome.error


def test_apply_goes_on_with_force_and_says_so(effvl, report, one_answer):
    outcome = effvl("prune-blocks", "apply", "--units", 0, *SHORT, *one_answer, "--force", "--out", "r")
    assert outcome.code == 0, outcome.err
    assert any("chance is 10.0%" in text for text in report("r").warnings)


@pytest.mark.parametrize("verb", [("score", "--criterion", "l1"), ("--remove", 1, *SHORT)])
def test_a_backbone_without_a_classifier_is_one_line_that_names_the_way(effvl, workdir, verb):
    network = networks.build("vit:nano/8@24", seed=0)
    save_model(Path("bb") / CHECKPOINT, network.module.state_dict(), {**network.describe(), "data": "digits"})
    outcome = effvl("prune-blocks", *verb, "--weights", "bb", "--force", "--out", "r")
    assert outcome.code == 4
    assert outcome.error == "error: --weights bb have no classifier. `effvl prune-blocks --new-head` trains one first"


@pytest.fixture
def one_embedding(workdir):
    """A CLIP whose images all have the same embedding."""
    network = networks.load("tiny:clip", None, default="", kind="clip")
    with torch.no_grad():
        network.module.visual.ln_post.weight.zero_()
        network.module.visual.ln_post.bias.fill_(1.0)
    torch.save(network.module.state_dict(), "one.pt")
    return ("--model", "tiny:clip", "--weights", "one.pt", "--shots", 1)


def test_the_job_judges_the_test_images_before_it_searches(effvl, workdir, image_folder, tmp_path):
    """The training images are known, and the test images have each other's names."""
    for name, words in (("red_thing", "blue circle"), ("blue_thing", "red circle")):
        for split in ("train", "val", "test"):
            if (image_folder / split / name).is_dir():
                right = {"red circle": "blue circle", "blue circle": "red circle"}[words]
                (image_folder / split / name).rename(image_folder / split / (words if split == "test" else right))
    line = ("prune-tokens", "--data", f"folder:{image_folder}", "--shots", 2, "--cache-dir", tmp_path / "c")
    outcome = effvl(*line, "--out", "r")
    assert outcome.code == 4 and "test images, and chance is 50.0%" in outcome.error, outcome.err
    assert not list((tmp_path / "c").glob("rankings/*/*.safetensors"))


def test_no_rankings_are_searched_at_chance(effvl, report, one_embedding):
    outcome = effvl("prune-tokens", "rank", *one_embedding, "--out", "r")
    assert outcome.code == 4 and "on 30 train images, and chance is 3.3%" in outcome.error
    outcome = effvl("prune-tokens", "rank", *one_embedding, "--force", "--out", "r", "--fresh")
    assert outcome.code == 0, outcome.err
    assert any("chance is 3.3%" in text for text in report("r").warnings)
