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
