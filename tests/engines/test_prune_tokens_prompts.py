"""Every kind of prompts through the real command, on few images."""

from pathlib import Path

import pytest
import torch

from effvl_cli.core.checkpoint import load_model, read_manifest
from effvl_cli.models import network
from tests.conftest import keep_few_images

KINDS = {
    "visual": {"visual.tokens"},
    "text": {"own_text.tokens"},
    "independent": {"visual.tokens", "own_text.tokens"},
    "coupled": {"visual.text.tokens", "visual.weight", "visual.bias"},
}
# All 60 images in every step: the losses of a run are of one fixed batch.
WHOLE = ("--shots", 2, "--tune-batch-size", 60, "--tune-epochs", 8, "--log-every", 1)
ONCE = ("--shots", 2, "--tune-batch-size", 60, "--tune-epochs", 1)  # where nothing is asked of what was learned


@pytest.fixture
def base(shared, ranked_run, few_images, shared_cache):
    """A run with a predictor and without prompts."""
    few = ("--predictor-epochs", 3, "--predictor-batch-size", 8)
    return shared.run("tokens-base", "prune-tokens", "predict", ranked_run, *few, prepare=keep_few_images)


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
    outcome = effvl("prune-tokens", "tune", base, *ONCE, *options, "--out", "still")
    assert outcome.code == 0, outcome.err
    before, after = report("still").technique["results"][1:]
    assert (before["selector"], after["selector"]) == ("predictor", "predictor+tuned")
    assert {**after, "selector": "predictor"} == before


def test_mixed_keep_rates_serve_every_rate(base, effvl, report):
    tuned = ("--prompts", "visual", "--tune-keeps", "mix", "--out", "mixed")
    assert effvl("prune-tokens", "tune", base, *ONCE, *tuned).code == 0
    assert read_manifest(Path("mixed"))["prompts"]["any_keep"]
    options = ("--selector", "predictor", "--keep", "0.8,0.3", "--num-golden", 0, "--out", "rates")
    assert effvl("prune-tokens", "eval", "mixed", *options).code == 0
    assert {"top1_predictor_tuned_keep0.8", "top1_predictor_tuned_keep0.3"} <= set(report("rates").metrics)


def test_prompts_from_another_block(base, effvl, report):
    options = ("--prompt-start", 2, "--prompts", "independent", "--num-text-tokens", 5, "--out", "late")
    outcome = effvl("prune-tokens", "tune", base, *ONCE, *options)
    assert outcome.code == 0, outcome.err
    about = read_manifest(Path("late"))["prompts"]
    assert about["visual"] == {"num_tokens": 2, "depth": 2, "start": 2, "pre_norm": False}
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
    outcome = effvl("prune-tokens", "tune", "base", *ONCE, "--layer", 2, "--prompt-start", 1, "--out", "early")
    assert outcome.code == 0, outcome.err
    assert read_manifest(Path("early"))["prompts"]["visual"]["start"] == 1
    assert any("prompts from block 1 on" in text for text in report("early").warnings)


