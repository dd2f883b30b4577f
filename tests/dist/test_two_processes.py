"""The real command on two processes, beside the same command on one."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from effvl_cli.core.checkpoint import StepFolders, load_model
from effvl_cli.engines.continual.state import State
from effvl_cli.models import video
from tests.conftest import make_image_folder
from tests.processes import run_each

SGD = ("--optimizer", "sgd", "--lr", 0.05, "--weight-decay", 1e-3, "--batch-size", 8)
INVARIANCE = (*SGD, "--head-hidden", 32, "--num-bank", 16, "--schedule", "0.5:patch=8;1:keep=0.5")


def weights(folder):
    return load_model(Path(folder, "checkpoint.safetensors"))[0]


def assert_equal(one, two, tolerance=1e-6):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert (value.double() - two[key].double()).abs().max() <= tolerance, key


def pictures(root):
    """Two data sets: plain colours, and noise, because batch norm divides by the spread of a batch."""
    plain, varied = make_image_folder(root / "plain"), make_image_folder(root / "varied")
    for seed, path in enumerate(sorted(varied.rglob("*.jpg"))):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 48), Image.Resampling.NEAREST).save(path)
    return {"plain": f"folder:{plain}", "varied": f"folder:{varied}"}


LINES = {
    "simclr": ("pretrain", "--method", "simclr", *INVARIANCE, "--budget", 70, "--data", "varied"),
    "mocov3": ("pretrain", "--method", "mocov3", *INVARIANCE, "--budget", 40, "--data", "varied"),
    "dino": (
        *("pretrain", "--method", "dino", *INVARIANCE, "--budget", 70, "--data", "varied"),
        *("--prototypes", 16, "--local-crops", 1),
    ),
    # networks without batch norm, whose statistics are each process's own in these methods
    "clip": ("pretrain", "--method", "clip", *SGD, "--steps", 3, "--data", "plain"),
    "supervised": (
        *("pretrain", "--method", "supervised", "--model", "vit:nano/8@24", *SGD, "--steps", 3, "--data", "plain"),
    ),
    # momentum alone, so that rounding stays rounding
    "prompts": (
        *("prompt-tune", "--data", "plain", "--force", "--noise", "symmetric", "--noise-rate", 0.25, "--shots", 4),
        *("--epochs", 3, "--batch-size", 4, "--method", "linear-probe,prompt,full-prompt", "--loss", "ce,gce"),
        *("--cache-features", "views", "--num-views", 2, "--cache-dtype", "fp32", "--num-folds", 2),
    ),
    "continual": (
        *("continual", "--model", "vit:nano/8@24,mean", "--data", "plain", "--epochs", 1, "--batch-size", 4, "--goal", "none"),
        *("--num-classes-per-task", 2, "--num-tasks", 1, "--prune-ratios", "0.5", "--min-ratio", 0.5, "--prune-epochs", 1),
        *("--prune-every", 1, "--grow-max", 1, "--check-steps"),
    ),
    "cascade": (
        *("cpr-mine", "train", "--view", "rgb", "--mine-with", "gradflow", "--weights", "gradflow=none", *SGD),
        *("--queue-size", 24, "--steps", 3, "--num-stages", 2, "--top-k", 2, "--log-every", 1),
    ),
    "rank": ("prune-tokens", "rank", "--shots", 8, "--data", "plain"),
    "detect": (
        *("detect", "train", "--data", "road-scenes:scenes=8,val=3,test=5", "--min-size", "48,64", "--max-size", 96),
        *("--steps", 3, "--log-every", 1, "--subclass", "--norm", "group", "--optimizer", "sgd", "--lr", 0.01),
        *("--warmup", 0),
    ),
    "detect-eval": ("detect", "eval", "detector", "--split", "test"),
}


def without_batch_norm(patch):
    """The small encoder of videos with norms of each clip by itself."""
    family = video._FAMILIES["tiny3d"]
    body = partial(family.body, partial(nn.GroupNorm, 1))
    patch.setitem(video._FAMILIES, "tiny3d", replace(family, body=lambda norm_layer: body()))


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """The folder of the runs of two processes, and the command lines with their data."""
    root = tmp_path_factory.mktemp("two")
    data = {**pictures(root), "detector": root / "detect"}
    lines = {name: [data.get(word, word) for word in line] for name, line in LINES.items()}
    told = [[*line, "--out", root / name, "--cache-dir", root / "cache"] for name, line in lines.items()]
    run_each(told, 2, without_batch_norm)
    return root, lines


def both(name, of_two, here):
    """Folders of the runs of one process, with a cache of its own, and of two."""
    root, lines = of_two
    here(*lines[name], "--out", "one")
    return Path("one"), root / name


@pytest.mark.parametrize("method", ["simclr", "mocov3", "dino"])
def test_invariance_methods(method, of_two, here, report):
    one, two = both(method, of_two, here)
    assert_equal(weights(one), weights(two))
    assert report(two).environment["distributed"]["world_size"] == 2
    steps = [report(folder).technique["arms"]["train"]["steps"] for folder in (one, two)]
    assert steps[0] == steps[1] and 3 <= steps[0] <= 6


@pytest.mark.parametrize("method", ["clip", "supervised"])
def test_texts_and_labels(method, of_two, here):
    one, two = both(method, of_two, here)
    assert_equal(weights(one), weights(two))


def test_prompts(of_two, here, report):
    """Equal labels, features, prompts, figures and suspects."""
    one, two = both("prompts", of_two, here)
    assert_equal(weights(one), weights(two), 1e-5)
    assert (one / "noise.json").read_bytes() == (two / "noise.json").read_bytes()
    ours, theirs = ({name: m.value for name, m in report(folder).metrics.items()} for folder in (one, two))
    assert ours == pytest.approx(theirs, abs=1e-5) and len(ours) > 20
    assert report(two).environment["distributed"]["world_size"] == 2


def test_positives_mined_from_queues(of_two, here, report, monkeypatch):
    """Equal weights and queues, each process mining for its half of the clips in queues of all of them."""
    without_batch_norm(monkeypatch)
    one, two = both("cascade", of_two, here)
    assert_equal(weights(one), weights(two), 1e-5)
    assert report(two).environment["distributed"]["world_size"] == 2
    ours, theirs = (StepFolders(folder / "checkpoints/train").load(3).model for folder in (one, two))
    assert_equal(ours, theirs, 1e-5)  # queues, and which clips they hold
    mined = report(two).technique["turns"][0]["mined"][0]
    assert mined["k"] == 2 and mined["mined_rows"] == 1


def test_rankings(of_two, here, tmp_path):
    """Ranks are the same integers; trained parts are not compared: Adam turns rounding noise into whole steps."""
    both("rank", of_two, here)

    def ranks(cache):
        shards = (load_file(path) for path in cache.glob("rankings/*/*.safetensors"))
        return sorted(tuple(row.tolist()) for shard in shards for row in shard["rank"])

    one, two = ranks(tmp_path / "cache"), ranks(of_two[0] / "cache")
    assert one == two and len(one) == 16


def test_owned_weights(of_two, here):
    """Owners and values, but for weights that rounding moves across the limit of what is released."""
    one, two = (State.read(folder / "state") for folder in both("continual", of_two, here))
    for name, owner in one.owner.items():
        alike = owner == two.owner[name]
        assert (owner == 0).sum() == (two.owner[name] == 0).sum() and (~alike).float().mean() < 0.01
        assert (one.base[name] - two.base[name])[alike].abs().max() <= 1e-5, name
    assert_equal(one.task_tensors[0], two.task_tensors[0], 1e-5)


def test_detections(of_two, here, report, records):
    """A detector that two processes have trained, on an odd number of images."""
    one, two = (report(folder) for folder in both("detect-eval", of_two, here))
    assert two.environment["distributed"]["world_size"] == 2 and two.metrics["ap"].n == 5
    for name, metric in one.metrics.items():
        if name != "images_per_s":
            assert two.metrics[name].value == pytest.approx(metric.value, abs=1e-6), name
    assert two.technique["stage_iou"] == pytest.approx(one.technique["stage_iou"], abs=1e-6)


def test_detectors(of_two, here, records):
    """Images of several sizes; equal weights, losses and numbers of positives."""
    one, two = both("detect", of_two, here)
    assert_equal(weights(one), weights(two))
    ours, theirs = ([row for row in records(folder) if row["event"] == "train"] for folder in (one, two))
    assert [row["step"] for row in ours] == [1, 2, 3]
    for mine, other in zip(ours, theirs, strict=True):
        figures = {name for name in mine if name.endswith(("_cls", "_box")) or name.startswith("num_pos")}
        assert len(figures) == 11
        for name in figures:
            assert other[name] == pytest.approx(mine[name], abs=1e-5), name
