"""The earlier run that a verb works on."""

import contextlib
from pathlib import Path

from effvl_cli.core.checkpoint import MANIFEST
from effvl_cli.core.errors import DataError, ModelError
from effvl_cli.core.files import file_or_folder
from effvl_cli.core.report import read_report
from effvl_cli.core.run import CONFIG, REPORT, RUNS


def find_run(technique: str, given: str | None) -> Path:
    """The run folder that a verb works on: the one given (or of the checkpoint given), else the newest completed one.

    Raises:
        DataError: there is none.
        ModelError: what was given is not a run.
    """
    if given is not None:
        path = Path(given)
        folder = path.parent if file_or_folder(path) == "file" else path
        if file_or_folder(folder / CONFIG) != "file":
            shown = given if len(given) <= 200 else f"{given[:100]}... ({len(given)} characters)"
            raise ModelError(
                f"{shown} is not a run folder: it holds no {CONFIG}", f"Give a folder that `effvl {technique}` made"
            )
        return folder
    done = []
    for path in RUNS.glob(f"{technique}*/*/{REPORT}"):
        with contextlib.suppress(ModelError, DataError, ValueError):
            report = read_report(path)
            if report.status == "completed" and (path.parent / MANIFEST).is_file():
                done.append((report.finished, path.parent))
    if not done:
        raise DataError(f"no completed run of {technique} under {RUNS}/", f"Make one with: effvl {technique}")
    return max(done)[1]


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
        path = Path(given)
        folder = path.parent if file_or_folder(path) == "file" else path
        if file_or_folder(folder / name) != "file":
            raise ModelError(f"{given[:100]} holds no {name}", f"See effvl {command} --help for what writes one")
        return folder
    done = []
    for path in RUNS.glob(f"*/*/{REPORT}"):
        with contextlib.suppress(ModelError, DataError, ValueError):
            report = read_report(path)
            if report.status == "completed" and (path.parent / name).is_file():
                done.append((report.finished, path.parent))
    if not done:
        raise DataError(
            f"no completed run under {RUNS}/ holds a {name}", f"See effvl {command} --help for what writes one"
        )
    return max(done)[1]
