"""The batch scripts on a real SLURM of one node: `make test-slurm`, after `make slurm-up` has made one."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from effvl_cli.core.checkpoint import load_model

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not shutil.which("sbatch"), reason="no SLURM here: make slurm-up"),
]
SCRIPTS = Path(__file__).parents[2] / "recipes" / "slurm"
TRAINING = ("pretrain", "--method", "clip", "--batch-size", "8", "--save-every", "1", "--workers", "0", "--seed", "3")
ONE = ("--gpus-per-task=0", "--cpus-per-task=1")


@pytest.fixture
def effvl_file(workdir, tmp_path, monkeypatch):
    """An executable that is this checkout's effvl."""
    path = tmp_path / "effvl"
    root = Path(__file__).parents[2]
    path.write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -m effvl_cli "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("EFFVL", str(path))
    return path


def submit(*words):
    return subprocess.run(
        ["sbatch", "--parsable", *map(str, words)], check=True, capture_output=True, text=True
    ).stdout.strip()


def field(job, name):
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"\b{name}=(\S*)", shown)


def wait_for(condition, what, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}\n{logs()}"
        time.sleep(0.3)


def logs():
    return "\n".join(f"{path}:\n{path.read_text()}" for path in Path().glob("slurm-*.out"))


def ended(job):
    return lambda: all(state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT") for state in field(job, "JobState"))


def saved(folder):
    return lambda: any(Path(folder).glob("checkpoints/train/step-*"))


def go_on(job):
    """A job that was queued again waits for two minutes; not here."""
    wait_for(lambda: field(job, "JobState") == ["PENDING"], "not queued again")
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def weights(folder):
    return load_model(Path(folder) / "checkpoint.safetensors")[0]


@pytest.mark.parametrize("to", ["--batch", "steps"])
def test_two_tasks_save_are_queued_again_and_end_with_the_same_weights(effvl_file, report, to):
    line = (*TRAINING, "--steps", "60")
    whole = submit(*ONE, "--ntasks=2", SCRIPTS / "srun.sbatch", *line, "--out", "whole")
    wait_for(ended(whole), "did not end")
    parts = submit(*ONE, "--ntasks=2", SCRIPTS / "srun.sbatch", *line, "--out", "parts")
    wait_for(saved("parts"), "no checkpoint")
    subprocess.run(["scancel", "--signal=USR1", *(["--batch"] if to == "--batch" else []), parts], check=True)
    go_on(parts)
    wait_for(ended(parts), "did not end")
    assert field(parts, "JobState") == ["COMPLETED"] and field(parts, "Restarts") == ["1"], logs()
    done = report("parts")
    assert done.resume.count == 1 and done.resume.steps_done_before >= 1
    assert done.environment["distributed"]["launcher"] == "srun"
    one, other = weights("whole"), weights("parts")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_cancelled_job_has_saved_and_stays_cancelled(effvl_file, report):
    job = submit(*ONE, SCRIPTS / "srun.sbatch", *TRAINING, "--steps", "4000", "--out", "run")
    wait_for(saved("run"), "no checkpoint")
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: Path("run/report.json").is_file(), "no report")
    wait_for(ended(job), "did not end")
    assert field(job, "JobState") == ["CANCELLED"] and report("run").status == "preempted"


def test_the_time_limit_queues_again(effvl_file, report):
    options = (*ONE, "--time=1", "--signal=B:USR1@45")
    job = submit(*options, SCRIPTS / "srun.sbatch", *TRAINING, "--steps", "100000", "--out", "run")
    wait_for(lambda: field(job, "Restarts") == ["1"], "not queued again", 150)
    subprocess.run(["scancel", job], check=True)
    assert report("run").status == "preempted"


def test_an_array_runs_each_arm_once(effvl_file, report):
    Path("s.yaml").write_text(
        "effvl: 1\ncommand: pretrain\ndescription: four runs\n"
        "config: {method: supervised, model: 'tiny:resnet', data: digits, batch-size: 16, workers: 0}\n"
        "arms: {short: {steps: 1}, long: {steps: 2}}\nseeds: [0, 1]\n"
    )
    job = submit(*ONE, "--array=5-6", SCRIPTS / "sweep-array.sbatch", "s.yaml", "--out", "o")
    wait_for(ended(job), "did not end")
    assert field(job, "ExitCode") == ["0:0", "0:0"], logs()
    assert sorted(path.parent.name for path in Path("o").glob("*/report.json")) == [
        *("long-seed0", "long-seed1", "short-seed0", "short-seed1"),
    ]
    assert all(report(path.parent).status == "completed" for path in Path("o").glob("*/report.json"))


def test_each_task_has_a_gpu_of_its_own(workdir, tmp_path, monkeypatch):
    stub = tmp_path / "effvl"
    stub.write_text('#!/bin/sh\necho "$SLURM_LOCALID $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS" > "task$SLURM_PROCID"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("EFFVL", str(stub))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = submit("--ntasks=2", "--cpus-per-task=1", SCRIPTS / "srun.sbatch", "x")
    wait_for(ended(job), "did not end")
    assert field(job, "JobState") == ["COMPLETED"], logs()
    tasks = [Path(f"task{rank}").read_text().split() for rank in range(2)]
    assert {task[1] for task in tasks} == {"0", "1"} and all(task[2] == "1" for task in tasks)