def test_a_job_with_prompts_from_block_0_trains_the_predictor_on_what_they_make(
    effvl, few_images, quick_figures, report
):
    options = ("--shots", 2, "--layer", 1, "--prompt-start", 0, "--num-golden", 0, "--predictor-epochs", 3)
    quick = ("--dropped", "discard", "--predictor-batch-size", 8, "--tune-epochs", 1, "--tune-batch-size", 60)
    outcome = effvl("prune-tokens", *options, *quick, "--out", "run")
    assert outcome.code == 0, outcome.err
    trained = {path.name for path in Path("run/checkpoints").iterdir() if path.is_dir()}
    assert trained == {"predictor", "tuning", "predictor-prompted"}
    manifest = read_manifest(Path("run"))
    assert manifest["prompts"]["visual"] | {"depth": 0} == {"num_tokens": 2, "depth": 0, "start": 0, "pre_norm": True}
    assert manifest["predictor"]["prompted"] and {"predictor", "predictor_prompted"} <= set(report("run").technique)
    rows = {row["selector"]: row for row in report("run").technique["results"]}

    # By hand: block 0 has 64 patches, the three others 38, CLS everywhere, two prompts everywhere when tuned.
    def block(rows):
        return rows * (4 * 64**2 + 2 * 64 * 128) + 2 * rows**2 * 64

    ends, mixer = 64 * 192 * 64 + 64 * 64, 2 * 65 * 64 * 32 + 2 * 65 * 64 * 256 + 64 * 64
    assert rows["predictor"]["macs"] == ends + block(65) + 3 * block(39) + mixer
    assert rows["predictor+tuned"]["macs"] == ends + block(67) + 3 * block(41) + mixer
    again = effvl("prune-tokens", "eval", "run", "--selector", "random", "--num-golden", 0, "--out", "eval")
    assert again.code == 0, again.err  # the saved predictor is the one that knows the prompts
    assert report("eval").metrics["top1_predictor_tuned"] == report("run").metrics["top1_predictor_tuned"]
    assert any("without them it may do worse" in text for text in report("eval").warnings)
    exported = effvl("prune-tokens", "export", "run", "--format", "state", "--out", "state")
    assert exported.code == 0, exported.err
    assert report("state").metrics["cosine_state"].value == pytest.approx(1, abs=1e-6)


def test_prompts_belong_to_a_number_of_patches_and_cost_nothing_else_where_all_are_kept(base, effvl, report):
    assert effvl("prune-tokens", "tune", base, *ONCE, "--prompts", "visual", "--keep", 0.6, "--out", "tuned").code == 0
    options = ("--selector", "predictor", "--num-golden", 0)
    assert effvl("prune-tokens", "eval", "tuned", *options, "--num-keep", 38, "--out", "same").code == 0
    assert "top1_predictor_tuned" in report("same").metrics  # 0.6 * 64 patches are 38
    assert effvl("prune-tokens", "eval", "tuned", *options, "--num-keep", 39, "--out", "other").code == 0
    assert "top1_predictor_tuned" not in report("other").metrics
    mixed = ("--prompts", "visual", "--tune-keeps", "mix", "--keep", 1.0, "--out", "whole")
    assert effvl("prune-tokens", "tune", base, *ONCE, *mixed).code == 0
    rows = {row["selector"]: row for row in report("whole").technique["results"]}
    assert rows["predictor"]["macs"] == rows["dense"]["macs"]  # none runs
    assert rows["predictor+tuned"]["macs"] == 64 * 192 * 64 + 4 * (67 * 32_768 + 2 * 67**2 * 64) + 64 * 64


def test_text_prompts_that_leave_no_room_for_the_names_are_refused(base, effvl):
    outcome = effvl("prune-tokens", "tune", base, "--prompts", "text", "--num-text-tokens", 13, "--out", "r")
    assert outcome.code == 2 and "--num-text-tokens 13 leave no room for" in outcome.error
    assert outcome.error.endswith("Give 1 to 10")  # 16 - start, end and the four tokens of "yellow triangle"
    assert effvl("prune-tokens", "tune", base, *ONCE, "--prompts", "text", "--num-text-tokens", 10).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompts", "visual", "--num-text-tokens", 4), "--num-text-tokens is 4, and --prompts visual has none"),
        (("--prompts", "text", "--num-visual-tokens", 4), "--num-visual-tokens is 4, and --prompts text has none"),
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
        *(*miniature[2:], "--shots", 8, "--prompts", "coupled", "--force", "--out", "run"),
    )
    assert outcome.code == 0, outcome.err
    done = report("run")
    assert done.model.source == "ViT.pt" and done.metrics["top1_predictor_tuned"].n == 12
    assert done.technique["tower"]["N"] == 64 and done.technique["tune"]["prompts"] == "coupled"
