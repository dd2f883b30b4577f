"""Processor time of a job on a machine that others use too, beside that on an idle one: `make bench-threads`.

A training of a small network by the real command, on all cores: alone, and beside one endless loop a core. With --spin
also as OpenMP has it by default, whose threads spin while they wait: that can take ten minutes. Exits 1 if load costs
more than what is asked. Wants a machine that nothing else uses; the load average is printed.
"""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

ASKED = 1.5  # times the processor time of the idle machine
LINE = (
    *("pretrain", "--method", "supervised", "--data", "digits", "--model", "cifar-resnet:26,width=8"),
    *("--epochs", "2", "--quiet", "--fresh"),
)
LIMIT = 600  # seconds, after which a job is given up


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run the body beside endless loops."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measured(policy: str, folder: str) -> tuple[float, float]:
    """Processor and wall seconds of one job; those until the limit where it takes longer."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("NUM_THREADS")}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    job = subprocess.Popen([sys.executable, "-m", "effvl_cli", *LINE, "--out", f"{folder}/run"], env=environment)
    try:
        if job.wait(LIMIT):
            raise SystemExit("the job failed")
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.monotonic() - began


def main() -> int:
    """Print both policies, alone and under load."""
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load average {os.getloadavg()[0]:.1f}; processor seconds (wall seconds)")
    print(f"{'':22} {'alone':>16} {'loaded':>16} {'ratio':>7}")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        policies = {"as effvl sets it": "", **({"spinning": "ACTIVE"} if "--spin" in sys.argv else {})}
        for name, policy in policies.items():
            alone = measured(policy, folder)
            with busy(cores):
                loaded = measured(policy, folder)
            ratio = loaded[0] / alone[0]
            asked = "" if policy else f"asked {ASKED:.1f}   {'PASS' if ratio <= ASKED else 'FAIL'}"
            good &= bool(policy) or ratio <= ASKED
            texts = [f"{cpu:7.1f} ({wall:.1f})" for cpu, wall in (alone, loaded)]
            print(f"{name:22} {texts[0]:>16} {texts[1]:>16} {ratio:6.2f}x   {asked}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
