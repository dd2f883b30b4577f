"""`effvl pretrain` by SimCLR, MoCo-v3 and DINO through the real command."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from effvl_cli.core import bench, loop
from effvl_cli.core.checkpoint import load_model
from effvl_cli.core.report import Metric
from effvl_cli.engines.pretrain import arm_training, invariance
from effvl_cli.models import network as networks

SMALL = ("pretrain", "--num-images", 64, "--num-bank", 48, "--batch-size", 8, "--log-every", 1, "--head-hidden", 32)
TWO_STAGES = ("--schedule", "0.5:patch=8,keep=0.5;1:keep=1")
SGD = ("--optimizer", "sgd", "--lr", 0.05)


@pytest.fixture(autouse=True)
def _few(few_images):
    pass


def checkpoint(folder, phase="train"):
    last = sorted(Path(folder, "checkpoints", phase).iterdir())[-1]
    state = torch.load(last / "state.pt", weights_only=True)
    return load_model(last / "model.safetensors")[0], state


def test_the_plain_command_compares_two_arms_at_one_budget(effvl, report, drawn):
    done = effvl(*SMALL, "--budget", 400, "--out", "run")
    assert done.code == 0, done.err
    found = report("run")
    wanted = ("knn20_accelerated", "knn20_baseline", "knn20_random_init", "knn20_raw_pixels", "linear_accelerated")
    more = ("linear_baseline", "flop_ratio", "images_per_s_ratio", "knn1_baseline", "knn200_accelerated", "knn20_gain")
    assert {*wanted, *more} <= set(found.metrics)
    assert found.metrics["knn20_baseline"].n == 48 and found.metrics["knn20_raw_pixels"].value > 0
    arms = found.technique["arms"]
    for arm in ("baseline", "accelerated"):
        assert 400 <= arms[arm]["budget"]["units_spent"] < 400 + 8 * 6
    stages = arms["accelerated"]["schedule"]
    assert [s["tokens_q"] for s in stages] == [10, 37] and [s["keep_k"] for s in stages] == [0.25, 1.0]
    samples = [s["samples"] for s in stages]
    units = sum(s["samples"] * s["units_per_sample"] for s in stages)
    assert found.metrics["flop_ratio"].value == pytest.approx(6 * sum(samples) / units)
    assert arms["baseline"]["cost"]["flop_ratio"] == 1
    pictures = {path.name: path.stat().st_size for path in Path("run/plots").iterdir()}
    assert set(pictures) == {"accuracy.png", "schedule.png", "views.png"} and min(pictures.values()) > 5000
    weights = networks.load(None, "run", default="", kind="backbone")
    assert weights.name == "vit:nano/4@24,mean"


@pytest.mark.parametrize("method", ["simclr", "mocov3", "dino"])
def test_six_steps_equal_three_and_three(effvl, method, monkeypatch):
    """Every tensor of the checkpoint, over a change of stage."""
    line = (*SMALL, "--method", method, *TWO_STAGES, "--budget", 100, "--no-baseline", "--save-every", 1)
    if method == "dino":
        line = (*line, "--prototypes", 16, "--local-crops", 1, "--drop-path", 0.2, "--weight-decay-end", 0.1)
    assert effvl(*line, "--out", "whole").code == 0
    original = loop._Loop._one_step

    def cut(self, stream):
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self, stream)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_one_step", cut)
        effvl(*line, "--out", "parts")
    done = effvl(*line, "--out", "parts")
    assert done.code == 0, done.err
    (one, one_state), (other, other_state) = checkpoint("whole"), checkpoint("parts")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    a, b = (s["optimizer"]["parts"][0]["state"] for s in (one_state, other_state))
    assert all(torch.equal(a[k][n], b[k][n]) for k in a for n in a[k])
    assert Path("whole/metrics.jsonl").read_bytes() == Path("parts/metrics.jsonl").read_bytes()
    patches = [
        s["patch"] for s in json.loads(Path("whole/report.json").read_text())["technique"]["arms"]["train"]["schedule"]
    ]
    assert patches == [8, 4]


def test_dry_run_shows_the_stages_and_runs_nothing(effvl, workdir):
    shown = effvl("pretrain", *TWO_STAGES, "--budget", "12k", "--dry-run").out
    assert (
        "12,000 units of 4,098,304 multiply-adds" in shown.replace("12,192", "12,000") or "units of 4,098,304" in shown
    )
    assert "MiB" in shown and not list(workdir.iterdir())


def test_epochs_are_a_budget_of_uncompressed_ones(effvl, image_folder, report):
    line = (*SMALL, "--data", f"folder:{image_folder}", "--model", "vit:nano/4@24", "--keep", 0.25)
    assert effvl(*line, "--epochs", 1, "--out", "run").code == 0
    arm = report("run").technique["arms"]["train"]
    pictures = report("run").data[0].num_samples
    assert pictures == 24
    assert arm["budget"]["units_planned"] == pictures * 6
    assert arm["samples"] > 3 * pictures  # keep 0.25 is nearly four times cheaper


def test_the_clock_of_measured_time_is_kept_for_a_resume(effvl, report, monkeypatch):
    calls = []
    monkeypatch.setattr(arm_training, "step_times", lambda trainer, c: calls.append(1) or dict.fromkeys(c, 6.0))
    line = (*SMALL, *TWO_STAGES, "--budget", 200, "--no-baseline", "--cost-model", "time", "--out", "run")
    assert effvl(*line).code == 0
    assert report("run").technique["arms"]["train"]["steps"] == 5  # 200 / (6 * 8), rounded up
    Path("run/report.json").unlink()
    assert effvl(*line).code == 0
    assert len(calls) == 1


def test_times_of_another_network_or_batch_are_not_believed(effvl, report, monkeypatch):
    """A stale costs.json once made a run of another model stop after one step and call itself completed."""
    calls = []
    monkeypatch.setattr(arm_training, "step_times", lambda trainer, c: calls.append(1) or dict.fromkeys(c, 6.0))
    line = (*SMALL, *TWO_STAGES, "--budget", 200, "--no-baseline", "--cost-model", "time")
    assert effvl(*line, "--out", "run").code == 0
    stale = json.loads(Path("run/costs.json").read_text())
    stale[0]["times"] = dict.fromkeys(stale[0]["times"], 1e6)
    for number, other in enumerate((("--precision", "bf16"), ("--model", "vit:nano/8@24,mean"), ("--head-out", 8))):
        Path(f"other{number}").mkdir()
        Path(f"other{number}/costs.json").write_text(json.dumps(stale))
        Path(f"other{number}/.lock").touch()
        assert effvl(*line, *other, "--out", f"other{number}").code == 0
        assert report(f"other{number}").technique["arms"]["train"]["steps"] >= 5
    assert len(calls) == 4
    assert effvl(*line, "--fresh", "--out", "run").code == 0  # nothing is left of the first run
    assert len(calls) == 5


def test_times_of_a_step_are_measured_beside_a_forward_pass(effvl, report, monkeypatch):
    def canned(arms, device, seconds):
        for work in arms.values():
            work()
        return {name: bench.Latency((2.0, 2.0) if name == "forward" else (6.0, 6.0)) for name in arms}

    monkeypatch.setattr(bench, "timed", canned)
    done = effvl(*SMALL, "--keep", 0.25, "--budget", 100, "--no-baseline", "--cost-model", "time", "--out", "run")
    assert done.code == 0, done.err
    costs = json.loads(Path("run/costs.json").read_text())
    assert len(costs) == 1 and list(costs[0]["times"].values()) == [3.0]
    assert report("run").technique["arms"]["train"]["steps"] == 5  # 100 / (3 * 8), rounded up


def test_workers_crop_alike_however_many_there_are(effvl, image_folder):
    line = (*SMALL, "--data", f"folder:{image_folder}", "--aug-device", "worker", *TWO_STAGES, "--budget", 100)
    assert effvl(*line, "--out", "none").code == 0
    assert effvl(*line, "--workers", 2, "--out", "two").code == 0
    one, other = (load_model(Path(name) / "checkpoint.safetensors")[0] for name in ("none", "two"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("device", ["batch", "worker"])
def test_a_patch_that_divides_no_view_snaps_it(effvl, image_folder, report, device):
    line = (*SMALL, "--data", f"folder:{image_folder}", "--aug-device", device, "--method", "dino", "--local-crops", 1)
    line = (*line, "--schedule", "0.5:patch=5;1:patch=4", "--budget", 200, "--prototypes", 16)
    refused = effvl(*line, "--out", "refused")
    assert refused.code == 2 and "stage 0: patch 5 does not divide views of 24 px" in refused.error
    assert "3, 4, 6, 8" in refused.error and "--size-policy snap" in refused.error
    done = effvl(*line, "--size-policy", "snap", "--out", "run")
    assert done.code == 0, done.err
    assert [s["tokens_q"] for s in report("run").technique["arms"]["train"]["schedule"]] == [26, 37]


def test_a_larger_vit_can_start_from_timms_weights(effvl, workdir):
    import timm
    from safetensors.torch import save_file

    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=24, patch_size=4, embed_dim=64, depth=2, num_heads=2, num_classes=0
    )
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, "timm.safetensors")
    line = (*SMALL, "--model", "vit:nano/4@24,learned", "--weights", "timm.safetensors", "--budget", 50)
    done = effvl(*line, "--no-baseline", "--out", "run")
    assert done.code == 0, done.err
    weights = load_model(Path("run/checkpoint.safetensors"))[0]
    theirs.load_state_dict(weights)


def test_the_backbone_is_taken_by_other_commands(effvl, report, few_digits):
    assert effvl(*SMALL, "--budget", 50, "--no-baseline", "--out", "run").code == 0
    line = ("pretrain", "--method", "supervised", "--weights", "run", "--data", "digits", "--epochs", 5, "--lr", 4e-3)
    done = effvl(*line, "--out", "tuned")
    assert done.code == 0, done.err
    assert report("tuned").model.name == "vit:nano/4@24,mean" and report("tuned").metrics["top1"].value > 0.2
    done = effvl("pretrain", "eval", "run", "--data", "digits", "--num-bank", 300, "--sgd-epochs", 1, "--out", "other")
    assert done.code == 0, done.err
    found = report("other")
    assert {"knn1", "knn20", "knn200", "linear", "linear_sgd", "knn20_raw_pixels"} <= set(found.metrics)
    assert found.technique["trained_on"] == "shape-captions" and found.metrics["linear"].value > 0.5


def test_search_measures_along_a_run_and_its_schedule_trains(effvl, report):
    assert effvl(*SMALL, "--schedule", "none", "--budget", 400, "--out", "base").code == 0
    before = checkpoint("base")[0]
    Path("c.yaml").write_text("- {patch: 8}\n- {patch: 4, keep_q: 0.5}\n")
    line = ("pretrain", "search", "base", "--num-grad-batches", 5, "--candidates", "c.yaml", "--early-stop", 0)
    done = effvl(*line, "--out", "search")
    assert done.code == 0, done.err
    found = report("search").technique
    assert list(found["estimates"]) == ["0.0", "0.05", "0.25", "0.5", "0.75", "1.0"]
    for estimates in found["estimates"].values():
        assert set(estimates) == {"full", "patch 8, keep 1", "patch 4, keep 0.5"}
        assert estimates["full"]["bias2"] == 0 and estimates["full"]["ca_mse"] == pytest.approx(1, abs=1e-6)
        assert all(e["ca_mse"] == pytest.approx(e["bias2"] + e["rel_cost"] * e["var"]) for e in estimates.values())
    costs = {name: e["rel_cost"] for name, e in found["estimates"]["0.5"].items()}
    images = 5 * 8 * 6
    assert found["budget"]["search_units"] == pytest.approx(images * 6 * sum(costs.values()))
    schedule = yaml.safe_load(Path("search/schedule.yaml").read_text())
    assert schedule["stages"][-1] == {"until": 1.0, "patch": 4, "keep_q": 1.0, "keep_k": 1.0}
    assert all(torch.equal(before[key], value) for key, value in checkpoint("base")[0].items())
    done = effvl(*SMALL, "--schedule", "search/schedule.yaml", "--budget", 300, "--out", "again")
    assert done.code == 0, done.err


def test_search_without_a_run_trains_a_pilot(effvl, report):
    line = ("pretrain", "search", "--num-images", 64, "--batch-size", 8, "--num-grad-batches", 4, "--budget", "3k")
    done = effvl(*line, "--along", "pilot", "--grad-scope", "last-block", "--out", "search")
    assert done.code == 0, done.err
    assert Path("search/checkpoints/pilot").is_dir() and report("search").metrics["search_units"].value > 300


def test_the_other_criterion_and_metric_from_one_pilot(effvl, report):
    line = ("pretrain", "search", "--num-images", 64, "--batch-size", 8, "--num-grad-batches", 9, "--budget", "4k")
    line = (
        *line,
        "--candidate-patches",
        "4,8,12",
        "--candidate-keeps",
        "1,0.5",
        "--measure-at",
        "0.05,0.5,1",
        "--along",
        "pilot",
    )
    done = effvl(*line, "--metric", "adam", "--criterion", "progress", "--out", "search")
    assert done.code == 0, done.err
    found = report("search")
    assert list(found.technique["estimates"]) == ["0.05", "0.5", "1.0"]
    for estimates in found.technique["estimates"].values():
        assert len(estimates) == 6
        assert estimates["full"]["bias2"] == 0 and estimates["full"]["ca_mse"] == pytest.approx(1, abs=1e-6)
        assert "left_out" not in estimates["full"]
    rows = yaml.safe_load(Path("search/config.yaml").read_text())["config"]
    assert (rows["metric"], rows["pilot_schedule" if "pilot_schedule" in rows else "pilot-schedule"]) == (
        "adam",
        "mixed",
    )
    most = (
        9
        * 8
        * len(found.technique["estimates"])
        * 6
        * sum(e["rel_cost"] for e in found.technique["estimates"]["0.5"].values())
    )
    assert found.technique["budget"]["search_units"] < most + 450  # some were given up on the way; the pilot is 400
    refused = effvl(*line, "--optimizer", "sgd", "--metric", "adam", "--out", "other")
    assert refused.code == 4 and "--metric adam needs the second moments" in refused.error


def test_a_mixed_pilot_takes_every_candidate_in_turn():
    from effvl_cli.config.pretrain import SearchConfig
    from effvl_cli.engines.pretrain.schedules import pilot_schedule
    from effvl_cli.techniques.pretrain.schedule import Clock, Compression

    class Costs:
        def sample(self, compression):
            return 6.0 / (compression.patch / 4) ** 2

    candidates = {"full": Compression(4), "patch 8": Compression(8)}
    schedule = pilot_schedule(SearchConfig(batch_size=10), Costs(), candidates, 310.0)
    clock = Clock(schedule, [10 * Costs().sample(stage.compression) for stage in schedule.stages], None)
    assert [clock.stage(step).compression.patch for step in range(clock.steps)] == [4, 8, 4, 8, 4, 8, 4, 8, 4]
    assert clock.units == 5 * 60 + 4 * 15  # the first to reach 310


def test_a_snapshot_is_measured_without_being_changed(effvl, monkeypatch):
    """Batch norms and DINO's centre too."""
    from effvl_cli.engines.pretrain import search

    seen = []
    original = search.measure

    def watched(bench, candidates, steps, progress):
        found = original(bench, candidates, steps, progress)
        state = bench.costs.method.state_dict()
        seen.append(all(torch.equal(state[key], value) for key, value in steps[0].model.items()))
        return found

    monkeypatch.setattr(search, "measure", watched)
    Path("c.yaml").write_text("- {patch: 8}\n- {patch: 4, keep_q: 0.5}\n")
    line = ("pretrain", "search", "--method", "dino", "--prototypes", 16, "--head-hidden", 32, "--num-images", 64)
    few = ("--batch-size", 8, "--num-grad-batches", 4, "--budget", "1k", "--candidates", "c.yaml")
    done = effvl(*line, *few, "--out", "search")
    assert done.code == 0, done.err
    assert seen == [True] * len(seen) and len(seen) >= 4


