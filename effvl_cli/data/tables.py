"""`csv:FILE`: a table of image paths with labels, captions, or both.

Columns: path (or image, filepath, file), label (or class) and/or caption (or text), and optionally split. Comma or tab
separated; relative paths start from the table's folder. Rows without a split column are divided 80/10/10 by hash.
"""

import csv
import hashlib
from pathlib import Path

import numpy as np

from effvl_cli.core.errors import DataError
from effvl_cli.data.files import FileImages, natural, readable

COLUMNS = {
    "path": ("path", "image", "filepath", "file"),
    "label": ("label", "class"),
    "caption": ("caption", "text"),
    "split": ("split",),
}
SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
Row = dict[str, str]


def build(argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> FileImages:
    """Registry builder; the argument is the table.

    Raises:
        DataError: missing, or a header or row that cannot be read; names the line.
    """
    table = (root / argument) if root else Path(argument)
    if not argument or not table.is_file():
        raise DataError(f"no table at {table}", "Give --data csv:FILE with columns path and label and/or caption")
    rows = read_rows(table)
    classes = sorted({row["label"] for row in rows if "label" in row}, key=natural)
    chosen = [row for row in rows if _split(row) == split]
    if not chosen:
        raise DataError(f"{table} has no row for split {split}", "Add some, or leave the split column out")
    labels = [classes.index(row["label"]) if classes else 0 for row in chosen]
    return FileImages(
        f"csv:{table.stem}",
        split,
        root=table.parent,
        ids=[row["path"] for row in chosen],
        labels=np.array(labels, dtype=np.int64),
        classes=readable(classes, table),
        captions=[row["caption"] for row in chosen] if "caption" in chosen[0] else None,
    )


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
        reader = csv.reader(file, delimiter="\t" if "\t" in header else ",")
        columns = _columns(table, next(reader, []))
        rows = []
        for cells in reader:
            if cells:
                rows.append(_row(table, reader.line_num, columns, cells))
    return rows


def _columns(table: Path, header: list[str]) -> dict[str, int]:
    names = [name.strip().lower() for name in header]
    found = {meaning: names.index(word) for meaning, words in COLUMNS.items() for word in words[::-1] if word in names}
    if "path" not in found or not {"label", "caption"} & set(found):
        raise DataError(
            f"{table} line 1 has columns {', '.join(names) or 'none'}", "Needed: path, and label and/or caption"
        )
    return found


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


def _split(row: Row) -> str:
    if "split" in row:
        return SPLIT_WORDS[row["split"].lower()]
    tenth = hashlib.blake2b(row["path"].encode(), digest_size=8).digest()[0] % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"
