"""A data set and a model of one's own, from a small distribution that is installed beside effvl."""

import sys

import pytest
import torch

from effvl_cli.core import registry
from effvl_cli.models import network as networks

DATA = '''
import numpy as np
from PIL import Image

class Stripes:
    """Forty images a split, half of them striped."""

    classes, templates, captions, endless = ("plain", "striped"), ("a {} picture.",), None, False

    def __init__(self, split):
        self.name, self.split = "stripes", split
        self.labels = np.arange(40) % 2
        self.ids = [f"{split}/{k}" for k in range(40)]

    def __len__(self):
        return 40

    def image(self, index):
        pixels = np.full((64, 64, 3), 3 * index, np.uint8)
        pixels[:: 4 if index % 2 else 64] = 255
        return Image.fromarray(pixels)

    def fingerprint(self):
        return "1"

def build(argument, split, *, root=None, seed=0):
    return Stripes(split)
'''

MODEL = """
from dataclasses import replace

from effvl_cli.models.network import build as build_network

def build(argument, *, num_classes=None):
    network = build_network("tiny:clip", seed=0)
    network.name, network.shipped = "mine", None
    return network

def adapt(network, state):
    # Weights of a program that calls the last layer head, and that saw images in -1..1.
    network.preprocess = replace(network.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    network.notes.append("head is fc")
    return {key.replace("head.", "fc."): value for key, value in state.items()}

def classifier(argument, *, num_classes=None):
    network = build_network("cifar-resnet:8", seed=0, num_classes=num_classes)
    network.name, network.adapt = f"theirs:{argument}", adapt
    return network

def detector(argument, *, num_classes=None):
    return replace(classifier(argument), name="odd", kind="painter")
"""


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    site = tmp_path / "site"
    info = site / "stripes-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "stripes_data.py").write_text(DATA)
    (site / "stripes_model.py").write_text(MODEL)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[effvl.datasets]\nstripes = stripes_data:build\nbroken = nowhere:build\n"
        "[effvl.models]\nmine = stripes_model:build\ntheirs = stripes_model:classifier\nodd = stripes_model:detector\n"
    )
    monkeypatch.syspath_prepend(str(site))
    yield
    for module in ("stripes_data", "stripes_model"):
        sys.modules.pop(module, None)


def test_plugged_in_names_are_listed_and_used(distribution, effvl, report, miniature, quick_figures):
    assert "stripes" in effvl("list", "datasets").out
    assert "mine" in effvl("list", "models").out
    line = ("pretrain", "--method", "clip", "--data", "stripes", "--model", "mine", "--batch-size", 8)
    outcome = effvl(*line, "--epochs", 1, "--out", "a")
    assert outcome.code == 0, outcome.err
    outcome = effvl("prune-tokens", "--data", "stripes", "--weights", "a", *miniature[2:], "--shots", 4, "--out", "b")
    assert outcome.code == 0, outcome.err
    assert report("b").model.name == "mine" and report("b").data[0].name == "stripes"


def test_a_plugged_in_network_adapts_itself_to_files_of_other_programs(distribution, tmp_path):
    """`adapt` gets the network, and may change what it is fed."""
    whole = networks.build("cifar-resnet:8", seed=5, num_classes=3).module.state_dict()
    torch.save({key.replace("fc.", "head."): value for key, value in whole.items()}, tmp_path / "w.pt")
    said = []
    found = networks.load(
        "theirs:x", str(tmp_path / "w.pt"), default="", kind="classifier", num_classes=3, log=said.append
    )
    assert all(torch.equal(value, whole[key]) for key, value in found.module.state_dict().items())
    assert found.name == "theirs:x" and found.preprocess.mean == (0.5, 0.5, 0.5)
    assert len(said) == 1 and said[0].endswith("head is fc")


def test_a_plugged_in_network_of_no_known_kind_is_one_line(distribution, effvl):
    outcome = effvl("prune-tokens", "--model", "odd", "--weights", "none")
    assert outcome.code == 4
    assert "model odd has the unknown kind 'painter'" in outcome.error and "clip, classifier" in outcome.error


def test_plug_ins_are_not_looked_up_for_a_name_that_is_known(monkeypatch):
    """Reading what every installed distribution declares takes longer than building a small network."""
    monkeypatch.setattr(registry, "entry_points", lambda group: pytest.fail(f"{group} was looked up"))
    assert networks.build("cifar-resnet:8", seed=0, num_classes=3).name == "cifar-resnet:8"


def test_a_broken_plug_in_is_one_line(distribution, effvl):
    outcome = effvl("prune-tokens", "--data", "broken")
    assert outcome.code == 5
    assert "'broken'" in outcome.error and "nowhere" in outcome.error
