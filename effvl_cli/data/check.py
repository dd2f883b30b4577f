"""Which parts of a data set are there, and which are missing."""

from pathlib import Path
from typing import Any

from effvl_cli.core.errors import DataError
from effvl_cli.core.files import file_or_folder
from effvl_cli.core.table import Cell, Table
from effvl_cli.data import SPLITS, find_row, open_source
from effvl_cli.data.fetch import command_for
from effvl_cli.data.folders import LAYOUT

VIDEO_SETS = ("ucf101", "hmdb51", "kinetics400")


def check(spec: str, root: Path | None = None) -> tuple[Table, list[str]]:
    """Open every split; images are looked up, not decoded.

    Args:
        spec: "NAME" or "NAME:ARGUMENT".
        root: folder that holds it.

    Returns:
        A row for each split, and the faults, each once; without faults every split can be used.

    Raises:
        UsageError: unknown name.
    """
    rows: list[tuple[Cell, ...]] = []
    wrong: list[str] = []
    layouts: list[str] = []
    for split in SPLITS:
        try:
            source = open_source(spec, split, kind=None, root=root)
        except DataError as error:
            rows.append((split, None, None, None, "not usable"))
            wrong.append(str(error))
        else:
            rows.append(_row(source))
            layouts.append(getattr(source, "layout", ""))
    wrong = list(dict.fromkeys(wrong))
    if wrong and (command := command_for(spec, root)):
        wrong.append(f"To download it: {command}")
    notes = dict.fromkeys(f"found in {layout}" for layout in layouts if layout)
    columns = ("split", "images", "published", "classes", "state")
    return Table(f"{spec} under {root or '.'}", columns, tuple(rows), (*notes, *wrong)), wrong


def require(spec: str, root: str | Path | None, option: str = "--data") -> None:
    """Check that a data set given as a path exists, before a command opens a run folder or loads weights.

    Raises:
        UsageError: unknown name.
        DataError: the path does not exist.
    """
    row, argument = find_row(spec, option)
    place = Path(root or ".") / argument
    if row.name in ("folder:", "images:") and file_or_folder(place) != "folder":
        raise DataError(f"no folder at {place}", LAYOUT)
    if row.name == "csv:" and file_or_folder(place) != "file":
        raise DataError(f"no table at {place}", f"Give {option} csv:FILE with columns path and label and/or caption")
    if row.name == "video:" and argument.partition(":")[0] not in VIDEO_SETS and not file_or_folder(place):
        raise DataError(
            f"no folder or table at {place}", "Give --data video:FOLDER, video:FILE.csv, video:FILE.mp4 or video:ucf101"
        )


def _row(source: Any) -> tuple[Cell, ...]:
    return (
        source.split,
        "endless" if source.endless else len(source),
        getattr(source, "expected", None),
        len(getattr(source, "classes", ())),
        getattr(source, "remark", "") or "ok",
    )
