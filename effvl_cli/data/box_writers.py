"""Annotations of boxes as files of other programs: COCO's JSON and YOLO's text files."""

from collections.abc import Sequence
from typing import Any

from effvl_cli.data.boxes import BoxRecord, BoxSource
from effvl_cli.data.class_maps import IGNORE

DIGITS = 3  # of coordinates in px; float32 holds no more


def coco_json(source: BoxSource, names: Sequence[str] | None = None) -> dict[str, Any]:
    """COCO's annotations of a data set; numbers of images and of classes are the source's own.

    Lighting, sequence and frame become `timeofday`, `sequence` and `frame_id`. Ignore boxes of no class get a further
    category `ignore`, which `coco:` knows.

    Args:
        source: images with boxes.
        names: files of the images; None: as in the source's annotations.
    """
    categories = [
        {"id": number, "name": name} for number, name in zip(source.category_ids, source.classes, strict=True)
    ]
    ids = [max(source.category_ids) + 1, *source.category_ids]
    if any((record.labels == 0).any() for record in source.records):
        categories.append({"id": ids[0], "name": IGNORE})
    rows: list[dict[str, Any]] = []
    for record in source.records:
        rows += _annotations(record, ids, len(rows) + 1)
    names = names or [record.file for record in source.records]
    images = [_image(record, name) for record, name in zip(source.records, names, strict=True)]
    return {"images": images, "annotations": rows, "categories": categories}


def _image(record: BoxRecord, name: str) -> dict[str, Any]:
    found = {"id": record.image_id, "file_name": name, "width": record.width, "height": record.height}
    sequence = record.seq if record.seq_known else None  # names are read again
    more = {"timeofday": record.time, "sequence": sequence, "frame_id": record.frame}
    return {**found, **{key: value for key, value in more.items() if value is not None}}


def _annotations(record: BoxRecord, ids: Sequence[int], first: int) -> list[dict[str, Any]]:
    found = []
    columns = (record.boxes, record.labels, record.area, record.iscrowd, record.ignore)
    for number, (box, label, area, crowd, ignore) in enumerate(zip(*(c.tolist() for c in columns), strict=True), first):
        left, top, right, bottom = box
        row = {
            "id": number,
            "image_id": record.image_id,
            "category_id": ids[label],
            "bbox": [round(value, DIGITS) for value in (left, top, right - left, bottom - top)],
            "area": round(area, DIGITS),
            "iscrowd": int(crowd),
        }
        found.append({**row, IGNORE: 1} if ignore and not crowd else row)
    return found


def yolo_lines(record: BoxRecord) -> tuple[str, int]:
    """`class x y width height` in shares of the image, a box a line, and how many ignore boxes are left out of it."""
    lines = []
    for box, label in zip(record.boxes[~record.ignore].tolist(), record.labels[~record.ignore].tolist(), strict=True):
        left, top, right, bottom = box
        across, down = ((left + right) / 2, right - left), ((top + bottom) / 2, bottom - top)
        shares = (across[0] / record.width, down[0] / record.height, across[1] / record.width, down[1] / record.height)
        lines.append(f"{label - 1} {' '.join(f'{share:.6f}' for share in shares)}\n")
    return "".join(lines), int(record.ignore.sum())
