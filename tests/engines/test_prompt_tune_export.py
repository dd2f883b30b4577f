"""Class weights of `effvl prompt-tune export`, applied where effvl cannot be imported."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from effvl_cli.core.errors import CheckError
from effvl_cli.data import load
from effvl_cli.engines.prompt_tune import export, saved_arms
from effvl_cli.models import network as networks
from effvl_cli.models.tiny import ASSETS
from effvl_cli.models.token_pruned_clip import load_pruned
from tests.conftest import keep_few_images
from tests.processes import run_without_effvl

ELSEWHERE = """
import json, sys
import torch, torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file, save_file
weights, images = sys.argv[1:]
vision = CLIPVisionCfg(layers=4, width=64, head_width=16, mlp_ratio=2.0, patch_size=8, image_size=64)
state = load_file(weights)
vocabulary, width = state["token_embedding.weight"].shape
text = CLIPTextCfg(context_length=16, vocab_size=vocabulary, width=width, heads=width // 16, layers=2)
model = CLIP(64, vision, text)
model.load_state_dict(state)
model.eval()
heads, card = load_file("out/class_weights.safetensors"), json.load(open("out/class_weights.json"))
mean, std = (torch.tensor(card["preprocess"][key]).view(3, 1, 1) for key in ("mean", "std"))
logits = {}
with torch.no_grad():
    features = model.encode_image((load_file(images)["pixels"] - mean) / std)
    for key, about in card["arms"].items():
        f = F.normalize(features, dim=-1) if about["normalize"] else features
        logits[key] = about["logit_scale"] * f @ heads[key + ".weight"].T
        if about["bias"]:
            logits[key] += heads[key + ".bias"]
save_file(logits, "logits.safetensors")
"""


def pixels_of(run):
    """The test images of a run as the tiny CLIP sees them, from 0 to 1."""
    preprocess = networks.load(None, None, default="tiny:clip", kind="clip").preprocess
    source = load("shape-captions:sketch", "test")
    indices = load_file(run / "logits.safetensors")["indices"]
    return torch.stack([preprocess.to_uint8(source.image(int(index))) for index in indices]) / 255


def test_plain_open_clip_gives_the_logits_of_the_run(prompts_run, effvl, report, workdir, few_images):
    outcome = effvl("prompt-tune", "export", prompts_run, "--out", "out")
    assert outcome.code == 0, outcome.err
    save_file({"pixels": pixels_of(prompts_run)}, "images.safetensors")
    weights = ASSETS / "tiny-clip" / "checkpoint.safetensors"
    run_without_effvl(ELSEWHERE, workdir, str(weights), "images.safetensors")
    ours, theirs = load_file(prompts_run / "logits.safetensors"), load_file("logits.safetensors")
    assert set(theirs) == set(ours) - {"indices", "labels"} >= {"zero_shot", "linear_probe", "prompt_gce", "prompt_ce"}
    for key, logits in theirs.items():
        scale = ours[key].abs().max()
        torch.testing.assert_close(logits / scale, ours[key] / scale, rtol=0, atol=3e-3)  # features are kept in fp16
    card = json.loads(Path("out/class_weights.json").read_text())
    probe, prompt = card["arms"]["linear_probe"], card["arms"]["prompt_gce"]
    assert (probe["normalize"], probe["bias"], probe["logit_scale"]) == (False, True, 1.0)
    assert prompt["normalize"] and not prompt["bias"] and prompt["rate"] == 0.5 and prompt["logit_scale"] > 5
    assert len(card["classes"]) == prompt["classes"]
    assert all(row["difference"] <= 1e-4 for row in report("out").technique["export"]["arms"])
    assert {row.path for row in report("out").artifacts} >= {"class_weights.safetensors", "class_weights.json"}


def test_some_methods_alone(prompts_run, effvl, workdir):
    assert effvl("prompt-tune", "export", prompts_run, "--arms", "prompt_ce", "--out", "out").code == 0
    assert set(load_file("out/class_weights.safetensors")) == {"prompt_ce.weight"}
    outcome = effvl("prompt-tune", "export", prompts_run, "--arms", "tip_adapter", "--out", "none")
    assert outcome.code == 2 and "--arms names 'tip_adapter'" in outcome.error and "prompt_ce" in outcome.error
    outcome = effvl("prompt-tune", "export", prompts_run, "--arms", "prompt_ce,prompt_ce", "--out", "none")
    assert outcome.code == 2 and "--arms names the same thing twice" in outcome.error


def test_other_logits_are_an_error_and_the_file_stays(prompts_run, tmp_path, monkeypatch):
    arms = list(saved_arms.load(prompts_run).arms)
    file = tmp_path / "class_weights.safetensors"
    export._write_weights(file, arms)
    before = file.read_bytes()
    monkeypatch.setattr(export, "parse", lambda content: {k: -v for k, v in torch_parse(content).items()})
    with pytest.raises(CheckError, match="gives other logits"):
        export._write_weights(file, arms)
    assert file.read_bytes() == before


torch_parse = export.parse


def test_prompts_tuned_on_a_pruned_tower(plain_tokens_run, effvl, workdir, monkeypatch):
    keep_few_images(monkeypatch)
    line = ("--weights", plain_tokens_run, "--method", "zero-shot,prompt", "--loss", "gce", "--noise-rate", 0)
    line += ("--shots", 1, "--epochs", 1, "--save-logits", "--cache-dtype", "fp32")
    assert effvl("prompt-tune", *line, "--out", "tuned").code == 0
    assert effvl("prompt-tune", "export", "tuned", "--out", "out").code == 0
    weight = load_file("out/class_weights.safetensors")["prompt_gce.weight"]
    about = json.loads(Path("out/class_weights.json").read_text())
    mean, std = (torch.tensor(about["preprocess"][key]).view(3, 1, 1) for key in ("mean", "std"))
    visual = load_pruned(plain_tokens_run).visual
    with torch.no_grad():
        features = F.normalize(visual((pixels_of(Path("tuned")) - mean) / std), dim=-1)
    expected = load_file("tuned/logits.safetensors")["prompt_gce"]
    logits = about["arms"]["prompt_gce"]["logit_scale"] * features @ weight.T
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)
