"""Class maps: from the classes of a data set to those that are wanted.

The value of a class is a wanted class, `ignore` (its boxes are neither objects nor background) or `drop`; `*` stands
for every class that is not named.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from effvl_cli.config.recipe_file import read_yaml
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.registry import nearest
from effvl_cli.data.boxes import BoxRecord, BoxSource, Problems

IGNORE, DROP, REST = "ignore", "drop", "*"

MAPS: dict[str, dict[str, str]] = {
    "bdd100k-4": {
        **dict.fromkeys(("pedestrian", "person"), "pedestrian"),
        **dict.fromkeys(("car", "truck", "bus"), "vehicle"),
        **dict.fromkeys(("motorcycle", "motor"), "scooter"),
        **dict.fromkeys(("bicycle", "bike"), "bicycle"),
        **dict.fromkeys(("rider", "train", "other vehicle", "other person", "trailer"), IGNORE),
        **dict.fromkeys(("traffic light", "traffic sign"), DROP),
    },
    "coco-4": {
        "person": "pedestrian",
        **dict.fromkeys(("car", "bus", "truck"), "vehicle"),
        "motorcycle": "scooter",
        "bicycle": "bicycle",
        "train": IGNORE,
        REST: DROP,
    },
    "kitti-4": {
        **dict.fromkeys(("Pedestrian", "Person_sitting"), "pedestrian"),
        **dict.fromkeys(("Car", "Van", "Truck"), "vehicle"),
        "Cyclist": "bicycle",
        **dict.fromkeys(("Tram", "Misc", "DontCare"), IGNORE),
    },
    "three": {
        "pedestrian": "pedestrian",
        "vehicle": "vehicle",
        **dict.fromkeys(("scooter", "bicycle"), "rider"),
    },
}
"""Maps by name: to the four classes of road-scenes, and from those to three. `kitti-4` has no scooter."""

ORDER = ("pedestrian", "vehicle", "scooter", "bicycle", "rider")


def class_map(given: str | Mapping[str, str]) -> dict[str, str]:
    """A map by its name, from a YAML file, or as "person=pedestrian,car=vehicle,train=ignore".

    Raises:
        UsageError: no such map or file.
        DataError: the file holds no map.
    """
    if not isinstance(given, str):
        return dict(given)
    if given in MAPS:
        return MAPS[given]
    if "=" in given:
        pairs = [part.partition("=") for part in given.split(",")]
        if all(name.strip() and target.strip() for name, _, target in pairs):
            return {name.strip(): target.strip() for name, _, target in pairs}
    path = Path(given)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        found = read_yaml(path)
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            return found
        raise DataError(f"{path} is no class map", "Write one `class: target` a line")
    raise UsageError(
        f"--map {given} is no class map",
        nearest(given, MAPS) or f"Give {', '.join(MAPS)}, a YAML file, or 'person=pedestrian,car=vehicle,train=ignore'",
    )


def wanted_classes(chosen: Mapping[str, str]) -> tuple[str, ...]:
    """Target classes of a map; those of the four in their usual order, others as they come."""
    targets = dict.fromkeys(target for target in chosen.values() if target not in (IGNORE, DROP))
    return tuple(sorted(targets, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)))


def mapped(
    source: BoxSource,
    chosen: str | Mapping[str, str] | None,
    *,
    classes: tuple[str, ...] | None = None,
    unknown: str = "error",
) -> BoxSource:
    """The same images with other classes.

    Args:
        source: images with boxes.
        chosen: a map; None: classes keep their names.
        classes: all classes that are wanted; None: those of the map.
        unknown: what a class that the map does not name does: "error", "drop" or "ignore".

    Raises:
        UsageError: no such map.
        DataError: classes that the map does not name, a target that is not wanted, or no box is left.
    """
    if chosen is None and classes is None and IGNORE in source.classes:
        chosen = {name: name for name in source.classes}  # as `effvl detect convert` writes boxes of no class
    if chosen is None and classes is None:
        return source
    own = {name: name for name in (*(classes or ()), IGNORE)}  # boxes of no class, as `convert` writes them, stay such
    table = own if chosen is None else class_map(chosen)
    classes = classes or wanted_classes(table)
    targets = _targets(source, table, classes, unknown)
    _count(source, targets, table, source.problems)
    numbers = {name: number for number, name in enumerate(classes, 1)} | {IGNORE: 0, DROP: -1}
    labels = np.array([0, *(numbers[targets[name]] for name in source.classes)], dtype=np.int64)
    records = [_relabelled(record, labels) for record in source.records]
    if not any((record.labels > 0).any() for record in records):
        raise DataError(f"{source.name}: no box of split {source.split} has a wanted class", "Check --map")
    return source.with_records(records, classes=classes, category_ids=_category_ids(source, targets, classes))


def _category_ids(source: BoxSource, targets: Mapping[str, str], classes: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of the classes in the annotation file where all keep their names; else 1..C."""
    if any(targets.get(name) != name for name in classes):
        return ()
    return tuple(source.category_ids[source.classes.index(name)] for name in classes)


def _targets(source: BoxSource, table: Mapping[str, str], classes: tuple[str, ...], unknown: str) -> dict[str, str]:
    """Target of each class of the source."""
    missing = [name for name in source.classes if name not in table and REST not in table]
    if missing and unknown == "error":
        counts = source.summary()[0]["per_class"]
        listed = ", ".join(f"{name} ({counts[name]} boxes)" for name in missing)
        raise DataError(
            f"{source.name}: {len(missing)} classes are not in the class map: {listed}",
            "Add them to --map, or give --unknown drop or ignore",
        )
    found = {name: table.get(name, table.get(REST, unknown)) for name in source.classes}
    for name, target in found.items():
        if target not in (*classes, IGNORE, DROP):
            raise DataError(
                f"{source.name}: class {name!r} is mapped to {target!r}, which is none of {', '.join(classes)}",
                f"Give one of them, {IGNORE} or {DROP}",
            )
    return found


def _count(source: BoxSource, targets: Mapping[str, str], table: Mapping[str, str], problems: Problems) -> None:
    """Note the boxes that are lost to it."""
    counts = source.summary()[0]["per_class"]
    for name, target in targets.items():
        known = name in table or REST in table
        if target in (IGNORE, DROP):
            kind = {IGNORE: "ignored", DROP: "dropped"}[target] if known else "unknown"
            problems.add(kind, f"{counts[name]} boxes of {name}", counts[name])


def _relabelled(record: BoxRecord, labels: Any) -> BoxRecord:
    new = labels[record.labels]
    ignored = replace(record, ignore=record.ignore | (new == 0))
    return ignored.keep(new >= 0, new)
