"""Helpers of the tests that need processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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


_EACH = """
import importlib, json, os, sys
sys.path.append(sys.argv[2])
import pytest
from effvl_cli.cli.app import main
from tests.engines.conftest import little_beside, no_programs
patch = pytest.MonkeyPatch()
little_beside(patch)
no_programs(patch)
for name in sys.argv[3:]:
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)(patch)
for port, line in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    if main(line):
        sys.exit("failed: " + " ".join(line))
"""


def run_each(lines: Sequence[Sequence[object]], processes: int, *prepare: str, timeout: float = 400) -> None:
    """Run command lines one after another in a group of processes, which import everything once.

    As launched by hand: torchrun itself would import torch once more. It is what `start` uses. Few passes are timed,
    and no programs written, as in the tests of engines. `prepare` names functions "module:function" that change more.
    """
    ports = [_free_port() for _ in lines]
    todo = json.dumps([(port, [str(word) for word in line]) for port, line in zip(ports, lines, strict=True)])
    group = []
    with tempfile.TemporaryFile("w+") as log:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            place |= {"MASTER_ADDR": "127.0.0.1"}
            command = [sys.executable, "-c", _EACH, todo, str(Path(__file__).parents[1]), *prepare]
            group.append(subprocess.Popen(command, env=environment() | place, stdout=log, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(timeout) for process in group]
        finally:
            for process in group:
                process.kill()
        log.seek(0)
        assert codes == [0] * processes, log.read()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


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
