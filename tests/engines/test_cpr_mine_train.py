"""The trainings of cpr-mine through the real command, on moving shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from effvl_cli.core import loop
from effvl_cli.core.checkpoint import StepFolders, load_model
from effvl_cli.core.errors import DataError
from effvl_cli.engines.cpr_mine.listed_positives import read_positives
from tests.engines import few_clips
from tests.kills import assert_same_result, run_with_kills

SMALL = ("--batch-size", 32, "--queue-size", 64, "--log-every", 1)
SCRATCH = ("cpr-mine", "train", "--mine-with", "none", *SMALL, "--steps", 3)
MINING = ("cpr-mine", "train", "--view", "rgb", *SMALL, "--top-k", 2, "--num-stages", 3)
CPR = (*MINING, "--steps", 4)


@pytest.fixture(scope="module")
def flow(shared):
    """An encoder of flow, trained for three steps."""
    return shared.run("cpr-flow", *SCRATCH, "--view", "gradflow")


@pytest.fixture(scope="module")
def rgb(shared):
    return shared.run("cpr-rgb", *SCRATCH, "--view", "rgb")


def of(rgb, flow):
    return ("--weights", f"rgb={rgb},flow={flow}", "--mine-with", "flow")


def test_without_mining_it_is_infonce_from_scratch(rgb, report, records):
    found = report(rgb)
    assert found.technique["turns"][0]["mined"] == [] and found.technique["turns"][0]["steps"] == 3
    assert found.model.name == "tiny3d" and found.model.source == "random"
    steps = [row for row in records(rgb) if row["event"] == "train"]
    assert [row["queue_fill"] for row in steps] == [1.0, 1.0, 1.0] and "mined_rows" not in steps[0]
    assert 3.0 < found.metrics["loss"].value < 7.0  # ln(65) = 4.2 where all are alike; the temperature is 0.1
    manifest = load_model(rgb / "checkpoint.safetensors")[1]
    assert manifest["kind"] == "model" and manifest["clips"]["view"] == "rgb" and manifest["clips"]["frames"] == 8
    assert load_model(rgb / "encoders" / "rgb" / "checkpoint.safetensors")[1]["clips"] == manifest["clips"]


def test_positives_are_mined_with_a_frozen_encoder_whose_weights_stay(rgb, flow, effvl, report, records):
    outcome = effvl(*CPR, *of(rgb, flow), "--out", "r")
    assert outcome.code == 0, outcome.err
    assert "cascade: flow" in outcome.err or "cascade: gradflow:32,rgb:16,gradflow:2" in outcome.err
    turn = report("r").technique["turns"][0]
    assert turn["mined_with"] == ["gradflow"] and turn["stages"] == "gradflow:32,rgb:16,gradflow:2"
    assert [row["k"] for row in turn["mined"]] == [2] and turn["mined"][0]["mined_rows"] == 1.0
    before, after = (load_file(Path(folder, "checkpoint.safetensors")) for folder in (rgb, "r"))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    frozen = load_file(Path("r/encoders/flow/checkpoint.safetensors"))
    given = load_file(flow / "checkpoint.safetensors")
    assert all(torch.equal(frozen[key], given[key]) for key in given)
    assert all(0 <= row["mined_precision"] <= 1 for row in records("r") if row["event"] == "train")


def test_the_state_of_a_training_holds_the_queues_and_not_the_partners(rgb, flow, effvl):
    assert effvl(*CPR, *of(rgb, flow), "--out", "r").code == 0
    saved = StepFolders(Path("r/checkpoints/train")).load(4)
    heads = {key.split(".")[0] for key in saved.model}
    assert heads == {"encoder", "key_encoder", "queues"}
    assert int(saved.model["queues.place"]) == (64 + 4 * 32) % 64 and int(saved.model["queues.written"]) == 64 + 4 * 32
    assert set(saved.state["task"]["partners"]) == {"gradflow"}


def test_three_steps_and_three_more_are_six(rgb, flow, effvl):
    """Queues included: oracle 14."""
    line = (*MINING, *of(rgb, flow), "--save-every", 1, "--lr-decay", "step", "--lr-milestones", 1)  # a constant rate
    assert effvl(*line, "--steps", 6, "--out", "whole").code == 0
    assert effvl(*line, "--steps", 3, "--out", "parts").code == 0
    outcome = effvl(*line, "--steps", 6, "--out", "parts")
    assert outcome.code == 0 and "continuing from step 3" in outcome.err and "filling" not in outcome.err
    whole, parts = (StepFolders(Path(name, "checkpoints", "train")).load(6) for name in ("whole", "parts"))
    assert whole.model.keys() == parts.model.keys() and "queues.bank_0" in whole.model
    assert all(torch.equal(value, parts.model[key]) for key, value in whole.model.items())
    assert whole.state["task"] == parts.state["task"]


KILLS = {
    "a saved step": (r"train/step-\d+", 1),
    "each write": (".*", 5),
}


@pytest.mark.parametrize("name", ["a saved step", pytest.param("each write", marks=pytest.mark.slow)])
def test_a_run_killed_after_its_writes_ends_with_the_same_bits(name, rgb, flow, effvl, monkeypatch):
    after, least = KILLS[name]
    line = [str(word) for word in (*MINING, *of(rgb, flow), "--save-every", 1, "--steps", 2)]
    assert effvl(*line, "--out", "whole").code == 0
    assert run_with_kills(monkeypatch, [*line, "--out", "parts"], after) >= least
    assert_same_result(Path("whole"), Path("parts"))
    whole, parts = (StepFolders(Path(name, "checkpoints", "train")).load(2).model for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_other_frozen_weights_are_refused_when_a_run_goes_on(rgb, flow, effvl, shared, monkeypatch):
    assert effvl(*CPR, *of(rgb, flow), "--out", "r").code == 0
    other = shared.run("cpr-flow-2", *SCRATCH, "--view", "gradflow", "--seed", 1)
    outcome = effvl(*CPR, *of(rgb, other), "--out", "r")
    assert outcome.code == 2 and "other options" in outcome.error


def test_progressive_k_is_told_apart(rgb, flow, effvl, report):
    schedule = ("--epochs", 2, "--batch-size", 512, "--top-k-schedule", "0:1,1:3")
    outcome = effvl("cpr-mine", "train", "--view", "rgb", "--queue-size", 64, *schedule, *of(rgb, flow), "--out", "r")
    assert outcome.code == 0, outcome.err
    assert [row["k"] for row in report("r").technique["turns"][0]["mined"]] == [1, 3]
    assert "from epoch 1 on" in outcome.err and "largest valid number" in outcome.err  # 7 stages of 64


def test_a_gradient_that_is_not_finite_leaves_the_queues_as_they_were(rgb, flow, effvl, monkeypatch):
    from effvl_cli.engines.cpr_mine import clip_training

    step, spoilt = clip_training.CascadeTask.train_step, []

    def train_step(self, batch, number):
        found = step(self, batch, number)
        before = int(self.method.queues.written)
        if not spoilt:
            spoilt.append(before)
            return loop.StepOutput(found.loss * float("nan"), found.logs)
        spoilt.append(before)
        return found

    monkeypatch.setattr(clip_training.CascadeTask, "train_step", train_step)
    outcome = effvl(*CPR, *of(rgb, flow), "--out", "r")
    assert outcome.code == 0 and "gradient not finite" in outcome.err
    assert spoilt == [64, 64, 96, 128]  # the first step filled them, and so did the second


REFUSED = {
    "no source of positives": (("--view", "rgb"), 2, "--mine-with"),
    "partner without weights": (("--mine-with", "gradflow"), 4, "frozen encoder of gradflow"),
    "missing file": (("--mine-with", "none", "--weights", "rgb=gone.pt"), 4, "gone.pt"),
    "another view's weights": (("--mine-with", "none", "--weights", "flow=gone.pt"), 2, "no view here"),
    "weights without a view": (("--mine-with", "none", "--weights", "a.pt"), 2, "VIEW=FILE"),
    "unknown view": (("--mine-with", "none", "--view", "heat"), 2, "heat"),
    "itself": (("--mine-with", "rgb"), 2, "both name rgb"),
    "no length": (("--mine-with", "none", "--data", "video:x.csv"), 2, "--epochs or --steps"),
    "accumulate": (("--mine-with", "none", "--accumulate", 2), 2, "--accumulate"),
    "schedule": (("--mine-with", "none", "--top-k-schedule", "1:5"), 2, "--top-k-schedule"),
    "progressive": (("--mine-with", "none", "--progressive", "5:1"), 2, "--progressive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused_with_the_option_that_says_it(name, effvl):
    words, code, said = REFUSED[name]
    outcome = effvl("cpr-mine", "train", *words, "--out", "r")
    assert outcome.code == code and said in outcome.error, outcome.err


CASCADES = {
    "queue below k": (("--queue-size", 4, "--top-k", 5), "E_STAGE_SIZE"),
    "growing stages": (("--cascade", "rgb:8,gradflow:16,rgb"), "E_STAGE_SIZE"),
    "first stage above the queue": (("--queue-size", 16, "--cascade", "flow:17,rgb:8,flow"), "keeps 17 of 16 items"),
    "unknown stage": (("--cascade", "heat:8,rgb"), "E_CASCADE"),
    "unknown main view": (("--main", "heat"), "--main"),
}


@pytest.mark.parametrize("name", CASCADES)
def test_what_makes_no_cascade_is_refused_before_a_step(name, rgb, flow, effvl):
    words, said = CASCADES[name]
    outcome = effvl("cpr-mine", "train", *of(rgb, flow), *words, "--out", "r")
    assert outcome.code == 2 and said in outcome.error, outcome.err


def test_weights_of_another_network_or_view_are_refused(rgb, flow, effvl):
    outcome = effvl(*CPR, "--mine-with", "flow", "--weights", f"flow={rgb}")
    assert outcome.code == 4
    outcome = effvl(*CPR, *of(rgb, flow), "--model", "s3d")
    assert outcome.code in (0, 4)


def test_dry_run_says_what_it_will_cost(effvl):
    outcome = effvl(*SCRATCH, "--view", "rgb", "--dry-run")
    assert outcome.code == 0 and "3 steps of 32 clips" in outcome.out and "1,024 training videos" in outcome.out


class Clips:
    name, ids = "clips", ["a", "b", "c", "d"]

    def __len__(self):
        return 4


def write(path, **arrays):
    np.savez(path, **arrays)


def test_listed_positives_are_found_by_name_whatever_their_order():
    ids = np.array(["d", "b", "a"])
    indices, valid = np.array([[1, 2], [0, -1], [2, 0]]), np.array([[1, 1], [1, 0], [0, 1]], dtype=bool)
    write("p.npz", indices=indices, valid=valid, ids=ids, scores=np.zeros((3, 2)))
    found = read_positives("p.npz", Clips())
    assert found.tolist() == [[-1, 3], [3, -1], [-1, -1], [1, 0]]  # a, b, c (not in the file), d


@pytest.mark.parametrize("fault", ["missing", "text", "pickle", "no ids", "unknown clip", "outside", "one-dimensional"])
def test_files_of_positives_that_do_not_fit_are_refused(fault):
    good = {"indices": np.zeros((2, 1), np.int64), "valid": np.ones((2, 1), bool), "ids": np.array(["a", "b"])}
    bad = {
        "pickle": {"ids": np.array(["a", {}], dtype=object)},
        "unknown clip": {"ids": np.array(["a", "z"])},
        "outside": {"indices": np.full((2, 1), 2)},
        "one-dimensional": {"indices": np.zeros(2, np.int64)},
    }
    arrays = {**good, **bad.get(fault, {})}
    if fault == "no ids":
        del arrays["ids"]
    if fault == "text":
        Path("p.npz").write_text("no archive")
    elif fault != "missing":
        write("p.npz", **arrays)
    with pytest.raises(DataError, match=r"p\.npz"):
        read_positives("p.npz", Clips())


@pytest.fixture
def listed(rgb, effvl):
    """positives.npz that `mine` has written for the training clips."""
    assert effvl("cpr-mine", "embed", rgb, "--out", "embedded", "--windows", "center").code == 0
    outcome = effvl("cpr-mine", "mine", "embedded", "--num-stages", 1, "--main", "rgb", "--top-k", 3, "--out", "mined")
    assert outcome.code == 0, outcome.err
    return "mined/positives.npz"


def test_a_file_of_positives_takes_the_place_of_mining(rgb, listed, effvl, report):
    words = ("--weights", f"rgb={rgb}", "--positives", listed)
    outcome = effvl("cpr-mine", "train", *SMALL, "--steps", 3, *words, "--out", "r")
    assert outcome.code == 0, outcome.err
    [mined] = report("r").technique["turns"][0]["mined"]
    assert mined["k"] == 3 and 0 < mined["mined_rows"] <= 1 and 0 < mined["mined_precision"] <= 1
    outcome = effvl("cpr-mine", "train", *words, "--mine-with", "gradflow", "--out", "r")
    assert outcome.code == 2 and "--positives" in outcome.error


def test_a_training_takes_other_videos_for_many_bad_ones_on_request(effvl, monkeypatch, report):
    few_clips.register(monkeypatch)
    line = ("cpr-mine", "train", "--mine-with", "none", "--model", "tiny3d", "--frames", 6, "--image-size", 20)
    line = (*line, "--data", "few-clips:count=16,bad=4", "--batch-size", 8, "--queue-size", 8, "--steps", 4)
    outcome = effvl(*line, "--out", "skip")
    assert outcome.code == 3 and "Mend or remove them, or give --on-bad skip-all" in outcome.error
    outcome = effvl(*line, "--on-bad", "skip-all", "--out", "all")
    assert outcome.code == 0, outcome.err
    assert report("all").technique["turns"][0]["steps"] == 4


def test_half_precision_trains_weights_and_queues_in_full(effvl, rgb, report, records):
    outcome = effvl(*SCRATCH, "--view", "rgb", "--precision", "bf16", "--out", "half")
    assert outcome.code == 0, outcome.err
    ours, full = (load_file(Path(folder, "checkpoint.safetensors")) for folder in ("half", rgb))
    assert {value.dtype for value in ours.values()} == {torch.float32, torch.int64}
    assert any(not torch.equal(ours[key], full[key]) for key in ours)
    losses = [[row["loss"] for row in records(folder) if row["event"] == "train"] for folder in ("half", rgb)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]
    saved = StepFolders(Path("half/checkpoints/train")).load(3).model
    assert {value.dtype for key, value in saved.items() if key.startswith("queues.") and value.ndim == 2} == {
        torch.float32
    }
