"""Errors that a user sees as one line, each with its exit code."""

import errno


class EffvlError(Exception):
    """A failure that the user can act on.

    Args:
        message: what is wrong, naming the key and the value.
        hint: the fix, one sentence.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        text = self.message.rstrip(".")
        return f"{text}. {self.hint}" if self.hint else text


class UsageError(EffvlError):
    """Usage or configuration: unknown or misplaced option, value out of range, unknown name."""

    exit_code = 2


class DataError(EffvlError):
    """Data that is missing, unreadable or of the wrong shape."""

    exit_code = 3


class NoSplitError(DataError):
    """A data set has no images for a split, or none with boxes: not to be confused with one that cannot be read."""


class ModelError(EffvlError):
    """A model or an artefact that is unsupported, corrupt or does not fit."""

    exit_code = 4


class MissingPackageError(EffvlError):
    """An optional package is not installed."""

    exit_code = 5


class NumericalError(EffvlError):
    """Non-finite values after the loop's patience, or out of memory."""

    exit_code = 6


class DistributedError(EffvlError):
    """Processes that cannot be joined or that disagree."""

    exit_code = 7


class CheckError(EffvlError):
    """A check that the user asked for failed, e.g. an exported file that does not compute what the network computes."""

    exit_code = 8


class StorageError(EffvlError):
    """A full disk, or a folder without write permission; what was saved before is untouched."""

    exit_code = 9


class Preempted(EffvlError):  # noqa: N818 - an outcome, not a fault
    """The run was asked to stop, has saved its state and can be resumed."""

    exit_code = 75


class Interrupted(Preempted):
    """The same, asked for at the keyboard."""

    exit_code = 130


def as_user_error(error: Exception) -> EffvlError | None:
    """The user's error for an exception that may come from anywhere; None for an internal error."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename)
        return UsageError(f"{name[:60]}... is longer than a path can be ({len(name)} characters)", "Give a shorter one")
    return None
