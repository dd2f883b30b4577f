"""The whole job of cpr-mine through the real command, on moving shapes."""

from pathlib import Path

import pytest

from effvl_cli.core.checkpoint import load_model
from effvl_cli.engines.cpr_mine import contact_sheet
from effvl_cli.models.clip_encoders import encoder_folders

FEW = ("cpr-mine", "--pretrain-epochs", 1, "--epochs", 1, "--batch-size", 128, "--queue-size", 128, "--top-k", 3)
NAMED = (
    *("mining_precision_rgb", "mining_precision_flow", "mining_precision_cascade", "class_mining_recall_median"),
    *("mining_recall_rgb", "mining_recall_flow", "mining_recall_cascade", "mining_recall_cascade_rgb"),
)


@pytest.fixture(scope="module")
def job(shared):
    return shared.run("cpr-job", *FEW, prepare=lambda patch: patch.setattr(contact_sheet, "SHEETS", 1))


def test_every_arm_and_every_way_of_mining_has_its_figure(job, report):
    found = report(job)
    assert found.status == "completed"
    for arm in ("infonce", "coclr", "cpr"):
        figure = found.metrics[f"r1_{arm}"]
        assert figure.n == 320 and 0 < figure.value < 1 and 0 < figure.se < 0.03
        assert 0 < found.metrics[f"same_palette_{arm}"].value <= 1
    for name in NAMED:
        assert 0 < found.metrics[name].value <= 1 and 0 < found.metrics[f"{name}_pre"].value <= 1
    assert found.metrics["mining_precision_flow"].value == found.metrics["mining_precision_flow_pre"].value
    ranks = [found.metrics[f"retrieval_r{k}"].value for k in (1, 5, 10, 20, 50)]
    assert ranks == sorted(ranks) and ranks[0] == found.metrics["r1_cpr"].value
    assert found.metrics["mining_precision_rgb"].value > 0.13  # one in eight by chance
    phases = [turn["phase"] for turns in found.technique["arms"].values() for turn in turns]
    assert phases == ["infonce-rgb", "coclr-rgb", "cpr-rgb"]
    stages = {row["name"]: row["stages"] for row in found.technique["mining"]["after"]}
    assert stages["cascade"] == "gradflow:512,rgb:256,gradflow:128,rgb:64,gradflow:3"
    assert stages["cascade_rgb"] == "rgb:512,gradflow:256,rgb:3" and stages["rgb"] == "rgb:3"
    turns = {arm: turns[0]["stages"] for arm, turns in found.technique["arms"].items()}
    assert turns == {"infonce": "", "coclr": "gradflow:3", "cpr": "gradflow:64,rgb:32,gradflow:3"}


def test_the_encoders_of_all_views_are_kept_and_can_be_trained_on(job, effvl):
    folders = encoder_folders(job)
    assert set(folders) == {"rgb", "gradflow"}
    assert load_model(job / "checkpoint.safetensors")[1]["clips"]["view"] == "rgb"
    words = ("cpr-mine", "train", job, "--view", "flow", "--steps", 1, "--top-k", 2, "--num-stages", 1, "--out", "r")
    outcome = effvl(*words)
    assert outcome.code == 0, outcome.err
    assert "cascade: rgb:2" in outcome.err and set(encoder_folders(Path("r"))) == {"rgb", "gradflow"}


def test_a_resumed_job_has_the_same_figures(job, effvl, report):
    import shutil

    shutil.copytree(job, "cut")
    for name in ("report.json", "checkpoint.safetensors", "manifest.json"):
        Path("cut", name).unlink()
    before = report(job)
    outcome = effvl(*FEW, "--out", "cut")
    assert outcome.code == 0, outcome.err
    after = report("cut")
    assert after.resume.count == 1 and after.resume.steps_done_before == 5 * 8
    assert {name: m.value for name, m in before.metrics.items()} == {name: m.value for name, m in after.metrics.items()}
    assert before.technique["mining"] == after.technique["mining"]


@pytest.mark.slow
def test_views_take_turns_with_the_newest_encoder_of_the_other(effvl, report):
    words = (*FEW, "--arms", "cpr", "--order", "rgb,flow", "--num-cycles", 2, "--batch-size", 512)
    words = tuple(word for place, word in enumerate(words) if place not in (5, 6))  # the first --batch-size
    outcome = effvl(*words, "--out", "r")
    assert outcome.code == 0, outcome.err
    turns = report("r").technique["arms"]["cpr"]
    assert [turn["phase"] for turn in turns] == ["cpr-rgb-1", "cpr-flow-1", "cpr-rgb-2", "cpr-flow-2"]
    assert [turn["mined_with"] for turn in turns] == [["gradflow"], ["rgb"], ["gradflow"], ["rgb"]]
    metrics = report("r").metrics
    assert "r1_cpr_flow" in metrics and "r1_infonce" not in metrics
    assert metrics["mining_precision_flow"].value != metrics["mining_precision_flow_pre"].value


REFUSED = {
    "one view": (("--views", "rgb"), "--views"),
    "unknown order": (("--order", "heat"), "--order"),
    "an arm twice": (("--arms", "cpr,cpr"), "--arms"),
    "length": (("--steps", 3, "--epochs", 2), "--steps or --epochs"),
    "both schedules": (("--progressive", "1:5", "--top-k-schedule", "0:1"), "--progressive"),
    "share of steps": (("--self-drop", 1.5), "--self-drop"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(name, effvl):
    words, said = REFUSED[name]
    outcome = effvl("cpr-mine", *words, "--out", "r")
    assert outcome.code == 2 and said in outcome.error, outcome.err


def test_dry_run_lists_every_training(effvl):
    outcome = effvl("cpr-mine", "--dry-run")
    assert outcome.code == 0
    for part in ("InfoNCE rgb", "InfoNCE flow", "infonce rgb", "coclr rgb", "cpr rgb", "features"):
        assert part in outcome.out
