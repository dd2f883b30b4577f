"""What the terminal shows: results on stdout, everything else on stderr, from rank 0 only."""

import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

from effvl_cli.core.table import Cell, Table

PERIOD = 30.0  # seconds between plain progress lines


def is_main() -> bool:
    """Whether this is rank 0: what core.distributed says, without the torch that it brings along."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]) == 0
    return int(env.get("SLURM_NTASKS", 1)) <= 1 or int(env.get("SLURM_PROCID", 0)) == 0


class Console:
    """Output of one command.

    Args:
        quiet: no log and no progress.
        json: stdout carries one line of JSON and nothing else.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self.quiet, self.json = quiet, json
        self._first = ""
        self.shown = is_main()

    def error(self, text: str, *, anywhere: bool = False) -> None:
        """One line on stderr; `anywhere`: from every rank, for what may go wrong on one of them alone."""
        if self.shown or anywhere:
            print(f"error: {' '.join(text.split())}", file=sys.stderr)

    def log(self, text: str) -> None:
        """A line on stderr."""
        self.begin()
        if self.shown and not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def log_first(self, text: str) -> None:
        """A line that stands before whatever comes next, and is left out where that is an error."""
        self._first = text

    def begin(self) -> None:
        """Print the line that stands before whatever comes next."""
        text, self._first = self._first, ""
        if text:
            self.log(text)

    def print_json(self, text: str) -> None:
        """The report on stdout."""
        self.begin()
        if self.shown:
            print(text)

    def print_table(self, table: Table, before: str = "") -> None:
        """A table on stdout: drawn on a terminal, elsewhere aligned columns with `before` at the start of each line."""
        self.begin()
        if not self.shown or self.json:
            return
        if sys.stdout.isatty():
            _draw(table)
        else:
            print(textwrap.indent(plain(table), before, lambda line: True))

    @contextlib.contextmanager
    def progress(self, description: str, total: int, completed: int = 0) -> Iterator["Line | Bar"]:
        """Progress of a phase: a live bar on a terminal, else a line now and then."""
        self.begin()
        if self.quiet or not self.shown or total == 0:
            yield Line(description, total, completed, silent=True)
        elif sys.stderr.isatty():
            with _bar(description, total, completed) as bar:
                yield bar
        else:
            line = Line(description, total, completed)
            yield line
            line.end()


def plain(table: Table) -> str:
    """Aligned text of a table."""
    rows = [[_text(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.columns))]
    numeric = [all(_is_number(row[k]) for row in table.rows) for k in range(len(table.columns))]
    lines = [table.title]
    for row in rows:
        cells = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(2, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *table.notes])


def _text(cell: Cell) -> str:
    return "-" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _is_number(cell: Cell) -> bool:
    if cell is None:
        return True
    try:
        float(str(cell).rstrip("x"))
    except ValueError:
        return False
    return True


def _draw(table: Table) -> None:
    from rich.console import Console as Rich
    from rich.table import Table as RichTable
    from rich.text import Text

    # Text, not str: brackets in a name are not markup
    drawn = RichTable(title=Text(table.title, style="bold"), title_justify="left")
    for place, column in enumerate(table.columns):
        right = all(_is_number(row[place]) for row in table.rows)
        drawn.add_column(Text(column), justify="right" if right else "left", no_wrap=right)
    for row in table.rows:
        drawn.add_row(*(Text(_text(cell)) for cell in row))
    rich = Rich()
    rich.print(drawn)
    for note in table.notes:
        rich.print(Text(note, style="dim"))


def _figures(fields: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Line:
    """Progress as plain lines."""

    def __init__(self, description: str, total: int, completed: int, *, silent: bool = False) -> None:
        self.description, self.total, self.first, self.silent = description, total, completed, silent
        self.started = self.shown = time.monotonic()
        self.completed, self.fields = completed, ""

    def update(self, completed: int, **fields: Any) -> None:
        """Record the progress; a line is printed every `PERIOD`."""
        self.completed = completed
        self.fields = _figures(fields) or self.fields
        if not self.silent and time.monotonic() - self.shown >= PERIOD:
            self.shown = time.monotonic()
            spent = self.shown - self.started
            left = spent / max(1, completed - self.first) * (self.total - completed)
            self._print(
                f"{self.description} {completed}/{self.total}  {_clock(spent)}, {_clock(left)} to go  {self.fields}"
            )

    def end(self) -> None:
        """The last line."""
        spent = _clock(time.monotonic() - self.started)
        self._print(f"{self.description} {self.completed}/{self.total} in {spent}  {self.fields}")

    def _print(self, text: str) -> None:
        print(text.rstrip(), file=sys.stderr, flush=True)


class Bar:
    """Progress as a live bar."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, completed: int, **fields: Any) -> None:
        """Move the bar."""
        more = {"figures": _figures(fields)} if fields else {}
        self._progress.update(self._task, completed=completed, **more)


@contextlib.contextmanager
def _bar(description: str, total: int, completed: int) -> Iterator[Bar]:
    from rich.console import Console as Rich
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=Rich(stderr=True)) as progress:
        yield Bar(progress, progress.add_task(description, total=total, completed=completed, figures=""))
