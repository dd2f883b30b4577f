"""Helpers of the tests that need processes of their own.

Most are forks of the tests' own process, which has imported everything: a new Python that imports torch, torchvision
and the rest costs 5 CPU seconds. Besides, a fork has what the test has patched. The few tests of what happens before
or during those imports start the real command.
"""

import importlib.abc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from effvl_cli.cli.app import main
from effvl_cli.core import signals
from tests.engines.conftest import little_beside, no_programs

SOON, LATE = 200.0, 400.0  # seconds


def environment() -> dict[str, str]:
    """Of a process that a test starts: with the cache and the home folder of the test."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


class Fork:
    """A process that ends with what a function returns as its exit code; what it prints is kept.

    Args:
        function: called in the new process.
        more: environment variables besides those of this process.
    """

    def __init__(self, function: Callable[[], int | None], more: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the object
        of_fork = multiprocessing.get_context("fork").Process
        self._process = of_fork(target=_in_fork, args=(function, more or {}, self._log.fileno()))
        self._process.start()

    @property
    def ended(self) -> bool:
        return self._process.exitcode is not None

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid
        os.kill(self._process.pid, number)

    def end(self, timeout: float) -> tuple[int | None, str]:
        """Wait for it: exit code and output. The code is None where it took longer, and was killed."""
        self._process.join(timeout)
        code = self._process.exitcode
        self._process.kill()
        self._process.join()
        self._log.seek(0)
        return code, self._log.read()


def _in_fork(function: Callable[[], int | None], more: dict[str, str], log: int) -> NoReturn:
    for standard in (1, 2):
        os.dup2(log, standard)
    sys.stdout, sys.stderr = (os.fdopen(standard, "w", buffering=1, closefd=False) for standard in (1, 2))
    os.environ |= more
    torch.set_num_threads(1)  # OpenMP's threads are not there after a fork
    try:
        sys.exit(function())
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def group(function: Callable[[int], int | None], processes: int) -> str:
    """Run a function of the rank in processes with the variables of torchrun; what they print, one after the other."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    forks = [
        Fork(partial(function, rank), {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    codes, outputs = zip(*[fork.end(LATE) for fork in forks], strict=True)
    output = "".join(outputs)
    assert codes == (0,) * processes, output
    return output


def run_each(lines: Sequence[Sequence[object]], processes: int, *prepare: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Run command lines one after another in a group of processes.

    Few passes are timed, and no programs written, as in the tests of engines. `prepare` patches more.
    """
    ports = [_free_port() for _ in lines]

    def each(rank: int) -> int:
        patch = pytest.MonkeyPatch()
        for change in (little_beside, no_programs, *prepare):
            change(patch)
        for port, line in zip(ports, lines, strict=True):
            os.environ["MASTER_PORT"] = str(port)
            if code := main([str(word) for word in line]):
                print("failed:", *line)
                return code
        return 0

    group(each, processes)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class _Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] == "effvl_cli":
            raise ModuleNotFoundError(fullname)


def run_without_effvl(program: str, folder: Path, *arguments: str) -> str:
    """What a program prints that runs in a folder where effvl_cli is not loaded and cannot be imported.

    effvl_cli registers nothing with torch that could be left behind; `test_rebuild.py` starts a Python of its own.
    """

    def elsewhere() -> None:
        os.chdir(folder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "effvl_cli"]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Blocked())
        sys.argv = ["program", *arguments]
        with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
            file.write(program)
            file.flush()
            runpy.run_path(file.name, run_name="__main__")
        assert not any(name.partition(".")[0] == "effvl_cli" for name in sys.modules)

    code, output = Fork(elsewhere).end(LATE)
    assert code == 0, output
    return output


def launched(*arguments: object, processes: int = 1) -> subprocess.Popen:
    """Start a real effvl command line, under torchrun for more than one process."""
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


def run(*arguments: object, timeout: float = LATE) -> str:
    """Run a real command line to its good end."""
    process = launched(*arguments)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


def stop_when(condition: Callable[[], bool], number: int, *arguments: object) -> tuple[int | None, str]:
    """Start a command line, send a signal once the condition holds, and return exit code and output."""

    def command() -> int:  # that of `effvl_cli.__main__`, once everything is imported
        signals.install()
        return main([str(word) for word in arguments])

    fork = Fork(command)
    try:
        _send(condition, lambda: fork.ended, lambda: fork.send(number))
        return fork.end(SOON)
    finally:
        fork.end(0)


def stop_launched_when(
    condition: Callable[[], bool], number: int, *arguments: object, processes: int = 1
) -> tuple[int, str]:
    """The same of a real command line."""
    process = launched(*arguments, processes=processes)
    try:
        _send(condition, lambda: process.poll() is not None, lambda: process.send_signal(number))
        output, _ = process.communicate(timeout=SOON)
    finally:
        process.kill()
    return process.returncode, output


def _send(condition: Callable[[], bool], ended: Callable[[], bool], send: Callable[[], None]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert not ended() and time.monotonic() < deadline, "no state to send the signal in"
        time.sleep(0.01)
    send()


def some(folder: Path, pattern: str, count: int = 1) -> Callable[[], bool]:
    """A condition: so many paths of that pattern are there."""
    return lambda: len(list(folder.glob(pattern))) >= count


KILL, TERM, USR1 = signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1
