"""Times of images from a list, as `effvl detect tag` writes it and --time-csv reads it."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from effvl_cli.core.errors import DataError
from effvl_cli.core.table import counted
from effvl_cli.data.boxes import BoxRecord, BoxSource
from effvl_cli.data.files import some
from effvl_cli.techniques.detect.tagging import Condition

EXAMPLE = "Give a first line file,time and lines like image.jpg,night"
BOTH = "Leave the lines with one time"


@dataclass(frozen=True)
class Line:
    """Of one image; split and source are empty where the list has no such columns, and the line is for all of them."""

    time: Condition
    split: str
    source: str


@dataclass(frozen=True)
class TimeList:
    """What a list says.

    Attributes:
        option: the option with its value, for errors.
        lines: of each file.
    """

    option: str
    lines: dict[str, list[Line]]

    @classmethod
    def read(cls, path: str) -> "TimeList":
        """A CSV file with columns file and time, and perhaps split and source.

        Raises:
            DataError: it cannot be read, says another time, or both of one image.
        """
        option = f"--time-csv {path}"
        try:
            with Path(path).open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                rows, columns = list(reader), reader.fieldnames or ()
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{option} cannot be read: {error}", EXAMPLE) from error
        if not columns:
            raise DataError(f"{option} is empty", EXAMPLE)
        if lacking := [name for name in ("file", "time") if name not in columns]:
            raise DataError(f"{option} has no column {lacking[0]} in its first line ({','.join(columns)})", EXAMPLE)
        if not rows:
            raise DataError(f"{option} has no lines after its first one", EXAMPLE)
        if wrong := [row for row in rows if not row["file"] or row["time"] not in get_args(Condition)]:
            shown = some([",".join(map(str, row.values())) for row in wrong])
            raise DataError(f"{option} has {counted(len(wrong), 'line')} without day or night: {shown}", EXAMPLE)
        lines: dict[str, list[Line]] = {}
        for row in rows:
            time: Condition = "night" if row["time"] == "night" else "day"
            line = Line(time, row.get("split") or "", row.get("source") or "")
            known = lines.setdefault(row["file"], [])
            if any((one.split, one.source) == (line.split, line.source) and one.time != line.time for one in known):
                raise DataError(f"{option} says both day and night of {row['file']}", BOTH)
            known.append(line)
        return cls(option, lines)

    def of(self, source: BoxSource, warn: Callable[[str], None]) -> dict[int, Condition]:
        """The times of the listed images of a split, by their places in it.

        Raises:
            DataError: both times of an image.
        """
        found = {}
        for place, record in enumerate(source.records):
            lines = [line for line in self.lines.get(record.file, ()) if line.split in ("", source.split)]
            if lines:
                found[place] = self._time(record, lines)
        if not found:
            warn(f"{self.option} names no image of {source.name} {source.split}")
        return found

    def _time(self, record: BoxRecord, lines: Sequence[Line]) -> Condition:
        """By the lines of its own source where there are some: two sources may have files of the same name."""
        times = {line.time for line in lines if line.source == record.source} or {line.time for line in lines}
        if len(times) > 1:
            raise DataError(f"{self.option} says both day and night of {record.file} of source {record.source}", BOTH)
        return times.pop()
