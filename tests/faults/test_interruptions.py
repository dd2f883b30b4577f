"""Kills and stop requests, in processes of their own."""

import shutil
from pathlib import Path

import pytest
import torch

from effvl_cli.core.checkpoint import load_model
from tests.processes import KILL, TERM, USR1, some, stop_launched_when, stop_when


@pytest.fixture
def many_images(image_folder):
    """96 training images: three shards of rankings."""
    for name in ("red_thing", "blue_thing"):
        folder = image_folder / "train" / name
        for number in range(12, 48):
            shutil.copy(folder / f"img{number % 12}.jpg", folder / f"img{number}.jpg")
    return image_folder


@pytest.mark.slow
def test_killed_while_ranking_predicting_and_tuning_it_ends_with_the_same_figures(
    many_images, workdir, tmp_path, here, report
):
    line = (
        *("prune-tokens", "--data", f"folder:{many_images}", "--shots", 48, "--num-golden", 4),
        *("--predictor-epochs", 40, "--tune-epochs", 8, "--tune-batch-size", 8, "--save-every", 5, "--log-every", 1),
    )
    here(*line, "--out", "whole", "--cache-dir", tmp_path / "whole")
    parts = (*line, "--out", "parts", "--cache-dir", tmp_path / "parts")
    shards = some(tmp_path / "parts" / "rankings", "*/*.safetensors")
    code, _ = stop_when(shards, KILL, *parts)
    assert code == -KILL and not (workdir / "parts" / "report.json").exists()
    checkpoints = workdir / "parts" / "checkpoints"
    stop_when(some(checkpoints, "predictor/step-*"), KILL, *parts)
    assert not (checkpoints / "tuning").exists()
    stop_when(some(checkpoints, "tuning/step-*"), KILL, *parts)
    assert "tuning: continuing from step" in here(*parts).err
    whole, done = report("whole"), report("parts")
    assert done.resume.count == 3 and whole.resume.count == 0
    assert done.resume.steps_done_before >= 96 + 40 + 5  # all rankings, all of the predictor, some of the tuning
    assert done.technique["ranking"]["searched_now"] == 0 < whole.technique["ranking"]["searched_now"]
    for name, metric in whole.metrics.items():
        assert name.startswith("speedup") or done.metrics[name] == metric, name
    one, other = (load_model(workdir / name / "checkpoint.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    texts = [(workdir / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert texts[0] == texts[1]


def test_a_stop_request_saves_and_leaves_with_75(workdir, here, report, image_folder):
    """By SIGUSR1; SIGTERM is sent below."""
    line = ("pretrain", "--method", "clip", "--data", f"folder:{image_folder}", "--model", "tiny:clip-32px")
    line = (*line, "--batch-size", 8, "--steps", 40, "--save-every", 1, "--out", "run")
    code, output = stop_when(some(workdir / "run" / "checkpoints", "train/step-*"), USR1, *line)
    assert code == 75, output
    assert "continues from what is saved" in output and report("run").status == "preempted"
    resumed = report("run").technique
    assert resumed == {}
    here(*line)
    done = report("run")
    assert done.status == "completed" and done.resume.count == 1 and 1 <= done.resume.steps_done_before < 40


def test_a_stop_request_while_torch_is_imported_is_not_lost(workdir):
    line = ("pretrain", "--method", "clip", "--batch-size", 8, "--steps", 4000, "--out", "run")

    def importing():
        children = [child for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()]
        return any("libtorch" in Path(f"/proc/{child}/maps").read_text() for child in children)

    code, output = stop_launched_when(importing, TERM, *line)
    assert code == 75, output


def test_two_processes_in_one_folder(workdir, effvl):
    line = ("pretrain", "--method", "clip", "--batch-size", 8, "--steps", 4000, "--save-every", 1, "--out", "run")

    def second():
        if not list(workdir.glob("run/checkpoints/train/step-*")):
            return False
        outcome = effvl(*line)
        assert outcome.code == 2 and "another process is working in run" in outcome.error
        return True

    code, _ = stop_when(second, TERM, *line)
    assert code == 75
