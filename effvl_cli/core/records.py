"""`metrics.jsonl`: one record a line, the same bytes after a resume as without one; copies for other readers."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from effvl_cli.core.files import disk_errors, write_csv

RECORDS, RECORDS_TABLE = "metrics.jsonl", "metrics.csv"


class Writer(Protocol):
    """Receiver of a copy of each record, e.g. TensorBoard's event file."""

    def restart(self, records: list[dict[str, Any]]) -> None:
        """Start again with these records."""

    def add(self, record: Mapping[str, Any]) -> None:
        """One more."""

    def close(self) -> None:
        """No more records follow."""


class Records:
    """The open file.

    Args:
        path: of the file; created where there is none.
        resumed: whether an earlier attempt has written into it: its records of finished work are kept.
        writers: receivers of copies.
    """

    def __init__(self, path: Path, *, resumed: bool = False, writers: tuple[Writer, ...] = ()) -> None:
        self.path, self.writers = path, writers
        with disk_errors(path):
            path.touch()
            self._file = path.open("r+b")
        self._file.seek(0, 2)
        self._settled: int | None = 0 if resumed else None  # bytes of finished work, until the first new record
        self._told = not writers

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Append a record; the first one of a resumed run replaces those of unfinished work."""
        if self._settled is not None:
            self.rewind(self._settled)
        record = {"event": event, **fields}
        with disk_errors(self.path):
            self._file.write((json.dumps(record) + "\n").encode())
            self._file.flush()
        for writer in self.writers:
            if self._told:
                writer.add(record)
            else:
                writer.restart(read(self.path))
        self._told = True

    def offset(self) -> int:
        """Bytes that count so far."""
        return self._file.tell() if self._settled is None else self._settled

    def settle(self, offset: int) -> None:
        """Keep the records before `offset`: an earlier attempt has finished their work."""
        if self._settled is not None:
            self._settled = max(self._settled, offset)

    def rewind(self, offset: int) -> None:
        """Drop what follows `offset`; never lengthens the file."""
        self._file.seek(0, 2)
        kept = min(offset, self._file.tell())
        self._file.truncate(kept)
        self._file.seek(kept)
        self._settled, self._told = None, not self.writers

    def close(self) -> None:
        """Close the file and the writers."""
        self._file.close()
        for writer in self.writers:
            writer.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The complete records of a file."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):  # the end of a line that a kill cut off
            found.append(json.loads(line))
    return found


def write_table(path: Path, records: list[dict[str, Any]]) -> None:
    """Records as CSV, a column for each name; lists and mappings as JSON."""

    def plain(value: Any) -> Any:
        return json.dumps(value) if isinstance(value, list | dict) else value

    columns = list(dict.fromkeys(name for record in records for name in record))
    write_csv(path, columns, [{name: plain(value) for name, value in record.items()} for record in records])
