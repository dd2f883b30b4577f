"""Requests to stop: the first one counts, and the second Ctrl-C ends the process."""

import signal
import subprocess
import sys

import pytest

from effvl_cli.core import signals

PROGRAM = """
import os, signal, sys
from effvl_cli.core import signals
signals.install(); signals.install()
for number in {numbers}:
    os.kill(os.getpid(), number)
print(int(signals.requested()), 'torch' in sys.modules)
"""


@pytest.mark.parametrize(
    ("numbers", "code", "shown"),
    [
        ([], 0, "0 False"),
        ([signal.SIGTERM], 0, f"{signal.SIGTERM:d} False"),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], 0, f"{signal.SIGUSR1:d} False"),
        ([signal.SIGTERM, signal.SIGINT], 0, f"{signal.SIGTERM:d} False"),
        ([signal.SIGINT, signal.SIGTERM], 0, f"{signal.SIGINT:d} False"),
        ([signal.SIGINT, signal.SIGTERM, signal.SIGINT], 130, ""),
        ([signal.SIGINT, signal.SIGINT], 130, ""),
    ],
)
def test_the_first_request_counts_and_a_second_interrupt_ends_it(numbers, code, shown):
    program = PROGRAM.format(numbers=[int(number) for number in numbers])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (code, shown)
    said = "error: interrupted twice: ended at once, what was not saved yet is lost\n"
    assert done.stderr == (said if code else "")


def test_a_request_can_be_forgotten():
    signals._note(signal.SIGINT, None)
    assert signals.requested() == signal.SIGINT
    signals.clear()
    assert not signals.requested()
    signals._note(signal.SIGINT, None)  # the first one again, not the second that ends the process
    assert signals.requested() == signal.SIGINT
    signals.clear()
