"""Features that `pretrain eval` writes: of a backbone and of a CLIP, mined as two views of the same pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from effvl_cli.engines.common.view_folder import read_views

SMALL = ("--num-bank", 12, "--precision", "fp32")


@pytest.fixture
def features(here, workdir, image_folder):
    """Two folders, of a SimCLR and of a CLIP on the same 24 pictures."""
    data = ("--data", f"folder:{image_folder}")
    here(
        *("pretrain", *data, "--method", "simclr", "--model", "vit:nano/8@32", "--budget", 48, "--batch-size", 8),
        *("--head-hidden", 32, "--num-bank", 12, "--no-baseline", "--out", "simclr"),
    )
    here("pretrain", *data, "--method", "clip", "--steps", 2, "--batch-size", 8, "--out", "clip")
    for name in ("simclr", "clip"):
        here("pretrain", "eval", name, *data, *SMALL, "--save-features", "--out", f"{name}-features")
    return data


def test_two_encoders_are_two_views(here, effvl, report, features):
    check_that_they_are_what_the_encoder_gives(features)
    for name, width in (("simclr", None), ("clip", 64)):
        found = read_views(Path(f"{name}-features"))
        rows = np.load(found.views[name])
        assert rows.shape[0] == len(found.ids) == 24 and rows.dtype == np.float32
        assert width is None or rows.shape[1] == width
        assert sorted(np.load(found.labels).tolist()) == [0] * 12 + [1] * 12
        assert found.about["split"] == "train" and found.about["classes"] == ["blue thing", "red thing"]
        assert found.about["of"][name]["method"] == name and "knn1" in report(f"{name}-features").metrics
    paths = "simclr-features/simclr.npy,clip-features/clip.npy"
    here("cpr-mine", "mine", "--features", paths, "--num-stages", 2, "--top-k", 3, "--out", "mined")
    done = report("mined")
    assert {"mining_precision_simclr", "mining_precision_clip", "mining_precision_mean"} <= set(done.metrics)
    assert set(done.technique["per_class"]) == {"blue thing", "red thing"} and done.technique["items"] == 24
    assert (
        effvl(
            "pretrain",
            "eval",
            "clip",
            *features,
            *SMALL,
            "--save-features",
            "--feature-split",
            "test",
            "--view-name",
            "other",
            "--out",
            "t",
        ).code
        == 0
    )
    assert json.loads(Path("t/views.json").read_text())["files"] == {"other": "other.npy"}
    outcome = effvl("cpr-mine", "mine", "--features", "simclr-features/simclr.npy,t/other.npy", "--num-stages", 2)
    assert outcome.code == 3 and "E_VIEW_MISMATCH" in outcome.error


def check_that_they_are_what_the_encoder_gives(features):
    from effvl_cli.data import load
    from effvl_cli.data.decoded import Decoded
    from effvl_cli.models import network as networks

    source = load(features[1], "train", seed=0)
    for name, kind in (("simclr", "backbone"), ("clip", "clip")):
        network = networks.load(None, name, default="", kind=kind)
        images = Decoded.read(source, network.preprocess)
        network.module.eval()
        with torch.inference_mode():
            pixels = network.preprocess.normalise(images.pixels)
            wanted = network.module.encode_image(pixels) if kind == "clip" else network.module(pixels)
        found = read_views(Path(f"{name}-features"))
        assert found.ids == images.ids
        torch.testing.assert_close(torch.from_numpy(np.load(found.views[name])), wanted, rtol=1e-4, atol=1e-5)


def test_of_endless_data_there_are_no_contact_sheets():
    from effvl_cli.engines.cpr_mine.embeddings import Items
    from effvl_cli.engines.cpr_mine.mine_sheets import _picture_of

    about = {"data": "shape-captions", "split": "train"}
    assert _picture_of(Items({"a": torch.eye(2)}, ("train/0", "train/1"), None, None, (), about)) is None
