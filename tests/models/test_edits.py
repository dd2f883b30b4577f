"""Networks that lost blocks, from their checkpoints."""

import importlib
import json
import sys
import types

import pytest
import torch

from effvl_cli.core.checkpoint import MANIFEST, save_model
from effvl_cli.core.errors import ModelError
from effvl_cli.core.measure import count_parameters
from effvl_cli.models import network as networks
from effvl_cli.models.constructors import NoConstructorError, constructors
from effvl_cli.models.edits import EDITS, EditKind, apply_edits, in_words, reported
from effvl_cli.models.kinds import KINDS, NetworkKind
from effvl_cli.models.removed_blocks import blocks_removed, removals_of
from effvl_cli.techniques.prune_blocks.surgery import Removal


def load(folder, **more):
    return networks.load(None, str(folder), default="tiny:resnet", kind="classifier", **more)


def pruned(spec, *removals, num_classes=4):
    """A network with random weights of which these (path as built, path then, mode) were removed, one a step."""
    network = networks.build(spec, seed=1, num_classes=num_classes)
    steps = [Removal(*removal, step) for step, removal in enumerate(removals, 1)]
    network.edits = [blocks_removed(steps)]
    apply_edits(network.module, network.edits)
    return network


def save(network, folder):
    save_model(folder / networks.CHECKPOINT, network.module.state_dict(), network.describe())
    return folder


def logits(network):
    x = torch.randn(2, 3, *network.preprocess.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network.module.eval()(x)


def test_a_pruned_checkpoint_comes_back_and_is_pruned_again(tmp_path):
    # layer3.1 of ResNet-20 goes, and what was layer3.2 takes its name: the second removal is of the third block.
    first = pruned("cifar-resnet:20", ("layer3.1", "layer3.1", "delete"))
    found = load(save(first, tmp_path / "a"))
    assert found.name == "cifar-resnet:20" and found.edits == first.edits
    assert [len(stage) for stage in (found.module.layer1, found.module.layer2, found.module.layer3)] == [3, 3, 2]
    assert torch.equal(logits(found), logits(first))

    second = [Removal("layer3.2", "layer3.1", "delete", 2), Removal("layer1.0", "layer1.0", "delete", 3)]
    apply_edits(found.module, [blocks_removed(second)])
    found.edits = [blocks_removed([*removals_of(found.edits), *second])]
    again = load(save(found, tmp_path / "b"))
    assert [r.original_path for r in removals_of(again.edits)] == ["layer3.1", "layer3.2", "layer1.0"]
    assert torch.equal(logits(again), logits(found))
    # He et al.'s blocks of 64 and 16 channels: two 3x3 convolutions and two batch norms each.
    blocks = 2 * (2 * 64 * 64 * 9 + 4 * 64) + (2 * 16 * 16 * 9 + 4 * 16)
    whole = networks.build("cifar-resnet:20", seed=0, num_classes=4).module
    assert count_parameters(again.module) == count_parameters(whole) - blocks


def test_the_order_of_removals_matters(tmp_path):
    network = pruned("cifar-resnet:20", ("layer1.1", "layer1.1", "delete"), ("layer1.2", "layer1.1", "delete"))
    assert len(network.module.layer1) == 1
    with pytest.raises(ModelError, match=r"layer1\.2"):  # there are two blocks left when its turn comes
        pruned("cifar-resnet:20", ("layer1.1", "layer1.1", "delete"), ("layer1.2", "layer1.2", "delete"))


def test_a_stage_may_be_empty_and_a_relu_may_stand_in():
    empty = pruned("cifar-resnet:8", ("layer1.0", "layer1.0", "delete"))
    assert len(empty.module.layer1) == 0 and logits(empty).shape == (2, 4)
    standing = pruned("cifar-resnet:8", ("layer1.0", "layer1.0", "relu"))
    assert type(standing.module.layer1[0]) is torch.nn.ReLU
    for module in (empty.module, standing.module):
        module.load_state_dict(empty.module.state_dict())
    assert torch.equal(logits(empty), logits(standing))  # what comes out of the stem is not negative


def test_networks_without_edits_say_so(tmp_path):
    network = networks.build("cifar-resnet:8", seed=0)
    assert network.describe()["edits"] == []
    save_model(tmp_path / networks.CHECKPOINT, network.module.state_dict(), network.describe())
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["edits"]  # as written by earlier versions
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert load(tmp_path).edits == []


GOOD = {"original_path": "layer3.1", "path_at_step": "layer3.1", "mode": "delete", "step": 1}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([{"kind": "blocks painted", "args": []}], "no kind 'blocks painted' is known"),
        ([{"args": [GOOD]}], "kind"),
        ([{"kind": "blocks removed"}], "args"),
        ([{"kind": "blocks removed", "args": [{**GOOD, "path_at_step": "layer9.1"}]}], "layer9.1"),
        ([{"kind": "blocks removed", "args": [{**GOOD, "path_at_step": ""}]}], "whole network"),
        ([{"kind": "blocks removed", "args": [{**GOOD, "mode": "eval"}]}], "'eval'"),
        ([{"kind": "blocks removed", "args": [{**GOOD, "step": "1"}]}], "step"),
        ([{"kind": "blocks removed", "args": [{"path_at_step": "layer3.1"}]}], "original_path"),
        ([{"kind": "blocks removed", "args": [GOOD, GOOD, GOOD]}], "layer3.1"),
        (["blocks removed"], "no usable edits"),
        (7, "no usable edits"),
    ],
)
def test_edits_that_cannot_be_repeated_are_refused(edits, message, tmp_path):
    save(pruned("cifar-resnet:20", ("layer3.1", "layer3.1", "delete")), tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "edits": edits}))
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


