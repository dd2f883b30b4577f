"""What becomes of the folder of a run: a new run, one that is continued, or a finished one whose result is shown."""

import contextlib
import fcntl
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from effvl_cli.config.identity import differences, growable
from effvl_cli.config.recipe_file import Recipe, read_recipe
from effvl_cli.core import distributed, errors, html_report, used_data
from effvl_cli.core.errors import EffvlError, StorageError, UsageError
from effvl_cli.core.files import is_full
from effvl_cli.core.records import RECORDS
from effvl_cli.core.report import Report, read_report
from effvl_cli.core.run_files import CONFIG, ENVIRONMENT, LOCK, LOG, REGISTER, REPORT, clear, registered
from effvl_cli.core.table import Table
from effvl_cli.core.used_data import Fingerprints

DESCRIPTION = (CONFIG, REPORT, LOG, ENVIRONMENT, RECORDS, html_report.HTML, used_data.DATA)
"""Files of a run that hold nothing that it has computed."""
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class RunRequest:
    """What to open: a command, its resolved options and how it was called."""

    command: str
    config: Any
    recipe: str | None = None
    argv: tuple[str, ...] = ()
    fresh: bool = False
    inherited: Mapping[str, str] = field(default_factory=dict)
    table: Callable[[Report], Table] | None = None
    refuse: Callable[[Path, bool], None] = lambda folder, fresh: None
    """Told the folder of an earlier run of the same command, and whether it would be deleted; raises if it must not."""


Decision = tuple[IO[str] | None, dict[str, Any]]
"""The lock of the folder, and what becomes of it: finished, attempt."""


def agreed(choose: Callable[[], Decision]) -> Decision:
    """What the process that writes decides, told to the others, and so is its error."""
    lock: IO[str] | None = None
    answer: dict[str, Any] = {}
    if distributed.is_main():
        try:
            lock, answer = choose()
        except EffvlError as error:
            answer = {"error": [type(error).__name__, error.message, error.hint]}
    answer = distributed.broadcast_json(answer)
    if "error" in answer:
        kind, *words = answer["error"]
        raise getattr(errors, kind)(*words)
    return lock, answer


def decide(
    folder: Path,
    request: RunRequest,
    inputs: Mapping[str, str],
    fingerprints: Fingerprints | None,
    check: Callable[[], None],
    echo: Callable[[str], None],
) -> Decision:
    """Take the folder, unless what a new run needs is missing or the data of an earlier attempt have changed."""
    if request.fresh or not (folder / CONFIG).exists():
        check()
    lock, answer = _take(folder, request, inputs)
    if answer["attempt"] > 1 and fingerprints is not None:
        try:
            _check_data(folder, fingerprints, echo)
        except UsageError:
            if not _is_empty(folder):
                raise
            clear(folder)
            answer = {"finished": False, "attempt": 1}
    return lock, answer


def _check_data(folder: Path, fingerprints: Fingerprints, echo: Callable[[str], None]) -> None:
    """Compare the data that earlier attempts have read with what is there now.

    Raises:
        UsageError: the data have changed.
    """
    other, gone = used_data.changed(used_data.read(folder), fingerprints)
    if other:
        raise UsageError(
            f"the data of {folder} have changed since it read them ({', '.join(other)})",
            "Restore the earlier files, or give --fresh to start anew",
        )
    if gone:
        echo(f"warning: no longer there, and so not compared with what the run has read: {', '.join(gone)}")


def _take(folder: Path, request: RunRequest, inputs: Mapping[str, str]) -> tuple[IO[str], dict[str, Any]]:
    """Lock the folder and decide: new, to be continued, or finished."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).exists() and not (folder / LOCK).exists():
        raise UsageError(f"{folder} holds files that do not belong to a run", "Give another --out")
    lock = take_lock(folder)
    known = (folder / CONFIG).exists()
    if known and _command_of(folder) == request.command:
        request.refuse(folder, request.fresh)
    if request.fresh and known and not (folder / REGISTER).exists():
        raise UsageError(f"{folder} does not list the files of its run", "Remove it, or give another --out")
    if request.fresh or not known:  # without a config, registered files are leftovers of an interrupted --fresh
        clear(folder)
        return lock, {"finished": False, "attempt": 1}
    old = _read_config(folder)
    try:
        _refuse_other_config(folder, old, request, inputs)
    except UsageError:
        if not _is_empty(folder):
            raise
        clear(folder)
        return lock, {"finished": False, "attempt": 1}
    report = folder / REPORT
    if report.exists() and read_report(report).status == "completed" and not _grown(old.config, request.config):
        if not getattr(request.config, "asked_again", False):
            return lock, {"finished": True, "attempt": 2}
        clear(folder)  # the answer may have changed with files that are no part of the run's identity
        return lock, {"finished": False, "attempt": 1}
    attempt = 1
    with contextlib.suppress(OSError, ValueError):
        attempt = json.loads((folder / ENVIRONMENT).read_text())["attempt"]
    return lock, {"finished": False, "attempt": attempt + 1}


def _command_of(folder: Path) -> str:
    """The command that made the folder; empty where its description is damaged."""
    with contextlib.suppress(UsageError):
        return _read_config(folder).command
    return ""


def take_lock(folder: Path) -> IO[str]:
    """Be the only process that writes into a run folder, until the file is closed or the process ends.

    Raises:
        UsageError: another process does, or a file stands where the folder should be.
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        text = f"cannot write the run folder {folder}: {error.strerror}"
        if isinstance(error, FileExistsError | NotADirectoryError):  # a file stands where the folder should
            raise UsageError(text, "Give another --out") from error
        hint = "Free some space" if is_full(error) else "Give another --out"
        raise StorageError(text, hint) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UsageError(f"another process is working in {folder}", "Wait for it, or give another --out") from error
    return lock


def _is_empty(folder: Path) -> bool:
    """Whether the run in a folder failed before it computed anything that is kept: only its own description is there.

    Then another command may take the folder, e.g. the corrected one.
    """
    try:
        failed = read_report(folder / REPORT).status == "failed"
    except EffvlError:
        return False
    there = [name for name in registered(folder) if name not in DESCRIPTION and (folder / name).exists()]
    records_file = folder / RECORDS
    return failed and not there and not (records_file.exists() and records_file.stat().st_size)


def _read_config(folder: Path) -> Recipe:
    """The options of the run in a folder.

    Raises:
        UsageError: the file is damaged: the digest that ends it is not there.
    """
    try:
        old = read_recipe(folder / CONFIG)
    except UsageError as error:
        raise _damaged(folder) from error
    if not _DIGEST.fullmatch(str(old.run.get("identity"))):
        raise _damaged(folder)
    return old


def _damaged(folder: Path) -> UsageError:
    return UsageError(f"{folder / CONFIG} is damaged or incomplete", "Give --fresh to start anew, or another --out")


def _refuse_other_config(folder: Path, old: Any, request: RunRequest, inputs: Mapping[str, str]) -> None:
    if old.command != request.command:
        raise UsageError(f"{folder} holds a run of `effvl {old.command}`", "Give another --out or --name, or --fresh")
    changed = differences(old.config, request.config)
    before = dict(old.run.get("inputs") or {})
    changed += [f"the content of --{name} has changed" for name in inputs if before.get(name) != inputs[name]]
    if changed:
        raise UsageError(
            f"{folder} holds a run with other options: {'; '.join(changed)}",
            "Give another --out or --name, or --fresh to start anew",
        )


def _grown(old: Mapping[str, str], config: Any) -> bool:
    return any(str(old.get(key)) != str(value) for key, value in growable(config).items())
