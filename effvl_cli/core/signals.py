"""Requests to stop. Imports nothing heavy: the handlers go in before torch is imported, which takes seconds."""

import contextlib
import os
import signal
import sys
from types import FrameType

_requested = 0
_interrupts = 0


def install() -> None:
    """SIGTERM, SIGUSR1 and SIGINT set a flag that loops look at; a second SIGINT ends the process at once."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    global _requested, _interrupts
    _interrupts += number == signal.SIGINT
    if _interrupts > 1:
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor, and nothing else restores it
        with contextlib.suppress(OSError):  # stderr may be closed
            os.write(2, b"error: interrupted twice: ended at once, what was not saved yet is lost\n")
        os._exit(130)
    _requested = _requested or number  # the first request decides; later ones change nothing


def requested() -> int:
    """The signal that asks this process to stop, or 0."""
    return _requested


def clear() -> None:
    """Forget the request, for a process that runs several commands."""
    global _requested, _interrupts
    _requested = _interrupts = 0
