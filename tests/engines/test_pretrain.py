"""`effvl pretrain` through the real command, and its losses against slow ones."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.core.checkpoint import load_model
from effvl_cli.models import network
from effvl_cli.models.openclip_tower import tower_of
from effvl_cli.techniques.pretrain.contrastive import contrastive_loss
from effvl_cli.techniques.pretrain.tokens import encode_kept, random_tokens

CLIP = ("pretrain", "--method", "clip", "--batch-size", 8, "--log-every", 1)


def weights(folder):
    return load_model(Path(folder) / "checkpoint.safetensors")[0]


def equal(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_clip_trains_saves_and_is_used_by_the_next_command(effvl, few_images, report, miniature):
    done = effvl(*CLIP, "--steps", 6, "--out", "clip", "--eval-data", "shape-captions:sketch", "--eval-every", 3)
    assert done.code == 0, done.err
    figures = report("clip").metrics
    assert {"top1", "top1_sketch", "top1_shuffled_names"} <= set(figures) and figures["top1"].n == 48
    done = effvl("prune-tokens", "--weights", "clip", *miniature, "--prompts", "none", "--force", "--out", "pruned")
    assert done.code == 0, done.err
    assert report("pruned").model.source == "clip"
    assert report("pruned").metrics["top1_dense"].value == figures["top1"].value


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_in_one_go_equal_steps_in_two(effvl, few_images, records, optimizer):
    line = (*CLIP, "--optimizer", optimizer, "--keep", 0.5, "--warmup", 0, "--save-every", 2)
    assert effvl(*line, "--steps", 6, "--out", "whole").code == 0
    import effvl_cli.core.loop as loop

    original = loop._Loop._one_step

    def cut(self, stream):
        if self.step == 4:
            raise KeyboardInterrupt
        return original(self, stream)

    loop._Loop._one_step = cut
    try:
        effvl(*line, "--steps", 6, "--out", "parts")
    finally:
        loop._Loop._one_step = original
    done = effvl(*line, "--steps", 6, "--out", "parts")
    assert done.code == 0, done.err
    assert equal("whole", "parts")
    assert Path("whole/metrics.jsonl").read_bytes() == Path("parts/metrics.jsonl").read_bytes()


def test_a_finished_run_may_be_made_longer(effvl, few_images, report):
    assert effvl(*CLIP, "--steps", 3, "--out", "run").code == 0
    assert effvl(*CLIP, "--steps", 2, "--out", "run").code == 2
    done = effvl(*CLIP, "--steps", 5, "--out", "run")
    assert done.code == 0, done.err
    assert report("run").technique["steps"] == 5 and report("run").resume.steps_done_before == 3


def test_workers_do_not_change_the_result(effvl, image_folder):
    line = (
        *CLIP,
        "--data",
        f"folder:{image_folder}",
        "--model",
        "tiny:clip-32px",
        "--augment",
        "crop-flip",
        "--steps",
        4,
    )
    assert effvl(*line, "--out", "none").code == 0
    assert effvl(*line, "--workers", 2, "--out", "two").code == 0
    assert equal("none", "two")


def test_captions_of_a_table_are_trained_on(effvl, image_folder, report):
    rows = ["path,caption,split"]
    for split in ("train", "val", "test"):
        rows += [
            f"{p.relative_to(image_folder)},{p.parent.name} {p.stem},{split}"
            for p in (image_folder / split).rglob("*.jpg")
        ]
    (image_folder / "t.csv").write_text("\n".join(rows))
    done = effvl(
        *CLIP, "--data", f"csv:{image_folder / 't.csv'}", "--model", "tiny:clip-32px", "--epochs", 2, "--out", "run"
    )
    assert done.code == 0, done.err
    assert report("run").technique["steps"] == 6
    assert 0 <= report("run").metrics["recall1_image_to_text"].value <= 1


def test_supervised_learns_the_digits(effvl, report):
    done = effvl(
        *(
            "pretrain",
            "--method",
            "supervised",
            "--data",
            "digits",
            "--model",
            "cifar-resnet:8",
            "--epochs",
            4,
            "--lr",
            2e-3,
            "--weight-decay",
            0.05,
        ),
        *("--label-smoothing", 0.1, "--out", "run"),
    )
    assert done.code == 0, done.err
    figures = report("run").metrics
    assert figures["top1"].value > 0.85 and figures["top1"].n > 400
    assert network.load(None, "run", default="tiny:clip", kind="classifier").name == "cifar-resnet:8"


def test_an_exploding_run_ends_with_a_line(effvl, few_images, monkeypatch):
    import effvl_cli.engines.pretrain.clip as engine

    monkeypatch.setattr(engine, "contrastive_loss", lambda i, t, s, p: i.sum() * float("inf"))
    outcome = effvl(*CLIP, "--steps", 30, "--out", "run")
    assert outcome.code == 6
    assert "not finite" in outcome.error and "Lower the learning rate" in outcome.error


# --- the mathematics -------------------------------------------------------------------------------------------------


def test_contrastive_loss_with_single_positives_is_clips():
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(5, 7), dim=-1) for _ in range(2))
    logits = 10 * images @ texts.T
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    found = contrastive_loss(images, texts, torch.tensor(10.0), torch.eye(5, dtype=torch.bool))
    assert torch.allclose(found, expected)


def test_contrastive_loss_with_several_positives_equals_a_slow_loop():
    torch.manual_seed(1)
    images, texts = F.normalize(torch.randn(6, 4), dim=-1), F.normalize(torch.randn(3, 4), dim=-1)
    labels = [0, 0, 1, 0, 1, 0]  # nothing of class 2
    sims = [[3.0 * float(images[i] @ texts[t]) for t in range(3)] for i in range(6)]
    rows = [math.log(sum(map(math.exp, sims[i]))) - sims[i][labels[i]] for i in range(6)]
    columns = []
    for t in (0, 1):
        total = math.log(sum(math.exp(sims[i][t]) for i in range(6)))
        own = [total - sims[i][t] for i in range(6) if labels[i] == t]
        columns.append(sum(own) / len(own))
    positives = torch.tensor(labels)[:, None] == torch.arange(3)
    found = contrastive_loss(images, texts, torch.tensor(3.0), positives)
    assert float(found) == pytest.approx((sum(rows) / 6 + sum(columns) / 2) / 2, abs=1e-6)


def test_random_tokens_are_a_uniform_draw_without_replacement():
    kept = random_tokens(4000, 8, 3, torch.Generator().manual_seed(0))
    assert kept.shape == (4000, 3) and (kept[:, 1:] > kept[:, :-1]).all()
    counts = kept.flatten().bincount(minlength=8)
    assert (counts - 1500).abs().max() < 5 * math.sqrt(4000 * 3 / 8 * 5 / 8)
    assert torch.equal(kept, random_tokens(4000, 8, 3, torch.Generator().manual_seed(0)))


def test_all_tokens_kept_is_the_whole_tower():
    tower = tower_of(network.build("tiny:clip", seed=0).module.eval())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = encode_kept(tower, images, torch.arange(64).expand(2, -1))
        assert torch.allclose(found, tower.module(images), atol=1e-6)
        some = torch.tensor([[0, 5, 63], [1, 2, 3]])
        states = tower.embed(images)
        alone = torch.cat([states[:1, :1], states[:1, [1, 6, 64]]], 1)
        for index in range(tower.depth):
            alone = tower.block(index, alone)
        assert torch.allclose(encode_kept(tower, images, some)[:1], tower.pool(alone), atol=1e-5)
