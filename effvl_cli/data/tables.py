"""`csv:FILE`: a table of image paths with labels, captions, or both.

Columns: path (or image, filepath, file), label (or class, fine) and/or caption (or text) unless the pictures have none,
and optionally split and coarse (a group of labels, which `effvl continual` makes a task of). Comma or tab separated;
relative paths start from the table's folder. Rows without a split column are divided 80/10/10 by hash of the path; with
only one of val and test, as `folder:` does.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from effvl_cli.core.errors import DataError
from effvl_cli.data.files import FileImages, natural, readable, some
from effvl_cli.data.folders import drawn_from, tenth

COLUMNS = {
    "path": ("path", "image", "filepath", "file"),
    "label": ("label", "class", "fine"),
    "caption": ("caption", "text"),
    "split": ("split",),
    "coarse": ("coarse",),
}
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
Row = dict[str, str]


def build(argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> "TableImages":
    """Registry builder; the argument is the table.

    Raises:
        DataError: missing, or a header or row that cannot be read; names the line.
    """
    table = (root / argument) if root else Path(argument)
    if not argument or not table.is_file():
        raise DataError(f"no table at {table}", "Give --data csv:FILE with columns path and label and/or caption")
    rows = read_rows(table)
    classes = sorted({row["label"] for row in rows if "label" in row}, key=natural)
    chosen = _chosen(rows, split)
    if not chosen:
        raise DataError(f"{table} has no row for split {split}", "Add some, or leave the split column out")
    labels = [classes.index(row["label"]) if classes else 0 for row in chosen]
    return TableImages(
        f"csv:{table.stem}",
        split,
        root=table.parent,
        ids=[row["path"] for row in chosen],
        labels=np.array(labels, dtype=np.int64),
        classes=readable(classes, table),
        captions=[row["caption"] for row in chosen] if "caption" in chosen[0] else None,
        remark="; ".join(_remarks(table, rows, chosen)),
        coarse=_coarse(table, rows),
    )


class TableImages(FileImages):
    """Images of a table; `coarse` gives the group of each class, or is None where the table does not say."""

    def __init__(self, name: str, split: str, *, coarse: Mapping[str, str] | None, **rest: Any) -> None:
        super().__init__(name, split, **rest)
        self.coarse = coarse


def _coarse(table: Path, rows: list[Row]) -> dict[str, str] | None:
    """Group of each class, both as words; None without labels or such a column."""
    if not rows or not {"label", "coarse"} <= rows[0].keys():
        return None
    groups: dict[str, str] = {}
    for row in rows:
        label, group = (row[key].replace("_", " ") for key in ("label", "coarse"))
        if groups.setdefault(label, group) != group:
            raise DataError(f"{table}: class {label!r} is in {groups[label]!r} and in {group!r}", "Give it one coarse")
    return groups


def _chosen(rows: list[Row], split: str) -> list[Row]:
    parts = [SPLIT_WORDS[row.get("split", "train").lower()] for row in rows]
    name, tenths = drawn_from(split, val="val" in parts, test="test" in parts)
    if rows and "split" in rows[0] and set(parts) == {"train"}:  # all of it is meant for training
        name, tenths = split, None
    here = (row for row, part in zip(rows, parts, strict=True) if part == name)
    return [row for row in here if tenths is None or tenth(row["path"]) in tenths]


def _remarks(table: Path, rows: list[Row], chosen: list[Row]) -> Iterator[str]:
    """Notes on the rows of a split: files that are missing, in several splits, of several classes, or listed twice."""
    asked = Counter(_file(row) for row in chosen)
    if missing := [name for name in asked if not (table.parent / name).exists()]:
        yield f"{len(missing)} of {len(asked)} files are missing: {some(missing)}"
    splits, labels = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for row in rows:
        if (name := _file(row)) in asked:
            splits[name].add(SPLIT_WORDS[row.get("split", "train").lower()])
            labels[name].add(row.get("label", ""))
    if shared := [name for name in asked if len(splits[name]) > 1]:
        yield f"{len(shared)} of {len(asked)} files are in other splits too: {some(shared)}"
    if unsure := [name for name in asked if len(labels[name]) > 1]:
        yield f"{len(unsure)} of {len(asked)} files have several labels: {some(unsure)}"
    if repeated := [] if "caption" in chosen[0] else [name for name, count in asked.items() if count > 1]:
        yield f"{len(repeated)} of {len(asked)} files have several rows and count as often: {some(repeated)}"


def _file(row: Row) -> str:
    return os.path.normpath(row["path"])


def read_rows(table: Path) -> list[Row]:
    """The rows of a table, each with path, and label, caption and split where there are such columns.

    Raises:
        DataError: a header or row that cannot be read; names the line.
    """
    try:
        return _rows(table)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{table} is not UTF-8 text: {error.reason} at byte {error.start}", "Save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise DataError(f"{table} is not a table: {error}", "Give comma or tab separated text") from error


def _rows(table: Path) -> list[Row]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        header = file.readline()
        file.seek(0)
        delimiter, text = "\t" if "\t" in header else ",", list[str]()
        reader = csv.reader(_noted(file, text), delimiter=delimiter)
        names = next(reader, [])
        columns, width = _columns(table, names), len(names)
        rows, line = [], reader.line_num + 1
        text.clear()
        for cells in reader:
            if len(text) > 1:
                _refuse_open(table, line, text, delimiter)
            if cells:
                _refuse_more(table, line, width, cells)
                rows.append(_row(table, line, columns, cells))
            line = reader.line_num + 1
            text.clear()
    return rows


def _noted(lines: Iterable[str], text: list[str]) -> Iterator[str]:
    """The lines, each put into `text` too, and after the last an empty one if csv asks for more, as within a quote."""
    for line in lines:
        text.append(line)
        yield line
    text.append("")


def _refuse_open(table: Path, line: int, text: list[str], delimiter: str) -> None:
    """Refuse a row of several lines whose quotes do not end where a cell ends: it would hold the rows that follow.

    Raises:
        DataError: names the line in which the row begins.
    """
    try:
        list(csv.reader(text, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{table} line {line} opens a quote that is not closed at the end of its cell", 'Close it with "'
        ) from error


def _columns(table: Path, header: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    twice = next((name for name in names if names.count(name) > 1 and any(name in w for w in COLUMNS.values())), None)
    if twice:
        raise DataError(f"{table} line 1 has two columns {twice}", "Rename or remove one")
    found = {meaning: names.index(word) for meaning, words in COLUMNS.items() for word in words[::-1] if word in names}
    is_bare = len(found) == len(names)  # pictures without labels; an unknown column may be a misspelt label
    if "path" not in found or not ({"label", "caption"} & set(found) or is_bare):
        raise DataError(
            f"{table} line 1 has columns {', '.join(names) or 'none'}", "Needed: path, and label and/or caption if any"
        )
    return found


def _refuse_more(table: Path, line: int, width: int, cells: list[str]) -> None:
    if any(cell.strip() for cell in cells[width:]):  # the rest of a text that should have stood in quotes
        raise DataError(
            f"{table} line {line} has {len(cells)} cells, and the header {width}", 'Put texts with commas in "quotes"'
        )


def _row(table: Path, line: int, columns: dict[str, int], cells: list[str]) -> Row:
    row = {}
    for meaning, place in columns.items():
        value = cells[place].strip() if place < len(cells) else ""
        if not value:
            raise DataError(f"{table} line {line} has no {meaning}", "Fill the cell or remove the line")
        row[meaning] = value
    if "split" in row and row["split"].lower() not in SPLIT_WORDS:
        raise DataError(f"{table} line {line}: split is {row['split']!r}", "Give train, val or test")
    return row
