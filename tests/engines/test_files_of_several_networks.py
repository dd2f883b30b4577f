"""What a run was made with, of which network of which file, is what its verbs and `load_pruned` work with."""

import json

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from effvl_cli.core.errors import ModelError
from effvl_cli.data import shape_captions
from effvl_cli.models import network as networks
from effvl_cli.models.normalise import STATISTICS
from effvl_cli.models.token_pruned_clip import load_pruned, modules_of

HALF = [0.5, 0.5, 0.5]


def two_networks(module, path):
    """Student and teacher in one file; the teacher is the module, the student is useless."""
    state = module.state_dict()
    student = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"student": student, "teacher": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_prune_tokens_verbs_take_the_same_network_of_the_file(effvl, workdir, report, monkeypatch):
    monkeypatch.setitem(shape_captions.SPLITS, "val", 20)
    monkeypatch.setitem(shape_captions.SPLITS, "test", 30)
    clip = networks.load("tiny:clip", None, default="", kind="clip")
    path = two_networks(clip.module, workdir / "two.pt")
    line = ("--model", "tiny:clip", "--weights", path, "--weights-key", "teacher", "--normalise", "half", "--force")
    for words in (
        ("rank", *line, "--shots", 1, "--group", 0, "--out", "ranked"),
        ("predict", "ranked", "--predictor-epochs", 1, "--out", "run"),
        ("eval", "run", "--selector", "predictor,grid", "--out", "judged"),
        ("export", "run", "--format", "state", "--out", "state"),
    ):
        outcome = effvl("prune-tokens", *words)
        assert outcome.code == 0, outcome.err
    for folder in ("run", "state"):
        manifest = manifest_of(workdir / folder)
        assert manifest["base"]["weights_key"] == "teacher"
        assert manifest["preprocess"]["mean"] == manifest["preprocess"]["std"] == HALF
        model = load_pruned(folder)
        ours, theirs = model.visual.tower.module.state_dict(), clip.module.visual.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        image = Image.new("RGB", (64, 64), (255, 0, 128))
        pixels = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)(image)
        assert pixels[:, 0, 0].tolist() == pytest.approx([1.0, -1.0, 128 / 127.5 - 1], abs=1e-6)
    outcome = effvl("prune-tokens", "eval", "run", "--normalise", "clip", "--out", "other")
    assert outcome.code == 4
    assert "has other settings (mean: [0.5, 0.5, 0.5] there, [0.48145466" in outcome.error
    outcome = effvl("prune-tokens", "eval", "run", "--weights-key", "student", "--out", "student")
    assert outcome.code == 4 and "has other settings (weights:" in outcome.error


def test_prune_blocks_verbs_take_what_the_run_left(effvl, workdir, report):
    """Published names: the network is renamed for what its weights need, and its normalisation changes."""
    resnet = networks.build("cifar-resnet:14,width=4,pad=both", seed=3, num_classes=10)
    published = torch.nn.Module()
    state = {key.replace("fc.", "linear."): value for key, value in resnet.module.state_dict().items()}
    published.state_dict = lambda: state
    path = two_networks(published, workdir / "two.pt")
    few = ("--score-size", 2, "--finetune-epochs", 0, "--final-epochs", 0, "--force")
    outcome = effvl(
        *("prune-blocks", "--data", "digits", "--model", "cifar-resnet:14,width=4", "--weights", path),
        *("--weights-key", "teacher", "--std", "0.5,0.5,0.5", "--remove", 1, *few, "--out", "run"),
    )
    assert outcome.code == 0, outcome.err
    manifest = manifest_of(workdir / "run")
    assert manifest["model"] == "cifar-resnet:14,width=4,pad=both"
    assert manifest["preprocess"]["mean"] == list(STATISTICS["imagenet"][0])
    assert manifest["preprocess"]["std"] == HALF
    for words in (("score", "run"), ("apply", "run", "--units", 0), ("export", "run", "--format", "pt2")):
        more = () if words[0] == "export" else few[:2] if words[0] == "score" else few
        force = ("--force",) if words[0] == "score" else ()
        outcome = effvl("prune-blocks", *words, *more, *force, "--out", words[0])
        assert outcome.code == 0, outcome.err
        assert report(words[0]).model.name == "cifar-resnet:14,width=4,pad=both"
    assert manifest_of(workdir / "apply")["preprocess"] == manifest["preprocess"]
    outcome = effvl("prune-blocks", "score", "run", "--model", "cifar-resnet:14", "--out", "wrong")
    assert outcome.code == 4 and "are of cifar-resnet:14,width=4,pad=both, not of --model" in outcome.error


def test_pretrain_eval_takes_the_normalisation_that_the_backbone_learned_with(effvl, workdir, monkeypatch):
    from effvl_cli.engines.pretrain import eval as pretrain_eval

    outcome = effvl(
        *("pretrain", "--method", "simclr", "--data", "digits", "--model", "vit:nano/4@24", "--budget", 30),
        *("--batch-size", 4, "--num-bank", 20, "--no-baseline", "--mean", "0.1,0.2,0.3", "--out", "run"),
    )
    assert outcome.code == 0, outcome.err
    seen = []
    decode = pretrain_eval.decode
    monkeypatch.setattr(pretrain_eval, "decode", lambda *a: seen.append(a[3]) or decode(*a))
    outcome = effvl("pretrain", "eval", "run", "--num-bank", 20, "--out", "judged")
    assert outcome.code == 0, outcome.err
    assert seen[0].mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("part", "changed", "words"),
    [
        ("text", {"num_tokens": -1}, "RuntimeError zeros"),
        ("text", {"depth": 10**30}, "zeros"),
        ("text", {"template": True}, "no place for a name"),
        ("text", {"template": "a photo."}, "no place for a name"),
        ("visual", {"depth": -1}, "RuntimeError zeros"),
        ("visual", {"depth": []}, "TypeError"),
        ("visual", {"start": -1}, "begin at block -1"),
    ],
)
def test_prompts_that_no_tensor_can_be_are_one_line(part, changed, words):
    sizes = {"depth": 2, "num_tokens": 1}
    about = {
        "text": {**sizes, "width": 8, "first": 1, "template": "a {}."},
        "visual": {**sizes, "start": 0, "pre_norm": False},
        "coupled": False,
        "any_keep": False,
    }
    about[part] |= changed
    with pytest.raises(ModelError, match="the manifest beside the checkpoint is damaged") as caught:
        modules_of({}, {"fields": {"width": 8}, "predictor": None, "prompts": about})
    assert words in caught.value.message and "\n" not in str(caught.value)
