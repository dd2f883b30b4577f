"""Detections as a COCO results file: a list of {image_id, category_id, bbox [x, y, width, height], score}."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effvl_cli.core.errors import DataError
from effvl_cli.data.boxes import BoxRecord, box_arrays
from effvl_cli.data.listings import read_json

FORM = 'Expected [{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}, ...]'
FEW = 5

ResultRow = tuple[int, int, list[float], float]
"""Image, category, xyxy box and score."""


def results_json(
    records: Sequence[BoxRecord],
    detections: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int] | None = None,
    conditions: Sequence[str] = ("day", "night"),
) -> list[dict[str, Any]]:
    """Rows of a results file; `conditions` of a detection, where it has them, become a word each.

    Args:
        records: of the images.
        detections: of each image: boxes (N, 4) xyxy, scores (N,), labels (N,) from 1 and perhaps conditions (N,).
        category_ids: number in the ground-truth file of each class; by default 1..C.
        conditions: names of conditions 0, 1, ...; a negative number has none.
    """
    rows: list[dict[str, Any]] = []
    for record, found in zip(records, detections, strict=True):
        boxes, scores, labels = (np.asarray(found[key]) for key in ("boxes", "scores", "labels"))
        known = found.get("conditions")
        which = np.full(len(boxes), -1) if known is None else np.asarray(known)
        for box, score, label, condition in zip(boxes, scores, labels, which, strict=True):
            left, top, right, bottom = (float(value) for value in box)
            row: dict[str, Any] = {
                "image_id": record.image_id,
                "category_id": int(label) if category_ids is None else int(category_ids[int(label) - 1]),
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "score": round(float(score), 5),
            }
            if int(condition) >= 0:
                row["condition"] = conditions[int(condition)]
            rows.append(row)
    return rows


def parsed_results(path: Path) -> list[ResultRow]:
    """The rows of a results file, whatever images they are for.

    Raises:
        DataError: it cannot be read, or is not such a list; names the row.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list of detections", FORM)
    return [_parsed(path, number, row) for number, row in enumerate(rows)]


def by_image(
    path: Path, parsed: Sequence[ResultRow], records: Sequence[BoxRecord], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections of each image, as arrays boxes, scores, labels (from 1); empty ones included.

    Args:
        path: the file, for errors.
        parsed: its rows.
        records: of the images that the results are for.
        category_ids: number in the ground-truth file of each class.

    Raises:
        DataError: images or categories that the ground truth does not have (with their number).
    """
    places = {record.image_id: place for place, record in enumerate(records)}
    labels = {category: label for label, category in enumerate(category_ids, 1)}
    _refuse_unknown(path, "image_id", [row[0] for row in parsed], places, f"{len(records):,} images")
    _refuse_unknown(path, "category_id", [row[1] for row in parsed], labels, f"the categories {list(category_ids)}")
    images: list[list[tuple[list[float], float, int]]] = [[] for _ in records]
    for image, category, box, score in parsed:
        images[places[image]].append((box, score, labels[category]))
    return [
        {
            "boxes": box_arrays(box for box, _, _ in found),
            "scores": np.asarray([score for _, score, _ in found], dtype=np.float32),
            "labels": np.asarray([label for _, _, label in found], dtype=np.int64),
        }
        for found in images
    ]


def _parsed(path: Path, number: int, row: Any) -> ResultRow:
    """A row.

    Raises:
        DataError: of another form; names the row.
    """
    if reason := _fault(row):
        raise DataError(f"{path}: row {number} {reason}: {str(row)[:100]}", FORM)
    left, top, width, height = (float(value) for value in row["bbox"])
    box = [left, top, left + width, top + height]
    return int(row["image_id"]), int(row["category_id"]), box, float(row["score"])


def _fault(row: Any) -> str | None:
    """What is wrong with a row; None: nothing."""
    if not isinstance(row, dict):
        return "is no object"
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in row]
    if missing:
        return f"has no {missing[0]}"
    if not (isinstance(row["bbox"], list) and len(row["bbox"]) == 4 and all(map(_is_number, row["bbox"]))):
        return "has a bbox that is not four finite numbers"
    if min(float(side) for side in row["bbox"][2:]) < 0:
        return "has a bbox of negative size"
    if not _is_number(row["score"]):
        return "has a score that is no finite number"
    ids = [key for key in ("image_id", "category_id") if not _is_whole(row[key])]
    return f"has in {ids[0]} no whole number" if ids else None


def _is_number(value: Any) -> bool:
    """Whether a value, a string perhaps, is a finite number."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _is_whole(value: Any) -> bool:
    """Whether a value, a string perhaps, is a whole number."""
    try:
        return int(value) == float(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _refuse_unknown(path: Path, key: str, values: list[int], known: Mapping[int, int], what: str) -> None:
    """Refuse rows whose image or category the ground truth does not have."""
    strange = Counter(value for value in values if value not in known)
    if strange:
        first = ", ".join(str(value) for value in list(strange)[:FEW])
        raise DataError(
            f"{path}: {sum(strange.values()):,} of {len(values):,} detections have no {key} of the data "
            f"({first}{', ...' if len(strange) > FEW else ''}); they have {what}",
            "Give the results of this split, or the split of these results by --split"
            if key == "image_id"
            else "Number the categories as the annotations do",
        )
