"""The real command on two processes, beside the same command on one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from effvl_cli.core.checkpoint import load_model
from tests.processes import run

SGD = ("--optimizer", "sgd", "--lr", 0.05, "--weight-decay", 1e-3, "--batch-size", 8)
INVARIANCE = (*SGD, "--num-bank", 16, "--schedule", "0.5:patch=8;1:keep=0.5")


def weights(folder):
    return load_model(Path(folder, "checkpoint.safetensors"))[0]


def assert_equal(one, two, tolerance=1e-6):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert (value.double() - two[key].double()).abs().max() <= tolerance, key


@pytest.fixture
def varied_folder(image_folder):
    """Pictures of noise: batch norm divides by the spread of a batch, and plain ones hardly spread."""
    for seed, path in enumerate(sorted(image_folder.rglob("*.jpg"))):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(path)
    return image_folder


@pytest.mark.parametrize(("method", "budget"), [("simclr", 70), ("mocov3", 40), ("dino", 70)])  # a few steps
def test_invariance_methods(effvl, report, varied_folder, method, budget):
    line = ("pretrain", "--method", method, *INVARIANCE, "--budget", budget, "--data", f"folder:{varied_folder}")
    if method == "dino":
        line = (*line, "--prototypes", 16, "--local-crops", 1)
    assert effvl(*line, "--out", "one").code == 0
    run(*line, "--out", "two", processes=2)
    assert_equal(weights("one"), weights("two"))
    assert report("two").environment["distributed"]["world_size"] == 2
    steps = [report(name).technique["arms"]["train"]["steps"] for name in ("one", "two")]
    assert steps[0] == steps[1] and 3 <= steps[0] <= 6


@pytest.mark.parametrize(
    "more", [("--method", "clip"), ("--method", "supervised", "--model", "vit:nano/8@24")], ids=["clip", "supervised"]
)
def test_texts_and_labels(effvl, image_folder, more):
    """Networks without batch norm, whose statistics are each process's own in these methods."""
    line = ("pretrain", *more, *SGD, "--steps", 3, "--data", f"folder:{image_folder}")
    assert effvl(*line, "--out", "one").code == 0
    run(*line, "--out", "two", processes=2)
    assert_equal(weights("one"), weights("two"))


def test_rankings(effvl, image_folder, tmp_path):
    """Ranks are the same integers; trained parts are not compared: Adam turns rounding noise into whole steps."""
    line = ("prune-tokens", "rank", "--data", f"folder:{image_folder}", "--shots", 8)
    assert effvl(*line, "--out", "one", "--cache-dir", tmp_path / "a").code == 0
    run(*line, "--out", "two", "--cache-dir", tmp_path / "b", processes=2)

    def ranks(cache):
        shards = (load_file(path) for path in (tmp_path / cache).glob("rankings/*/*.safetensors"))
        return sorted(tuple(row.tolist()) for shard in shards for row in shard["rank"])

    assert ranks("a") == ranks("b") and len(ranks("a")) == 16
