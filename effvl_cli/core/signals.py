"""Requests to stop. Imports nothing heavy: the handlers go in before torch is imported, which takes seconds."""

import os
import signal
from types import FrameType

_requested = 0


def install() -> None:
    """SIGTERM, SIGUSR1 and SIGINT set a flag that loops look at; a second SIGINT ends the process at once."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    global _requested
    if number == signal.SIGINT and _requested == signal.SIGINT:
        os._exit(130)
    _requested = number


def requested() -> int:
    """The signal that asks this process to stop, or 0."""
    return _requested


def clear() -> None:
    """Forget the request, for a process that runs several commands."""
    global _requested
    _requested = 0
