"""The earlier run that a verb works on."""

import contextlib
from pathlib import Path

from effvl_cli.core.checkpoint import MANIFEST
from effvl_cli.core.errors import DataError, ModelError
from effvl_cli.core.files import file_or_folder
from effvl_cli.core.report import read_report
from effvl_cli.core.run import RUNS
from effvl_cli.core.run_files import CONFIG, REPORT


def find_run(technique: str, given: str | None) -> Path:
    """The run folder that a verb works on: the one given (or of the checkpoint given), else the newest completed one.

    Raises:
        DataError: there is none.
        ModelError: what was given is not a run.
    """
    if given is not None:
        folder = _folder_of(given)
        if file_or_folder(folder / CONFIG) != "file":
            shown = given if len(given) <= 200 else f"{given[:100]}... ({len(given)} characters)"
            raise ModelError(
                f"{shown} is not a run folder: it holds no {CONFIG}", f"Give a folder that `effvl {technique}` made"
            )
        return folder
    newest = _newest(f"{technique}*", MANIFEST)
    if newest is None:
        raise DataError(f"no completed run of {technique} under {RUNS}/", f"Make one with: effvl {technique}")
    return newest


def find_holding(name: str, command: str, given: str | None) -> Path:
    """The folder that holds a file of that name: the one given, else that of the newest completed run with one.

    Args:
        name: of the file.
        command: that wants it, for messages.
        given: by the user, or None.

    Raises:
        DataError: none was given, and no run has one.
        ModelError: what was given holds none.
    """
    if given is not None:
        folder = _folder_of(given)
        if file_or_folder(folder) != "folder":
            raise ModelError(f"there is no run folder {given[:100]}", "Give one that is there")
        if file_or_folder(folder / name) != "file":
            raise ModelError(f"{given[:100]} holds no {name}", f"See effvl {command} --help for what writes one")
        return folder
    newest = _newest("*", name)
    if newest is None:
        raise DataError(
            f"no completed run under {RUNS}/ holds a {name}", f"See effvl {command} --help for what writes one"
        )
    return newest


def _folder_of(given: str) -> Path:
    """A run folder, named itself or by a file in it."""
    path = Path(given)
    return path.parent if file_or_folder(path) == "file" else path


def _newest(commands: str, name: str) -> Path | None:
    """The newest completed run of some commands (a pattern) whose folder holds a file of that name."""
    done = []
    for path in RUNS.glob(f"{commands}/*/{REPORT}"):
        with contextlib.suppress(ModelError, DataError, ValueError):
            report = read_report(path)
            if report.status == "completed" and (path.parent / name).is_file():
                done.append((report.finished, path.parent))
    return max(done)[1] if done else None
