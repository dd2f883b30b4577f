"""Image lists shipped with data sets: reading them, checking them, and splitting data sets without splits."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.errors import DataError
from effvl_cli.data import SPLITS

Item = tuple[str, int, str]
"""Path from the image folder, label from 0, class name."""
Splits = dict[str, list[Item]]
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Location of a data set: its folder, and the folder that image paths are relative to."""

    folder: Path
    images: Path


def read_lines(path: Path, parse: Callable[[str], T], fix: str = "Extract the file again") -> list[T]:
    """What `parse` makes of each line that is not blank.

    Args:
        path: the file.
        parse: makes something of a line.
        fix: what the user can do where it cannot.

    Raises:
        DataError: no such file, or `parse` raised ValueError or IndexError on a line, which is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Extract it again") from error
    found = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line:
            try:
                found.append(parse(line))
            except (ValueError, IndexError) as error:
                raise DataError(f"{path} line {number} ({line[:80]!r}): {error}", fix) from error
    return found


def number_of(name: str, numbers: dict[str, int], where: str) -> int:
    """The label of a class.

    Raises:
        ValueError: `where` does not list it.
    """
    if name not in numbers:
        raise ValueError(f"class {name!r} is not in {where}")
    return numbers[name]


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        DataError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "Give another file") from error
    except ValueError as error:
        raise DataError(f"{path} is not a JSON file: {error}", "Fetch it again; it may be a web page") from error


def read_mat(path: Path, *names: str) -> list[NDArray[Any]]:
    """Variables of a MATLAB file, each with at least one dimension and none of length 1 besides.

    Raises:
        DataError: missing, not a MATLAB file, or without such a variable.
    """
    from scipy.io import loadmat

    try:
        found = loadmat(path, squeeze_me=True)
    except Exception as error:  # its reader raises almost any exception on damaged bytes
        raise DataError(f"{path} is not a MATLAB file: {error}", "Fetch it again") from error
    for name in names:
        if name not in found:
            raise DataError(f"{path} has no variable {name!r}", "Fetch it again")
    return [np.atleast_1d(found[name]) for name in names]


def read_split_file(path: Path) -> Splits:
    """A split file of CoOp: {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    Raises:
        DataError: not of that form; names the entry.
    """
    found = read_json(path)
    splits: Splits = {}
    for split in SPLITS:
        rows = found.get(split) if isinstance(found, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{path} has no list {split!r}", 'Expected {"train": [[path, label, name], ...], ...}')
        for number, row in enumerate(rows):
            if not (isinstance(row, list) and [type(cell) for cell in row] == [str, int, str]):
                raise DataError(
                    f"{path}: {split}[{number}] is {str(row)[:80]}", "Expected [path, label from 0, class name]"
                )
        splits[split] = [(row[0], row[1], row[2]) for row in rows]
    return splits


def class_names(splits: Splits, where: Path) -> tuple[str, ...]:
    """Names by label, underscores as spaces; two classes may share one, as in published lists.

    Raises:
        DataError: a label below 0, without a name, or with two.
    """
    names: dict[int, str] = {}
    for path, label, name in chain.from_iterable(splits.values()):
        if label < 0:
            raise DataError(f"{where}: {path} has label {label}", "Labels of split files start from 0")
        if names.setdefault(label, name) != name:
            raise DataError(f"{where}: class {label} is called {names[label]!r} and {name!r}", "Fetch the lists again")
    for label in range(len(names)):
        if label not in names:
            raise DataError(f"{where}: labels run to {max(names)}, but none is {label}", "Fetch the lists again")
    return tuple(names[label].replace("_", " ") for label in range(len(names)))


def portions(items: list[Item], *shares: float) -> list[list[Item]]:
    """Split by shares of every class, rounded: first the rest, then a list per share; by hash of the paths."""
    by_label: dict[int, list[int]] = defaultdict(list)
    for place in sorted(range(len(items)), key=lambda place: _hash(items[place][0])):
        by_label[items[place][1]].append(place)
    part = np.zeros(len(items), dtype=np.int64)
    for places in by_label.values():
        start = 0
        for number, share in enumerate(shares, 1):
            end = start + round(share * len(places))
            part[places[start:end]] = number
            start = end
    return [[items[place] for place in np.flatnonzero(part == number)] for number in range(len(shares) + 1)]


def _hash(path: str) -> bytes:
    return hashlib.blake2b(path.encode(), digest_size=8).digest()


def held_out(trainval: list[Item], test: list[Item]) -> Splits:
    """Hold out a fifth of every class of `trainval`, CoOp's share, for validation."""
    train, val = portions(trainval, 0.2)
    return {"train": train, "val": val, "test": test}


def divided(items: list[Item]) -> Splits:
    """Split every class 50/20/30, CoOp's shares."""
    test, train, val = portions(items, 0.5, 0.2)
    return {"train": train, "val": val, "test": test}
