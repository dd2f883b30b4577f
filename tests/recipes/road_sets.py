"""Tiny copies of road data sets, in the folders and files that the real ones have."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

FRAMES = {"train": 24, "val": 6, "test": 6}
SIZE = (96, 64)  # width, height
COCO_CLASSES = {
    1: "person",
    2: "bicycle",
    3: "car",
    4: "motorcycle",
    6: "bus",
    7: "train",
    8: "truck",
    10: "traffic light",
}
BDD_CLASSES = ("car", "pedestrian", "traffic light", "rider", "bicycle", "motorcycle", "truck")
_draw = np.random.default_rng(0)


def frame(path: Path, night: bool) -> None:
    """A picture of noise, dark at night."""
    path.parent.mkdir(parents=True, exist_ok=True)
    top = 60 if night else 255
    Image.fromarray(_draw.integers(0, top, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).save(path, quality=90)


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def coco_file(path: Path, images: Path, split: str, names: dict[int, str], first: int, tags: bool) -> None:
    """Annotations of one split, an object of each category in turn; `tags`: times of day and scenes on each image."""
    rows, boxes = [], []
    for number in range(FRAMES[split]):
        row = {"id": first + number, "file_name": f"{split}_{number:04d}.jpg", "width": SIZE[0], "height": SIZE[1]}
        night = number % 2 == 1
        if tags:
            row |= {"timeofday": "night" if night else "day", "scene": f"{split}_road"}
        frame(images / row["file_name"], night)
        rows.append(row)
        for turn in range(2):
            category = list(names)[(2 * number + turn) % len(names)]
            box = [10 + 40 * turn, 12, 30, 40]
            boxes.append(
                {
                    "id": len(boxes),
                    "image_id": row["id"],
                    "category_id": category,
                    "bbox": box,
                    "area": 1200,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in names.items()]
    write(path, {"images": rows, "annotations": boxes, "categories": categories})


def road_daynight(folder: Path) -> None:
    for first, split in ((0, "train"), (50, "test")):
        names = dict(enumerate(("bike", "bus", "car", "truck")))
        coco_file(folder / f"{split}.json", folder / "images", split, names, first, tags=True)


def coco(folder: Path) -> None:
    for split in ("train", "val"):
        file = folder / "annotations" / f"instances_{split}2017.json"
        coco_file(file, folder / f"{split}2017", split, COCO_CLASSES, 1, tags=False)


def ivs(folder: Path) -> None:
    names = dict(enumerate(("pedestrian", "vehicle", "scooter", "bicycle"), 1))
    for split in ("train", "val"):
        coco_file(folder / f"{split}.json", folder / "images", split, names, 1, tags=False)


def bdd100k(folder: Path) -> None:
    for split in ("train", "val"):
        rows = []
        for number in range(FRAMES[split]):
            night = number % 2 == 1
            name = f"{split}-{number:04d}.jpg"
            frame(folder / "images" / "100k" / split / name, night)
            labels = [
                {
                    "id": str(turn),
                    "category": BDD_CLASSES[(2 * number + turn) % len(BDD_CLASSES)],
                    "box2d": {"x1": 10.0 + 40 * turn, "y1": 12.0, "x2": 40.0 + 40 * turn, "y2": 52.0},
                }
                for turn in range(2)
            ]
            rows.append({"name": name, "attributes": {"timeofday": "night" if night else "daytime"}, "labels": labels})
        write(folder / "labels" / "det_20" / f"det_{split}.json", rows)


def carla_road(folder: Path) -> None:
    kinds = ("vehicle", "bike", "motobike", "traffic_light", "traffic_sign")
    lists: dict[str, list[str]] = {split: [] for split in FRAMES}
    for town, split in zip((1, 2, 5), FRAMES, strict=True):
        for number in range(FRAMES[split]):
            stem = f"Town{town:02d}_{1000 + 60 * number:06d}"
            frame(folder / "JPEGImages" / f"{stem}.jpg", night=False)
            objects = "".join(
                f"<object><name>{kinds[(2 * number + turn) % 5]}</name><difficult>0</difficult><bndbox>"
                f"<xmin>{10 + 40 * turn}</xmin><ymin>12</ymin>"
                f"<xmax>{40 + 40 * turn}</xmax><ymax>52</ymax></bndbox></object>"
                for turn in range(2)
            )
            size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
            text = f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>"
            write(folder / "Annotations" / f"{stem}.xml", text)
            lists[split].append(stem)
    lists["trainval"] = lists["train"] + lists["val"]
    for name, stems in lists.items():
        write(folder / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{stem}\n" for stem in stems))


SETS = {make.__name__: make for make in (road_daynight, carla_road, bdd100k, coco, ivs)}
