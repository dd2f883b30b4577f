"""Files about wrong labels: `noise.json` of a run, tables of real labels, matrices of shares."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.fewshot import positions_of
from effvl_cli.data.source import ImageSource
from effvl_cli.data.tables import read_rows
from effvl_cli.engines.prompt_tune.noisy_shots import NoisyShots

NOISE = "noise.json"
FORMAT = 1
SUM_TOLERANCE = 1e-6


def noise_document(
    source: ImageSource, sets: Iterable[NoisyShots], *, classes: Sequence[str], seed: int, shots: int | str
) -> dict[str, Any]:
    """Content of `noise.json`: a set of records for each noise rate, in the order of the images in the split.

    Equal (data, seed, rates, model, shots) give equal documents. What depends on true labels is null where they are
    not known.
    """
    return {
        "effvl": FORMAT,
        "data": source.name,
        "split": source.split,
        "classes": list(classes),
        "seed": seed,
        "shots": shots,
        "sets": [_set(source, found, len(classes)) for found in sets],
    }


def _set(source: ImageSource, found: NoisyShots, num_classes: int) -> dict[str, Any]:
    clean = [None] * len(found) if found.clean is None else found.clean.tolist()
    rows = zip(found.indices.tolist(), clean, found.given.tolist(), found.flipped.tolist(), strict=True)
    transition = found.transition(num_classes)
    return {
        "model": found.model,
        "rate": found.if_known(found.rate),
        "rate_realised": found.if_known(found.rate_realised),
        "transition": None if transition is None else transition.tolist(),
        "records": [
            {
                "sample_id": index,
                "path": source.ids[index],
                "clean_label": true,
                "given_label": given,
                "flipped": found.if_known(int(flipped)),
            }
            for index, true, given, flipped in rows
        ],
    }


def read_noise(path: Path, source: ImageSource, rate: float) -> NoisyShots:
    """The images and labels of an earlier run at one rate, which may be given in the six digits that are printed.

    Raises:
        UsageError: it has no such rate.
        DataError: not such a file, of other classes, or of images that the split does not have.
    """
    path, classes, sets = _read_document(path)
    if classes != tuple(source.classes):
        raise DataError(f"--noise-from {path} is of other classes than {source.name}", "Give one of the same data")
    known = min(sets, key=lambda other: abs(other - rate))
    if f"{known:g}" != f"{rate:g}":
        there = ", ".join(f"{other:g}" for other in sets)
        raise UsageError(f"--noise-rate is {rate:g}, and --noise-from {path} has {there}", "Give one of these")
    found, names = sets[known]
    indices = _places(path, source, found.indices, names)
    order = np.argsort(indices)
    clean = None if found.clean is None else found.clean[order]
    return NoisyShots(indices[order], clean, found.given[order], known, found.model)


def recorded_rates(path: Path) -> tuple[float, ...]:
    """The noise rates of an earlier run, in ascending order.

    Raises:
        DataError: not such a file.
    """
    return tuple(sorted(_read_document(path)[2]))


Sets = dict[float, tuple[NoisyShots, list[str]]]
"""Images and labels at each rate, and the names of the images."""


def _read_document(path: Path) -> tuple[Path, tuple[str, ...], Sets]:
    """The file, its classes, and what it holds.

    Raises:
        DataError: not such a file.
    """
    path = path / NOISE if path.is_dir() else path
    try:
        document = json.loads(path.read_bytes())
        if document["effvl"] != FORMAT:
            raise ValueError(f"its format is {document['effvl']}")
        classes = tuple(map(str, document["classes"]))
        sets = {float(found["rate"] or 0.0): _read_set(found, len(classes)) for found in document["sets"]}
        if not sets:
            raise ValueError("it holds no labels")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"--noise-from {path} cannot be read: {_reason(error)}"[:200], "Give a noise.json that prompt-tune wrote"
        ) from error
    return path, classes, sets


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON, line {error.lineno}"
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _read_set(found: dict[str, Any], num_classes: int) -> tuple[NoisyShots, list[str]]:
    """Records and the names of their images.

    Raises:
        ValueError: labels outside the classes.
        KeyError: something is missing.
        TypeError: something of another type.
    """
    rows = found["records"]
    given = np.array([int(row["given_label"]) for row in rows], dtype=np.int64)
    known = all(row["clean_label"] is not None for row in rows)
    clean = np.array([int(row["clean_label"]) for row in rows], dtype=np.int64) if known else None
    for labels in (given, given if clean is None else clean):
        if not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"labels are not 0 to {num_classes - 1}, or there are none")
    indices = np.array([int(row["sample_id"]) for row in rows], dtype=np.int64)
    shots = NoisyShots(indices, clean, given, float(found["rate"] or 0.0), str(found["model"]))
    return shots, [str(row["path"]) for row in rows]


def _places(path: Path, source: ImageSource, indices: NDArray[np.int64], names: list[str]) -> NDArray[np.int64]:
    """Where the images are now: where they were, unless the data set has changed."""
    in_range = len(indices) > 0 and indices.min() >= 0 and indices.max() < len(source)
    if in_range and all(source.ids[int(index)] == name for index, name in zip(indices, names, strict=True)):
        return indices
    found, unknown = positions_of(source, names)
    if unknown or len(np.unique(found)) < len(names):
        wrong = f"{unknown[0]} is not in {source.name}" if unknown else "an image is there twice"
        raise DataError(f"--noise-from {path}: {wrong} {source.split}", "Give a file of the same data")
    return found


def read_labels(path: Path, source: ImageSource) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """A table with the columns path and label: class names of the data set, or their numbers from 0.

    Returns:
        Positions (M,) and labels (M,) of the listed images that the split has, and a remark on the others, or "".

    Raises:
        DataError: not such a table, an unknown label, an image twice, or none that the split has.
    """
    if not path.is_file():
        raise DataError(f"no table at --labels {path}", "Give a CSV with the columns path and label")
    numbers = {str(number): number for number in range(len(source.classes))}
    numbers |= {name: number for number, name in enumerate(source.classes)}
    listed: dict[str, int] = {}
    for number, row in enumerate(read_rows(path), 1):
        name, label = row["path"], row.get("label", "").replace("_", " ")
        if label not in numbers:
            raise DataError(
                f"--labels {path} row {number}: label {row.get('label')!r} is no class of {source.name}",
                "Give class names, or numbers from 0",
            )
        if name in listed:
            raise DataError(f"--labels {path} row {number}: {name} stands there twice", "Name each image once")
        listed[name] = numbers[label]
    found, unknown = positions_of(source, listed)
    if not len(found) or len(np.unique(found)) < len(found):
        wrong = "two of its paths mean the same image" if len(found) else f"none of its {len(listed)} images is"
        raise DataError(f"--labels {path}: {wrong} in {source.name} {source.split}", "Give paths as the data set does")
    remark = f"{len(unknown)} of {len(listed)} images of --labels are not in {source.split}" if unknown else ""
    kept = [label for name, label in listed.items() if name not in set(unknown)]
    return found, np.array(kept, dtype=np.int64), remark


def read_matrix(path: Path, num_classes: int) -> NDArray[np.float64]:
    """A (K, K) matrix of shares as JSON, or as CSV without a header.

    Raises:
        DataError: not such a file; names the row.
    """
    fix = f"Give {num_classes} rows of {num_classes} shares that sum to 1, as JSON or CSV"
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.reader(text.splitlines())) if path.suffix.lower() == ".csv" else json.loads(text)
        if not isinstance(rows, list):
            raise ValueError("it is not a list of rows")
        matrix = [_shares(row, number) for number, row in enumerate(rows)]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"--noise-matrix {path} cannot be read: {_reason(error)}"[:200], fix) from error
    for number, row in enumerate(matrix):
        if len(row) != num_classes:
            raise DataError(f"--noise-matrix {path} row {number} has {len(row)} entries", fix)
    if len(matrix) != num_classes:
        raise DataError(f"--noise-matrix {path} has {len(matrix)} rows", fix)
    return _checked(np.array(matrix, dtype=np.float64), path, fix)


def _shares(row: Any, number: int) -> list[float]:
    """Numbers of a row.

    Raises:
        ValueError: something else; names the row.
    """
    if not isinstance(row, list):
        raise ValueError(f"row {number} is {row!r}, not a list of numbers")
    found = []
    for cell in row:
        try:
            found.append(float(cell))
        except (TypeError, ValueError) as error:
            raise ValueError(f"row {number} holds {cell!r}, which is no number") from error
    return found


def _checked(matrix: NDArray[np.float64], path: Path, fix: str) -> NDArray[np.float64]:
    """Rows of shares that sum to 1.

    Raises:
        DataError: they are not; names the row.
    """
    if not np.isfinite(matrix).all() or matrix.min() < 0:
        raise DataError(f"--noise-matrix {path} has entries below 0 or not finite", fix)
    wrong = np.flatnonzero(abs(matrix.sum(1) - 1) > SUM_TOLERANCE)
    if len(wrong):
        raise DataError(f"--noise-matrix {path} row {wrong[0]} sums to {matrix[wrong[0]].sum():g}", fix)
    return matrix