def test_a_collapse_is_told(effvl, report, monkeypatch):
    from effvl_cli.engines.pretrain import task

    monkeypatch.setattr(task, "embedding_std", lambda rows: torch.tensor(0.01))
    assert effvl(*SMALL, "--budget", 800, "--no-baseline", "--out", "run").code == 0
    assert any("collapse" in text for text in report("run").warnings)


def test_a_run_that_is_not_finite_names_step_and_images(effvl, monkeypatch):
    import effvl_cli.techniques.pretrain.simclr as simclr

    monkeypatch.setattr(simclr, "nt_xent", lambda a, b, t: (a + b).sum() * float("nan"))
    done = effvl(*SMALL, "--budget", 2000, "--no-baseline", "--out", "run")
    assert done.code == 6
    assert "3 steps in a row (step 2, images " in done.error and "--temperature" in done.error


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--keep 0", 2, ["--keep is 0"]),
        ("--keep 1.2", 2, ["--keep is 1.2"]),
        ("--keep nan", 2, ["--keep is nan"]),
        ("--patch 5", 2, ["patch 5 does not divide views of 24 px", "3, 4, 6, 8"]),
        ("--keep 0.5 --schedule none", 2, ["--schedule and --keep"]),
        ("--schedule nowhere.yaml", 2, ["nowhere.yaml", "no such file"]),
        ("--schedule 0.5:patch=8", 2, ["the last stage ends at 1"]),
        ("--schedule constant:kep=0.5", 2, ["kep=0.5"]),
        ("--schedule constant:keep=2", 2, ["stage 0: keep_q is 2"]),
        ("--budget 5x", 2, ["--budget is '5x'", "550k"]),
        ("--budget 1k --epochs 2", 2, ["length is given twice"]),
        ("--data digits", 2, ["length is missing", "--budget"]),
        ("--batch-size 1", 2, ["--batch-size is 1", "at least 2"]),
        ("--accumulate 2", 2, ["--accumulate", "clip, supervised"]),
        ("--method simclr --symmetric-loss", 2, ["--symmetric-loss belongs to --method mocov3"]),
        ("--method clip --steps 2 --budget 5k", 2, ["--budget belongs to --method simclr"]),
        ("--model tiny:resnet", 4, ["tiny:resnet is a classifier"]),
        ("--model vit:smal/16@224", 2, ["'smal'", "'small'"]),
        ("--model vit:small/15@224", 2, ["224 px are not whole patches of 15 px"]),
        ("--image-size 25", 2, ["25 px are not whole patches of 4 px"]),
        ("search nowhere", 4, ["nowhere"]),
        ("search --measure-at 0.1,0.5", 2, ["--measure-at is '0.1,0.5'", "0.05,0.25"]),
        ("search --candidate-patches 7", 2, ["patch 7 does not divide"]),
        ("search --num-grad-batches 2", 2, ["--num-grad-batches is 2", "at least 4"]),
        ("search --method clip", 2, ["--method is clip"]),
        ("eval nowhere", 4, ["nowhere"]),
    ],
)
def test_one_line_for_what_is_wrong(effvl, line, code, words):
    done = effvl("pretrain", *line.split())
    assert done.code == code, done.err
    for word in words:
        assert word in done.error


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(3.4, "3.40x fewer multiply-adds per image"), (0.54, "1.85x as many multiply-adds per image")],
)
def test_a_costlier_arm_is_not_called_cheaper(ratio, said):
    found = SimpleNamespace(metrics={"flop_ratio": Metric(value=ratio), "images_per_s_ratio": Metric(value=0.5)})
    assert invariance.ratio_notes(found) == [said, "0.50x the images per second"]
