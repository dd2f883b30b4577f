"""The batch scripts: exit codes, signals and what they ask for, with stubs for effvl, srun and scontrol."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "recipes" / "slurm"
NAMES = ("srun.sbatch", "sweep-array.sbatch")
STUBS = {
    # Like srun: options, then a command; USR1 goes on to it. (The real one kills its tasks on TERM.)
    "srun": 'echo "srun $*" >>"$LOG"\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": 'echo "scontrol $*" >>"$LOG"\n',
    "effvl": """echo "effvl $* threads=$OMP_NUM_THREADS" >>"$LOG"
trap 'echo USR1 >>"$LOG"; trap "" USR1; sleep 0.3; exit "$CODE"' USR1
trap 'echo TERM >>"$LOG"; exit 1' TERM
[ "$WAIT" = 1 ] || exit "$CODE"
touch "$LOG.started"
for _ in $(seq 400); do sleep 0.05; done
exit 9
""",
}
ARRAY = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_STEP": "2"}


@pytest.fixture
def script(workdir, tmp_path):
    """Start a script beside the stubs; `log` says what was called."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (stubs / name).chmod(0o755)
    log = tmp_path / "log"

    def start(name, *words, code=0, wait=False, **more):
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "OMP"))},
            **ARRAY,
            **{"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "3"},
            **{"PATH": f"{stubs}:{os.environ['PATH']}", "LOG": str(log), "CODE": str(code), "WAIT": str(int(wait))},
            **more,
        }
        process = subprocess.Popen(
            ["bash", SCRIPTS / name, *words], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        while wait and not Path(f"{log}.started").exists():
            assert process.poll() is None
            time.sleep(0.01)
        return process

    start.log = lambda: log.read_text().splitlines()
    start.stubs = stubs
    return start


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_code_of_effvl_is_the_jobs_and_75_queues_again(script, name, code):
    process = script(name, "word", code=code)
    assert process.wait(30) == code
    assert ("scontrol requeue 17" in script.log()) == (code == 75)


@pytest.mark.parametrize("name", NAMES)
def test_before_the_time_limit_it_saves_and_is_queued_again(script, name):
    process = script(name, "word", code=75, wait=True)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)  # again, while it saves
    assert process.wait(30) == 75
    assert script.log()[-2:] == ["USR1", "scontrol requeue 17"]


@pytest.mark.parametrize("name", NAMES)
def test_a_cancelled_job_saves_and_is_not_queued_again(script, name):
    process = script(name, "word", code=75, wait=True)
    process.terminate()
    assert process.wait(30) == 75
    assert script.log()[-1] == "USR1"  # not TERM, on which srun kills its tasks


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_after_a_signal_keeps_its_code(script, name):
    process = script(name, "word", code=4, wait=True)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(30) == 4
    assert script.log()[-1] == "USR1"


@pytest.mark.parametrize("name", NAMES)
def test_what_the_job_has_is_asked_for_and_handed_on(script, name):
    asked = [line for line in (SCRIPTS / name).read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --gpus-per-task=1" in asked and "#SBATCH --signal=B:USR1@120" in asked
    assert script(name, "word").wait(30) == 0
    called, ran = script.log()
    assert called.startswith("srun --cpus-per-task=3 ") and ran.endswith("threads=3")
    assert script(name, "word", OMP_NUM_THREADS="1").wait(30) == 0
    assert script.log()[-1].endswith("threads=1")


def test_the_words_arrive_as_they_were_given(script):
    assert script("srun.sbatch", "prune-tokens", "--templates", "a {} here").wait(30) == 0
    assert script.log()[-1] == "effvl prune-tokens --templates a {} here threads=3"


def test_a_task_of_an_array_has_its_shard_whatever_numbers_the_array_has(script):
    assert script("sweep-array.sbatch", "s.yaml", "--out", "o").wait(30) == 0
    assert script.log()[-1] == "effvl sweep s.yaml --out o --shard 2/3 threads=3"  # 6 of 2, 4, 6


@pytest.mark.parametrize("name", NAMES)
def test_effvl_is_the_one_on_path_or_the_one_given(script, name, workdir):
    elsewhere = workdir / "other"
    (script.stubs / "effvl").rename(elsewhere)
    assert script(name, "word", EFFVL=str(elsewhere)).wait(30) == 0
    process = script(name, "word", EFFVL="nowhere/effvl")
    assert process.wait(30) == 127
    assert "error: no nowhere/effvl" in process.stderr.read()
