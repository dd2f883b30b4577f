"""Every kind of prompts through the real command, on few images."""

from pathlib import Path

import pytest
import torch

from effvl_cli.core.checkpoint import load_model, read_manifest
from effvl_cli.models import network

KINDS = {
    "visual": {"visual.tokens"},
    "text": {"own_text.tokens"},
    "independent": {"visual.tokens", "own_text.tokens"},
    "coupled": {"visual.text.tokens", "visual.weight", "visual.bias"},
}
# All 60 images in every step: the losses of a run are of one fixed batch.
WHOLE = ("--shots", 2, "--tune-batch-size", 60, "--tune-epochs", 8, "--log-every", 1)


@pytest.fixture
def base(effvl, few_images):
    """A run with a predictor and without prompts."""
    assert effvl("prune-tokens", "rank", "--shots", 2, "--out", "ranked").code == 0
    few = ("--predictor-epochs", 3, "--predictor-batch-size", 8)
    outcome = effvl("prune-tokens", "predict", "ranked", *few, "--out", "base")
    assert outcome.code == 0, outcome.err
    return "base"


def _losses(records, folder):
    return [row["loss"] for row in records(folder) if row["event"] == "train" and row["phase"] == "tuning"]


def test_every_kind_is_tuned_saved_and_evaluated(base, effvl, report, records):
    for kind, keys in KINDS.items():
        out = f"tuned-{kind}"
        outcome = effvl("prune-tokens", "tune", base, *WHOLE, "--prompts", kind, "--keep", 0.2, "--out", out)
        assert outcome.code == 0, outcome.err
        losses = _losses(records, out)
        assert len(losses) == 8 and losses[-1] < losses[0], kind
        state, manifest = load_model(Path(out) / "checkpoint.safetensors")
        saved = {key.removeprefix("prompts.") for key in state if key.startswith("prompts.")}
        assert saved == keys
        assert bool(manifest["prompts"]["text"]) == (kind != "visual")
        found = report(out)
        assert found.technique["tune"]["prompts"] == kind
        assert found.technique["tune"]["params"] == sum(v.numel() for k, v in state.items() if k.startswith("prompts."))
        rows = {row["selector"]: row for row in found.technique["results"]}
        assert (rows["predictor+tuned"]["macs"] > rows["predictor"]["macs"]) == (kind != "text")
        if kind in ("text", "coupled"):  # what was saved evaluates to what was tuned
            again = effvl(
                *("prune-tokens", "eval", out, "--selector", "predictor", "--keep", "0.6,0.2", "--num-golden", 0),
                *("--out", f"eval-{kind}"),
            )
            assert again.code == 0, again.err
            evaluated = report(f"eval-{kind}").metrics
            assert evaluated["top1_predictor_tuned_keep0.2"] == found.metrics["top1_predictor_tuned"]
            assert "top1_predictor_tuned_keep0.6" not in evaluated


def test_text_prompts_change_nothing_before_they_learn(base, effvl, report):
    options = ("--templates", "a photo of a {}.", "--prompts", "text", "--tune-lr", 1e-12)
    outcome = effvl("prune-tokens", "tune", base, *WHOLE, *options, "--out", "still")
    assert outcome.code == 0, outcome.err
    before, after = report("still").technique["results"][1:]
    assert (before["selector"], after["selector"]) == ("predictor", "predictor+tuned")
    assert {**after, "selector": "predictor"} == before


def test_mixed_keep_rates_serve_every_rate(base, effvl, report):
    tuned = ("--prompts", "visual", "--tune-keeps", "mix", "--out", "mixed")
    assert effvl("prune-tokens", "tune", base, *WHOLE, *tuned).code == 0
    assert read_manifest(Path("mixed"))["prompts"]["any_keep"]
    options = ("--selector", "predictor", "--keep", "0.8,0.3", "--num-golden", 0, "--out", "rates")
    assert effvl("prune-tokens", "eval", "mixed", *options).code == 0
    assert {"top1_predictor_tuned_keep0.8", "top1_predictor_tuned_keep0.3"} <= set(report("rates").metrics)


def test_prompts_from_another_block(base, effvl, report):
    options = ("--prompt-start", 2, "--prompts", "independent", "--num-text-tokens", 5, "--out", "late")
    outcome = effvl("prune-tokens", "tune", base, *WHOLE, *options)
    assert outcome.code == 0, outcome.err
    about = read_manifest(Path("late"))["prompts"]
    assert about["visual"] == {"num_tokens": 2, "depth": 2, "start": 2}
    assert (about["text"]["num_tokens"], about["text"]["depth"]) == (5, 2)
    assert about["text"]["template"] == "a small photo of a {}."  # of shape-captions's own, the first with five words
    outcome = effvl("prune-tokens", "tune", base, "--shots", 2, "--prompt-start", 4, "--out", "later")
    assert outcome.code == 2 and "--prompt-start is 4, and tiny:clip has 4 blocks" in outcome.error
    outcome = effvl("prune-tokens", "tune", base, "--prompts", "none")
    assert outcome.code == 2 and "--prompts is none" in outcome.error


def test_prompts_before_the_pruning(effvl, few_images, report):
    few = ("--shots", 2, "--layer", 2, "--predictor-epochs", 3, "--predictor-batch-size", 8)
    assert effvl("prune-tokens", "rank", *few[:4], "--out", "ranked").code == 0
    assert effvl("prune-tokens", "predict", "ranked", *few, "--out", "base").code == 0
    outcome = effvl("prune-tokens", "tune", "base", *WHOLE, "--layer", 2, "--prompt-start", 1, "--out", "early")
    assert outcome.code == 0, outcome.err
    assert read_manifest(Path("early"))["prompts"]["visual"]["start"] == 1
    assert any("prompts from block 1 on" in text for text in report("early").warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompts", "text", "--tune-objective", "distill"), "--prompts text need labels"),
        (("--prompts", "coupled", "--num-text-tokens", 3), "--num-visual-tokens is 2, --num-text-tokens 3"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(effvl, options, message):
    outcome = effvl("prune-tokens", *options)
    assert outcome.code == 2 and message in outcome.error


def test_a_file_of_openai_and_a_folder_need_one_command(effvl, quick_figures, image_folder, report, miniature):
    half = {key: value.half() for key, value in network.build("tiny:clip-32px", seed=1).module.state_dict().items()}
    scalars = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(9)}
    torch.save({**half, **scalars}, "ViT.pt")
    outcome = effvl(
        *("prune-tokens", "--data", f"folder:{image_folder}", "--model", "tiny:clip-32px", "--weights", "ViT.pt"),
        *(*miniature[2:], "--shots", 8, "--prompts", "coupled", "--out", "run"),
    )
    assert outcome.code == 0, outcome.err
    done = report("run")
    assert done.model.source == "ViT.pt" and done.metrics["top1_predictor_tuned"].n == 12
    assert done.technique["tower"]["N"] == 64 and done.technique["tune"]["prompts"] == "coupled"
