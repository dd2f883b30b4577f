"""`effvl pretrain search`: averaged states, a training that is measured as it goes, trials ahead."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.core.checkpoint import StepFolders, load_model
from effvl_cli.core.optim import RateCurve
from effvl_cli.engines.pretrain import gradients, trials
from effvl_cli.engines.pretrain.compressions import candidates_of, with_batches
from effvl_cli.engines.pretrain.preview import Trainee
from effvl_cli.engines.pretrain.probes import Probe
from effvl_cli.engines.pretrain.schedules import parse_schedule
from effvl_cli.models import network as networks
from effvl_cli.techniques.pretrain import stage_choice
from effvl_cli.techniques.pretrain.gradient_error import GradientError
from effvl_cli.techniques.pretrain.schedule import Compression
from tests.kills import assert_same_result, run_with_kills

FEW = ("--num-images", 64, "--batch-size", 8, "--log-every", 1, "--head-hidden", 32)
SEARCH = ("pretrain", "search", *FEW, "--num-grad-batches", 4, "--num-bank", 48, "--budget", "2k")
LOOP = ("--along", "accelerated", "--candidates", "c.yaml")


@pytest.fixture(autouse=True)
def _few(few_images):
    Path("c.yaml").write_text("- {patch: 8}\n- {patch: 4, keep_q: 0.5}\n")


@pytest.fixture
def alike(monkeypatch):
    """All compressions are nearly equal."""
    monkeypatch.setattr(stage_choice, "NEARLY", 1e9)


def units_of(steps_of_8, patch):
    """Units of so many steps of the nano ViT at 24 px; patches of 8 px have 10 tokens instead of 37."""
    return steps_of_8 * 8 * 6 * {4: 1.0, 8: 1_119_232 / 4_098_304}[patch]


# --- averaged states -------------------------------------------------------------------------------------------------


def test_an_averaged_gradient_is_the_mean_of_those_of_neighbouring_states(effvl, report, monkeypatch):
    each, added, loaded = [], [], []
    one, add, load = gradients._gradient, GradientError.add, gradients.load_state

    def watched(*given):
        each.append(one(*given))
        return each[-1].clone()

    def adding(self, name, gradient, full):
        added.append(gradient)
        add(self, name, gradient, full)

    monkeypatch.setattr(gradients, "_gradient", watched)
    monkeypatch.setattr(GradientError, "add", adding)
    monkeypatch.setattr(gradients, "load_state", lambda m, step, c: loaded.append(step.step) or load(m, step, c))
    line = (*SEARCH, "--candidates", "c.yaml", "--measure-at", 0.5, "--early-stop", 0, "--average", 2)
    done = effvl(*line, "--along", "pilot", "--pilot-schedule", "none", "--out", "search")
    assert done.code == 0, done.err
    assert len(added) == 4 * 3 and len(each) == 2 * len(added)
    for row, pair in zip(added, zip(each[::2], each[1::2], strict=True), strict=True):
        assert torch.allclose(row, (pair[0] + pair[1]) / 2, atol=1e-7)
        assert not torch.allclose(pair[0], pair[1])
    assert loaded == [3, *[3, 2] * len(added)]  # the pilot of 200 units has five steps of 48: half are spent after 3
    found = report("search")
    costs = sum(e["rel_cost"] for e in found.technique["estimates"]["0.5"].values())
    assert found.technique["budget"]["search_units"] == pytest.approx(5 * 48 + 2 * 4 * 48 * costs)
    assert json.loads(Path("search/gradient_error.json").read_text())["averaged"] == 2


def test_states_of_a_run_are_averaged_where_it_has_kept_them(effvl):
    base = ("pretrain", *FEW, "--num-bank", 48, "--budget", "2k", "--schedule", "none", "--keep-neighbours", 2)
    assert effvl(*base, "--out", "base").code == 0
    line = (*SEARCH[:2], "base", *SEARCH[2:], "--candidates", "c.yaml", "--measure-at", 0.25)
    assert effvl(*line, "--average", 2, "--out", "two").code == 0
    refused = effvl(*line, "--average", 3, "--out", "three")
    assert refused.code == 3
    assert "keeps 2 of the 3 training states before t = 0.25" in refused.error
    assert "--keep-neighbours 3" in refused.error


def test_adams_metric_takes_the_second_moments_of_the_state(effvl, monkeypatch):
    scales = []
    plain = gradients._scale
    monkeypatch.setattr(gradients, "_scale", lambda *given: scales.append(plain(*given)) or scales[-1])
    line = (*SEARCH, "--candidates", "c.yaml", "--measure-at", 0.5, "--metric", "adam", "--grad-scope", "all")
    assert effvl(*line, "--along", "pilot", "--pilot-schedule", "none", "--out", "search").code == 0
    [scale] = scales
    rows = StepFolders(Path("search/checkpoints/pilot")).load(3).state["optimizer"]["parts"][0]["state"].values()
    by_hand = [((row["exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-8).rsqrt().flatten() for row in rows]
    assert all(row["step"] == 3 for row in rows)
    assert torch.allclose(scale.sort().values, torch.cat(by_hand).sort().values, rtol=1e-5)


# --- measured as it goes ---------------------------------------------------------------------------------------------


def test_the_measured_training_is_that_of_its_schedule(effvl, report):
    """Bit for bit, though it was measured on the way."""
    line = (*SEARCH, *LOOP, "--measure-at", "0.25,0.5,1")
    done = effvl(*line, "--pilot-schedule", "none", "--average", 2, "--out", "loop")
    assert done.code == 0, done.err
    found = report("loop")
    assert found.resume.steps_done_before == 0  # it only went on
    assert list(found.technique["chosen"]) == ["0.25", "0.5"]  # what is chosen at the end would not be used
    schedule = yaml.safe_load(Path("loop/schedule.yaml").read_text())
    assert (schedule["base"], schedule["stages"][-1]["until"]) == ({"image_size": 24, "patch": 4}, 1.0)
    line = ("pretrain", *FEW, "--num-bank", 48, "--budget", "2k", "--no-baseline", "--schedule", "loop/schedule.yaml")
    assert effvl(*line, "--out", "again").code == 0
    one, other = (load_model(Path(name, "checkpoint.safetensors"))[0] for name in ("loop", "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    arm = report("again").technique["arms"]["train"]
    own = found.technique["arms"]["train"]
    assert (own["steps"], own["budget"]) == (arm["steps"], arm["budget"])
    costs = sum(e["rel_cost"] for e in found.technique["estimates"]["0.5"].values())
    assert found.metrics["search_units"].value == pytest.approx(2 * 2 * 4 * 48 * costs)  # the training is kept
    assert effvl("pretrain", "eval", "loop", "--data", "digits", "--num-bank", 48, "--out", "judged").code == 0


def test_a_mixed_start_is_written_as_the_first_choice(effvl, report):
    done = effvl(*SEARCH, *LOOP, "--measure-at", 0.25, "--final-full", 0, "--out", "loop")
    assert done.code == 0, done.err
    found = report("loop").technique
    [row] = yaml.safe_load(Path("loop/schedule.yaml").read_text())["stages"]
    strategies = json.loads(Path("loop/gradient_error.json").read_text())["strategies"]
    chosen = strategies[found["chosen"]["0.25"]]
    assert {key: row[key] for key in chosen} == chosen and row["until"] == 1
    assert 2000 <= found["arms"]["train"]["budget"]["units_spent"] < 2048
    kept = StepFolders(Path("loop/checkpoints/train"))
    shares = [kept.load(step).state["task"]["t"] for step in kept.steps()]
    assert 0.25 <= shares[2] < 0.25 + 48 / 2000  # turns of full, patch 8 and keep 0.5 until there


# --- trials ahead ----------------------------------------------------------------------------------------------------


def test_a_look_ahead_takes_the_best_on_validation_pictures_and_is_charged(effvl, report, alike, monkeypatch):
    weights, plans = [], {}
    judge, fit = Probe.knn20, trials.loop.fit

    def judging(self, module):
        weights.append(module.blocks[0].attn.qkv.weight.detach().clone())
        return judge(self, module)

    def fitting(task, optimizers, batches, run, plan):
        if plan.phase.startswith("look-ahead"):
            rates = [plan.rate(step) for step in range(plan.steps)]
            plans[plan.phase] = (task.clock.t(0), task.clock.stage(0).compression.patch, rates, task.first)
        return fit(task, optimizers, batches, run, plan)

    monkeypatch.setattr(Probe, "knn20", judging)
    monkeypatch.setattr(trials.loop, "fit", fitting)
    line = (*SEARCH, "--candidate-patches", "4,8", "--candidate-keeps", 1, "--measure-at", "0.5,1", "--early-stop", 0)
    line = (*line, "--order", "free", "--along", "pilot")
    done = effvl(*line, "--pilot-schedule", "none", "--lookahead", 2, "--lookahead-share", 0.1, "--out", "search")
    assert done.code == 0, done.err
    state = StepFolders(Path("search/checkpoints/pilot")).load(3).model["backbone.blocks.0.attn.qkv.weight"]
    assert len(weights) == 2
    assert not torch.equal(weights[0], weights[1]) and not any(torch.equal(state, found) for found in weights)
    curve = RateCurve(warmup=0.05)
    start, patch, rates, first = plans["look-ahead-0.5-1"]
    assert (start, patch, len(rates)) == (0.5, 8, 16)
    assert rates == pytest.approx([curve(0.5 + step * units_of(1, 8) / 2000) for step in range(16)])
    end = 0.5 + units_of(16, 8) / 2000
    tail = plans["look-ahead-0.5-1-tail0"]
    assert (tail[0], tail[1], tail[3]) == (pytest.approx(end), 4, first + 16)
    assert tail[2] == pytest.approx(
        [curve(end), curve(end + 48 / 2000) / 2]
    )  # it falls to nothing behind the last step
    found = report("search")
    [(t, [scores])] = found.technique["lookahead"].items()  # the end is uncompressed: nothing is tried there
    assert t == "0.5" and set(scores) == {"full", "patch 8, keep 1"}
    best = "full" if scores["full"] > scores["patch 8, keep 1"] else "patch 8, keep 1"  # of equal ones the cheaper
    assert found.technique["chosen"]["0.5"] == best
    assert "20-NN on validation pictures after a look-ahead from t = 0.5, %: patch 8, keep 1 " in done.out
    known = json.loads(Path("search/checkpoints/phases.json").read_text())["values"]
    charged = {name: value["units"] for name, value in known.items() if name.startswith("look-ahead")}
    tail = units_of(math.ceil(0.25 * 200 / 48), 4)
    pictures = 48 + 40  # the bank and the validation pictures
    assert charged == {
        "look-ahead at t = 0.5: full, round 0": pytest.approx(units_of(math.ceil(200 / 48), 4) + tail + pictures),
        "look-ahead at t = 0.5: patch 8, keep 1, round 0": pytest.approx(
            units_of(math.ceil(200 / units_of(1, 8)), 8) + tail + pictures
        ),
    }
    gradients_cost = 2 * 4 * units_of(1, 4) + 2 * 4 * units_of(1, 8)
    assert found.metrics["search_units"].value == pytest.approx(5 * 48 + gradients_cost + sum(charged.values()))
    assert not list(Path("search/checkpoints").glob("look-ahead*"))
    assert "look-ahead" not in Path("search/metrics.jsonl").read_text()


def test_wherever_it_is_killed_it_ends_with_the_same_choices_and_weights(effvl, report, alike, monkeypatch):
    line = (*SEARCH, *LOOP, "--measure-at", 0.5, "--lookahead", 2, "--lookahead-share", 0.02)
    assert effvl(*line, "--out", "whole").code == 0
    late = StepFolders(Path("whole/checkpoints/train")).steps()[-2]  # behind the measurement
    writes = rf"phases\.json|look-ahead.*/step-.*|train/step-{late:08d}"
    killed = run_with_kills(monkeypatch, [str(word) for word in (*line, "--out", "parts")], after=writes)
    assert killed >= 6
    assert_same_result(Path("whole"), Path("parts"))
    assert report("parts").resume.count == killed and report("whole").resume.count == 0


# --- what it may cost ------------------------------------------------------------------------------------------------


def test_as_many_batches_as_the_share_pays():
    config = SearchConfig(batch_size=8, candidates="c.yaml", measure_at=(0.5, 0.75), average=3, search_share=0.3)
    costs = Trainee(config, 1).costs
    candidates = candidates_of(config, costs)
    batch = 2 * 3 * (units_of(1, 4) + units_of(1, 8) + 8 * costs.sample(candidates["patch 4, keep 0.5"]))

    def batches(budget, **changes):
        return with_batches(dataclasses.replace(config, **changes), costs, candidates, budget).num_grad_batches

    assert batches(7.01 * batch / 0.3) == 7 and batches(6.99 * batch / 0.3) == 6
    assert batches(batch) == 4 and batches(1e9) == 32
    assert batches(1e9, num_grad_batches=5) == 5
    # the pilot is paid first
    assert batches(7.01 * batch / 0.2, pilot_budget=0.1) == 7 and batches(6.99 * batch / 0.2, pilot_budget=0.1) == 6


def test_without_a_run_it_measures_along_the_accelerated_training(effvl, report):
    line = [word for word in SEARCH if word not in ("--num-grad-batches", 4)]
    done = effvl(*line, "--candidates", "c.yaml", "--measure-at", 0.5, "--out", "loop")
    assert done.code == 0, done.err
    found = report("loop")
    assert set(found.technique["arms"]) == {"train"} and found.technique["num_batches"] == 4
    [warning] = [text for text in found.warnings if "--search-share" in text]
    most = 4 * (units_of(1, 4) * 1.5 + units_of(1, 8))  # half of the patches cost half, and CLS
    assert f"--search-share is 0.15, and the fewest batches cost up to {most / 2000:.2g} of the budget" in warning


# --- transfer and refusals -------------------------------------------------------------------------------------------


def test_a_schedule_fits_a_network_of_other_patches(tmp_path):
    """Patches are those of the network that `base` names: what transfers is the share of the patches."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "base: {image_size: 24, patch: 4}\nstages: [{until: 0.5, patch: 6, keep_q: 0.5}, {until: 1, patch: 4}]\n"
    )
    shape = networks.load("vit:tiny/8@48", "none", default="", kind="backbone", seed=0).module.shape
    found = parse_schedule(str(path), "simclr", shape)
    assert [stage.compression for stage in found.stages] == [Compression(12, 0.5, 0.5), Compression(8)]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--average 0", 2, ["--average is 0"]),
        ("--lookahead 1", 2, ["--lookahead is 1", "2 to 8"]),
        ("--lookahead 9", 2, ["--lookahead is 9"]),
        ("--lookahead-share 0", 2, ["--lookahead-share is 0"]),
        ("--along accelerated --pilot-budget 0.1", 2, ["--pilot-budget and --along accelerated"]),
        ("--along accelerated --measure-at 0,1", 2, ["--measure-at is '0,1'", "between 0 and"]),
        ("--along accelerated --measure-at 0.75 --final-full 0.25", 2, ["--measure-at is '0.75'", "0.75"]),
        ("--along run", 2, ["--along"]),
    ],
)
def test_odd_values_are_refused(options, code, words, effvl):
    done = effvl("pretrain", "search", *options.split())
    assert done.code == code and all(word in done.error for word in words), done.error


def test_pictures_without_classes_cannot_judge(effvl, image_folder):
    line = (*SEARCH, "--data", f"images:{image_folder}/train", "--lookahead", 2)
    refused = effvl(*line, "--out", "search")
    assert refused.code == 2 and "--lookahead is 2" in refused.error and "no classes" in refused.error


def test_a_start_in_steps_does_not_fit_a_training_in_shares(effvl):
    Path("s.yaml").write_text("unit: steps\nstages: [{until: 9, patch: 8}]\n")
    refused = effvl(*SEARCH, *LOOP, "--pilot-schedule", "s.yaml", "--out", "loop")
    assert refused.code == 2 and "--pilot-schedule s.yaml counts steps" in refused.error
