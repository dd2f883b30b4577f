"""Tuned prompts from their files, on a whole and on a pruned image tower."""

import json

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.core.checkpoint import MANIFEST, digest, save_model
from effvl_cli.core.errors import ModelError
from effvl_cli.models import network as networks
from effvl_cli.models import token_pruned_clip
from effvl_cli.models.edits import apply_edits, in_words
from effvl_cli.models.openclip_prompts import name_pieces, prompt_tower
from effvl_cli.models.openclip_tower import tower_of
from effvl_cli.models.token_pruned_clip import load_pruned
from effvl_cli.models.tuned_prompts import KIND, load_tuned, prompts_edit
from effvl_cli.techniques.prompt_tune.learner import PromptLearner

NAMES = ("red ring", "blue square")


def _tiny():
    return networks.load("tiny:clip", None, default="", kind="clip")


def _learners(network):
    """One of each kind, with tokens that no rebuilding could guess."""
    tower, pieces = prompt_tower(network), name_pieces(network, NAMES)
    rows = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    names = sum(map(len, pieces.ids))
    return {
        "prompt": PromptLearner(tower, pieces, rows[:3], position="middle"),
        "csc": PromptLearner(tower, pieces, rows[:6].reshape(2, 3, 64)),
        "full": PromptLearner(tower, pieces, rows[:2], train_names=True, name_rows=rows[:names]),
        "cls_tuning": PromptLearner(tower, pieces, rows[:2], train_context=False, train_names=True),
        "cls_random": PromptLearner(tower, pieces, rows[:2], name_rows=rows[:names]),
        "names_alone": PromptLearner(tower, pieces, None, train_names=True),
    }


def _save(folder, learners, network, **about):
    state = {f"{name}.learned.{key}": value for name, one in learners.items() for key, value in one.learned().items()}
    arms = [
        {"key": name, "edit": prompts_edit(one.pieces, one.learned(), one.position)} for name, one in learners.items()
    ]
    manifest = {"kind": KIND, "model": "tiny:clip", "weights": None, "seed": 0, "arms": [*arms, {"key": "zero_shot"}],
                "weights_sha256": network.weights_sha256}  # fmt: skip
    save_model(folder / networks.CHECKPOINT, state, {**manifest, **about})


def test_every_kind_of_prompts_comes_back(tmp_path):
    network = _tiny()
    learners = _learners(network)
    _save(tmp_path, learners, network)
    images = torch.randn(2, 3, 64, 64)
    for name, learner in learners.items():
        model = load_tuned(tmp_path, name)
        with torch.no_grad():
            assert torch.equal(model.prompts(), learner())
            assert torch.equal(model.encode_image(images), network.module.encode_image(images))
        assert not any(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ModelError, match=r"no prompts 'zero_shot'\. Give one of prompt, csc, full"):
        load_tuned(tmp_path, "zero_shot")
    with pytest.raises(ModelError, match="belong to other weights than those of none"):
        load_tuned(tmp_path, "prompt", weights="none")


def test_damaged_prompts_are_refused(tmp_path):
    network = _tiny()
    _save(tmp_path, {"prompt": _learners(network)["prompt"]}, network)
    path = tmp_path / MANIFEST
    good = json.loads(path.read_text())
    for key, value, reason in [
        ("ids", [[10**6], [1]], "outside the vocabulary"),
        ("ids", [[1]], "2 names and tokens of 1"),
        ("position", "left", "unknown position 'left'"),
        ("context", [3, 7], "a context of shape"),
        ("context", [2, 64], "the prompts prompt and those described beside them"),
        ("context", "x", "cannot be repeated|is damaged"),
        ("pad", None, "outside the vocabulary"),
    ]:
        changed = json.loads(path.read_text())
        changed["arms"][0]["edit"]["args"][key] = value
        path.write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=reason):
            load_tuned(tmp_path, "prompt")
        path.write_text(json.dumps(good))
    path.write_text(json.dumps({**good, "kind": "prune-tokens"}))
    with pytest.raises(ModelError, match="holds 'prune-tokens', not a run of prompt-tune"):
        load_tuned(tmp_path, "prompt")


def test_prompts_are_an_edit_of_a_network(tmp_path):
    """A network that has them is saved and loaded like any other."""
    network = _tiny()
    learner = _learners(network)["full"]
    network.edits = [prompts_edit(learner.pieces, learner.learned(), learner.position)]
    apply_edits(network.module, network.edits)
    network.module.prompts.load_state_dict(learner.learned())
    save_model(tmp_path / networks.CHECKPOINT, network.module.state_dict(), network.describe())
    found = networks.load(None, str(tmp_path), default="", kind="clip")
    assert in_words(found.edits) == "tuned prompts" and found.edits == network.edits
    with torch.no_grad():
        assert torch.equal(found.module.prompts(), learner())


def test_tuned_prompts_on_a_pruned_tower(tmp_path):
    """Half of the patches are dropped by a predictor of prune-tokens; the prompts are tuned on what is left."""
    network = _tiny()
    tower = tower_of(network.module)
    predictor = token_pruned_clip.make_predictor("linear", num_patches=64, num_prefix=1, dim=tower.width, width=8)
    fields = {"model": "tiny:clip", "weights": network.weights_sha256, "layer": 1, "patches": 64, "prefix": 1,
              "width": tower.width}  # fmt: skip
    state, manifest = token_pruned_clip.contents(
        token_pruned_clip.Artefact(predictor, None, {"predictor": {"prompted": False}}),
        fields=fields,
        base={"weights": None, "weights_key": None, "seed": 0},
        ranking={"data": "x"},
        keep=0.5,
        any_keep=False,
        class_weights=torch.ones(64, 2),
        about={"classes": list(NAMES), "templates": ["{}"], "preprocess": network.preprocess.to_dict()},
    )
    save_model(tmp_path / "pruned" / networks.CHECKPOINT, state, manifest)
    pruned = load_pruned(tmp_path / "pruned")
    network.module, network.weights_sha256 = pruned, digest(pruned.state_dict())

    learner = _learners(network)["prompt"]
    images, labels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1])
    features = F.normalize(pruned.encode_image(images), dim=-1)
    assert not torch.allclose(features, F.normalize(_tiny().module.encode_image(images), dim=-1), atol=1e-2)
    losses = []
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    for _ in range(5):
        loss = F.cross_entropy(10 * features @ learner().T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    _save(tmp_path / "tuned", {"prompt": learner}, network, weights=str(tmp_path / "pruned"))
    model = load_tuned(tmp_path / "tuned", "prompt")
    with torch.no_grad():
        assert torch.equal(model.prompts(), learner())
        assert torch.equal(F.normalize(model.encode_image(images), dim=-1), features)
