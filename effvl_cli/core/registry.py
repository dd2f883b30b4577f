"""Lazy tables of names: a row says where a builder lives, and nothing is imported to list it."""

import difflib
import importlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from effvl_cli.core.errors import MissingPackageError, UsageError


@dataclass(frozen=True)
class Row:
    """One source of data sets or models.

    Attributes:
        name: what a user writes; `NAME:` (with the colon) when an argument follows it.
        target: "module:function" of the builder.
        summary: one line for `effvl list`.
        kind: what a data set's samples are, e.g. "images"; "" where only the builder knows.
        origin: "effvl", or the distribution of the plug-in.
    """

    name: str
    target: str
    summary: str
    kind: str = ""
    origin: str = "effvl"


def nearest(name: str, known: Iterable[str]) -> str:
    """A did-you-mean sentence, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.55)
    return f"Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


class Registry:
    """Rows of one kind, with plug-ins from an entry-point group.

    A plug-in distribution declares `NAME = "module:function"` under `group`; it is looked up only when a name is
    unknown here, or to list.
    """

    def __init__(self, kind: str, group: str, rows: Iterable[Row]) -> None:
        self.kind = kind
        self.group = group
        self._rows = {row.name: row for row in rows}

    def rows(self) -> list[Row]:
        """Own rows and those of plug-ins."""
        return [*self._rows.values(), *self._plugin_rows()]

    def find(self, spec: str) -> tuple[Row, str]:
        """The row of `spec` ("NAME" or "NAME:ARGUMENT") and its argument ("" when there is none).

        The longest name wins, so a row may itself hold a colon ("tiny:clip").

        Raises:
            UsageError: nothing has that name.
        """
        for known in (self._rows.values, self._plugin_rows):
            rows = {row.name: row for row in known()}
            if spec in rows:
                return rows[spec], ""
            for name in sorted(rows, key=len, reverse=True):
                prefix = name if name.endswith(":") else f"{name}:"
                if spec.startswith(prefix):
                    return rows[name], spec[len(prefix) :]
        names = [row.name for row in self.rows()]
        hint = nearest(spec, names) or f"Known: {', '.join(names)}"
        raise UsageError(f"unknown {self.kind} {spec!r}", hint)

    def builder(self, row: Row) -> Callable[..., Any]:
        """Import the row's builder.

        Raises:
            MissingPackageError: it, or something that it needs, is not installed.
        """
        module, _, function = row.target.partition(":")
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module), function)
            return found
        except ImportError as error:
            raise MissingPackageError(
                f"{self.kind} {row.name!r} of {row.origin} cannot be loaded: {error}",
                f"Install what it needs: pip install {error.name or row.origin}",
            ) from error

    def _plugin_rows(self) -> list[Row]:
        found = []
        for point in entry_points(group=self.group):
            try:
                origin = point.dist.name if point.dist else "plug-in"
                found.append(Row(point.name, point.value, f"plug-in {point.value}", origin=origin))
            except Exception as error:  # a broken distribution must not take the toolkit down
                warnings.warn(f"plug-in {point.name!r} of {self.group} cannot be used: {error}", stacklevel=2)
        return found
