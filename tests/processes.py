"""Helpers of the tests that need processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def environment() -> dict[str, str]:
    """Of a process that a test starts: with the cache and the home folder of the test."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*arguments: object, processes: int = 1) -> subprocess.Popen:
    """Start an effvl command line, under torchrun for more than one process."""
    launcher = [sys.executable, "-m", "effvl_cli"]
    if processes > 1:
        launcher = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *("-m", "effvl_cli"),
        ]
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: object, processes: int = 1, code: int = 0, timeout: float = 400) -> str:
    """Run to the end and check the exit code."""
    process = start(*arguments, processes=processes)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output
    return output


def stop_when(condition: Callable[[], bool], number: int, *arguments: object, processes: int = 1) -> tuple[int, str]:
    """Start, send a signal once the condition holds, and return exit code and output."""
    process = start(*arguments, processes=processes)
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"ended before the signal: {process.communicate()[0]}")
        time.sleep(0.01)
    process.send_signal(number)
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def some(folder: Path, pattern: str, count: int = 1) -> Callable[[], bool]:
    """A condition: so many paths of that pattern are there."""
    return lambda: len(list(folder.glob(pattern))) >= count


KILL, TERM, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1