def test_weights_and_edits_that_disagree_are_refused(tmp_path):
    save(pruned("cifar-resnet:20", ("layer3.1", "layer3.1", "delete")), tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "edits": []}))
    with pytest.raises(ModelError, match=r"missing \(layer3.2.conv1.weight"):
        load(tmp_path)


def test_pretrain_fine_tunes_a_pruned_network_and_keeps_its_edits(effvl, tmp_path, report):
    network = pruned("cifar-resnet:8", ("layer1.0", "layer1.0", "delete"), num_classes=10)
    save(network, tmp_path / "pruned")
    line = ("pretrain", "--method", "supervised", "--data", "digits", "--weights", tmp_path / "pruned")
    outcome = effvl(*line, "--steps", 2, "--batch-size", 8, "--out", tmp_path / "tuned")
    assert outcome.code == 0, outcome.err
    tuned = load(tmp_path / "tuned")
    assert tuned.edits == network.edits and len(tuned.module.layer1) == 0
    assert not torch.equal(tuned.module.fc.weight, network.module.fc.weight)
    assert report(tmp_path / "tuned").model.edits == [
        {"kind": "blocks removed", "args": {"blocks": network.edits[0]["args"]}}
    ]


# --- kinds of edits and of networks ----------------------------------------------------------------------------------


def test_a_new_kind_of_edit_is_a_function_and_a_row(monkeypatch, tmp_path):
    """Channels of the last layer scaled by what the manifest says: a file of its own, and nothing else."""

    def repeat(module, edit):
        module.fc = torch.nn.Sequential(torch.nn.Identity(), module.fc)[: edit["args"]["layers"]]

    file = types.ModuleType("somebodys_edit")
    file.repeat = repeat
    monkeypatch.setitem(sys.modules, file.__name__, file)
    monkeypatch.setitem(EDITS, "layers before the head", EditKind("somebodys_edit:repeat", "layers before its head"))
    network = networks.build("cifar-resnet:8", seed=1, num_classes=4)
    network.edits = [
        blocks_removed([Removal("layer1.0", "layer1.0", "delete", 1)]),
        {"kind": "layers before the head", "args": {"layers": 2}},
    ]
    apply_edits(network.module, network.edits)
    found = load(save(network, tmp_path))
    assert len(found.module.fc) == 2 and len(found.module.layer1) == 0
    assert torch.equal(logits(found), logits(network))
    assert in_words(found.edits) == "blocks removed and layers before its head"
    assert [args for _, args in reported(found.edits)][1] == {"layers": 2}
    with pytest.raises(NoConstructorError, match="cifar-resnet:8 has layers before its head"):
        constructors(found)


@pytest.mark.parametrize("kind", EDITS)
def test_each_kind_of_edit_names_a_function_that_is_there(kind):
    module, _, name = EDITS[kind].target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_networks_of_unknown_kinds_or_without_what_their_kind_has_are_refused():
    preprocess = networks.build("cifar-resnet:8", seed=0).preprocess
    with pytest.raises(ModelError, match="model mine has the unknown kind 'segmenter'") as caught:
        networks.Network("mine", "segmenter", torch.nn.Identity(), preprocess)
    assert caught.value.hint == "Known: clip, classifier, backbone, video, detector"
    with pytest.raises(ModelError, match="model mine is a clip without encode_image, encode_text, logit_scale"):
        networks.Network("mine", "clip", torch.nn.Identity(), preprocess)


def test_a_new_kind_of_network_is_a_row(monkeypatch):
    monkeypatch.setitem(KINDS, "detector", NetworkKind("boxes (B, N, 4)", ("boxes",), "trunk"))
    module = torch.nn.Module()
    module.boxes, module.trunk = torch.nn.Linear(2, 4), torch.nn.Identity()
    network = networks.Network("mine", "detector", module, networks.build("cifar-resnet:8", seed=0).preprocess)
    assert network.image_module is module.trunk
    monkeypatch.setattr(networks, "build", lambda name, **_: network)
    with pytest.raises(ModelError, match=r"mine is a detector, which gives boxes \(B, N, 4\); a clip is needed"):
        networks.load("mine", "none", default="", kind="clip")
    assert networks.load("mine", "none", default="", kind="detector") is network
