"""Methods, goals and policies of `effvl continual`."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from effvl_cli.engines.continual import phase_training, rates
from effvl_cli.engines.continual.state import State

TINY = {
    **{"--model": "smallcnn:width=2", "--num-tasks": 2, "--epochs": 1, "--batch-size": 32, "--shots": 32},
    **{"--prune-ratios": "0.3,0.6", "--prune-epochs": 1, "--prune-every": 1, "--retrain-epochs": 1, "--grow-max": 1},
}


def tiny(*words: object) -> list[object]:
    """A command line of two tiny tasks, with other or further options."""
    options = TINY | dict(zip(words[::2], words[1::2], strict=True))
    return ["continual", *(word for option in options.items() for word in option)]


def lone(*words: object) -> list[object]:
    """The same without controls."""
    return tiny("--controls", "none", *words)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_controls_beside_and_an_arm_of_its_own_share_their_networks(here, report):
    here(*tiny(), "--out", "cpg")
    done = report("cpg")
    figures = {name: metric.value for name, metric in done.metrics.items()}
    assert {"avg_acc", "individual_avg_acc", "individual_matched_avg_acc", "finetune_avg_acc"} <= set(figures)
    assert figures["bwt"] == 0.0 and figures["finetune_bwt"] is not None
    assert {"expansion_factor", "total_bytes_factor", "vs_individual_bytes", "redundancy"} <= set(figures)
    first, second = done.technique["tasks"]
    # alone, the first task is learned in the same order from the same weights: its goal is what it reaches
    assert first["attempts"][0]["val"] == first["goal"]["value"] and first["goal"]["source"] == "individual"
    alone = [row["individual_test_acc"] for row in (first, second)]
    assert figures["individual_avg_acc"] == sum(alone) / 2
    moved = [row["test_acc"] - row["individual_test_acc"] for row in (first, second)]
    assert figures["transfer_vs_individual"] == pytest.approx(sum(moved) / 2)
    assert first["epochs_used"] == 1 + sum(row["ratio"] <= first["ratio_chosen"] for row in first["sweep"])
    outcome = here(*tiny(), "--method", "individual", "--out", "individual")
    assert outcome.err.count("taken from the cache") == 2
    other = report("individual")
    assert [row["test_acc"] for row in other.technique["tasks"]] == alone and other.metrics["bwt"].value == 0.0
    assert other.metrics["expansion_factor"].value == 2 and not Path("individual/state").exists()
    here(*tiny(), "--method", "finetune", "--out", "finetune")
    assert report("finetune").technique["R"] == done.technique["controls"]["finetune"]


def test_packnet_releases_alike_and_pae_uses_every_older_weight(here, report):
    here(*lone(), "--method", "packnet", "--packnet-ratio", 0.5, "--out", "packnet")
    tasks = report("packnet").technique["tasks"]
    assert [row["ratio_chosen"] for row in tasks] == [0.5, 0.5] and tasks[1]["picked_fraction"] == 1
    assert [row["own_fraction"] for row in tasks] == pytest.approx([0.5, 0.25], abs=0.01)
    assert tasks[0]["goal"]["value"] is None and tasks[0]["retrain"] is tasks[1]["retrain"] is None
    here(*lone(), "--method", "pae", "--goal", "value", "--goal-value", 0.01, "--out", "pae")
    tasks = report("pae").technique["tasks"]
    assert tasks[1]["picked_fraction"] == 1 and tasks[1]["retrain"] is None
    assert [row["ratio_chosen"] for row in tasks] == [0.6, 0.6]


def test_picks_depend_on_the_scores(here, report):
    fast = ("--pick-lr", 0.02, "--pick-stop-at", 1, "--retrain-epochs", 0, "--goal", "none", "--min-ratio", 0.6)
    here(*lone(*fast), "--out", "run")
    tasks = report("run").technique["tasks"]
    assert tasks[0]["picked_fraction"] is None and 0 < tasks[1]["picked_fraction"] < 1
    assert tasks[1]["nnz"] < tasks[0]["nnz"] + round(0.4 * 0.6 * 936) + 20


def test_what_happens_where_a_goal_is_out_of_reach(here, effvl, report):
    goal = ("--goal", "value", "--goal-value", 1, "--lr", 1e-5, "--prune-lr", 1e-5)
    outcome = effvl(*lone(*goal), "--on-unreachable", "fail", "--out", "fail")
    assert outcome.code == 8 and "'zero-one' reaches" in outcome.error and "at width 1" in outcome.error
    assert "its goal is 1.0000" in outcome.error
    here(*lone(*goal), "--out", "share")
    tasks = report("share").technique["tasks"]
    assert all("W-UNREACHABLE" in row["flags"] for row in tasks)
    assert tasks[0]["ratio_chosen"] == 0.6 and tasks[1]["ratio_chosen"] == 0  # 1 - round(1 / 2, 1) is mandatory; 0
    here(*lone(*goal), "--on-unreachable", "accept", "--goal-slack", 0.02, "--out", "accept")
    tasks = report("accept").technique["tasks"]
    assert tasks[0]["goal"]["value"] == tasks[0]["attempts"][-1]["val"] < 1


def test_a_task_without_free_weights_picks_from_older_ones(here, effvl, report):
    here(*lone("--num-tasks", 1, "--goal", "none"), "--out", "full")
    assert report("full").metrics["free_fraction"].value == 0 and report("full").metrics["bwt"].value is None
    line = ("continual", "add-task", "full", "--task", "b", "--classes", "two,three")
    outcome = effvl(*line, "--on-exhausted", "fail", "--out", "fail")
    assert outcome.code == 8 and "0 % of the weights free at width 1" in outcome.error
    assert "--grow-max" in outcome.error
    here(*line, "--out", "added")
    row = report("added").technique["tasks"][1]
    assert row["flags"] == ["W-EXHAUSTED"] and row["own_fraction"] == 0 and row["sweep"] == []
    assert [task.name for task in State.read(Path("full/state")).tasks] == ["zero-one", "b"]
    here(*line[:4], "c", *line[5:], "--grow-max", 2, "--goal", "value", "--goal-value", 1, "--out", "grown")
    row = report("grown").technique["tasks"][2]
    assert [a["width"] for a in row["attempts"]] == [1, 1.5, 2] and row["own_fraction"] > 0.3
    assert report("grown").metrics["tensor_digest_equal"].value == 1


def test_rates_of_the_scores():
    config = SimpleNamespace(pick_decay_at=0.5, pick_decay=0.2, pick_stop_at=0.7)
    shares = (0.0, 0.49, 0.5, 0.69, 0.7)
    assert [rates.picking(config, has_own=True)(t) for t in shares] == [1.0, 1.0, 0.2, 0.2, 0.0]
    assert [rates.picking(config, has_own=False)(t) for t in shares] == [1.0, 1.0, 0.2, 0.2, 0.2]


def test_goals_from_a_file_and_from_earlier_networks(here, effvl, report):
    Path("goals.json").write_text(json.dumps({"zero-one": 0.02}))
    outcome = effvl(*lone(), "--goal", "file", "--goal-file", "goals.json", "--out", "r")
    assert outcome.code == 2 and "no accuracy of task 'two-three'" in outcome.error
    Path("goals.json").write_text(json.dumps({"zero-one": 0.02, "two-three": 65}))
    outcome = effvl(*lone(), "--goal", "file", "--goal-file", "goals.json", "--out", "s")
    assert outcome.code == 2 and "0.65" in outcome.error
    here(*lone(), "--goal", "finetune-max", "--num-goal-repeats", 2, "--out", "run")
    goals = [row["goal"] for row in report("run").technique["tasks"]]
    assert [goal["source"] for goal in goals] == ["finetune-max"] * 2 and 0.3 < goals[1]["value"] <= 1
    line = ("continual", "add-task", "run", "--task", "x", "--classes", "four,five", "--out", "x")
    outcome = effvl(*line)
    assert outcome.code == 2 and "whose data are not here" in outcome.error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prune-ratios", "0.5,0.3"), "Give rising numbers"),
        (("--pick-threshold", 0.02), "Give a threshold below it"),
        (("--grow-max", 0.5), "grow-max"),
        (("--grow-step", 0), "grow-step"),
        (("--goal", "value", "--goal-value", 93), "0.93"),
        (("--goal", "value"), "without --goal-value"),
        (("--min-ratio", 0.7), "largest of --prune-ratios"),
        (("--prune-ramp-epochs", 2), "as long as its ramp"),
        (("--controls", "none,finetune"), "Leave none out"),
        (("--num-tasks", 9), "there are 5"),
    ],
)
def test_options_that_cannot_be_are_refused(words, said, effvl):
    outcome = effvl(*lone(*words), "--out", "r")
    assert outcome.code == 2 and said in outcome.error


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("timm:mobilenetv3_small_050", "--model timm:mobilenetv3_small_050 cannot grow"),
        ("timm:vit_pwee_patch16_reg1_gap_256", "is a VisionTransformer"),  # blocks of another kind
        ("timm:vit_dwee_patch16_reg1_gap_256", "is invalid for input of size"),  # attention that knows one width
    ],
)
def test_a_network_that_cannot_grow_is_refused_before_it_is_trained(model, reason, effvl, monkeypatch):
    def trained(*words, **more):
        raise AssertionError("trained")

    monkeypatch.setattr(phase_training, "fit", trained)
    outcome = effvl(*lone("--model", model, "--grow-max", 1.5), "--out", "r")
    assert outcome.code == 4 and "E-GROW-UNSUPPORTED" in outcome.error and reason in outcome.error, outcome.err


def test_decisions_on_the_test_images_are_marked(here, report):
    words = ("--num-tasks", 1, "--goal", "none", "--select-on", "test", "--precision", "bf16")
    here(*lone(*words), "--out", "run")
    done = report("run")
    assert done.technique["selection_split"] == "test" and any("W-SELECT-ON-TEST" in text for text in done.warnings)
    kinds = {str(value.dtype) for value in State.read(Path("run/state")).base.values()}
    assert kinds == {"torch.float32"}


def test_rates_over_a_phase_and_over_its_figures():
    history = [{"v": value} for value in (0.5, 0.6, 0.6, 0.5, 0.7, 0.6, 0.6, 0.6, 0.6)]
    assert [rates.falls(history[:k], "v", 2) for k in range(len(history) + 1)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]
    from effvl_cli.config.continual import ContinualConfig

    config = ContinualConfig(data="cifar10")
    curve = rates.learning(config)
    assert [round(curve(t), 6) for t in (0, 0.49, 0.5, 0.79, 0.8)] == [1, 1, 0.1, 0.1, 0.01]
    own, picking = rates.picking(config, has_own=True), rates.picking(config, has_own=False)
    assert [own(t) for t in (0, 0.49, 0.5, 0.69, 0.7)] == [1, 1, 0.2, 0.2, 0]
    assert [picking(t) for t in (0, 0.5, 0.7, 0.99)] == [1, 0.2, 0.2, 0.2]
