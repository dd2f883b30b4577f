"""Small data sets of images with boxes in the layouts of their formats."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("car", "person")


def picture(path: Path, size: tuple[int, int] = (40, 30), **options: Any) -> None:
    """An image of noise; its width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def coco_data(count: int = 4, **changes: Any) -> dict[str, Any]:
    """COCO's JSON of some images of 40x30 px, each with a car at (5, 6, 10, 12) and every second with a person."""
    images = [{"id": k, "file_name": f"img{k}.png", "width": 40, "height": 30} for k in range(count)]
    rows = [{"id": k, "image_id": k, "category_id": 0, "bbox": [5, 6, 10, 12]} for k in range(count)]
    rows += [{"id": count + k, "image_id": k, "category_id": 7, "bbox": [1, 2, 4, 8.5]} for k in range(0, count, 2)]
    categories = [{"id": 0, "name": "car"}, {"id": 7, "name": "person"}]
    return {"images": images, "annotations": rows, "categories": categories, **changes}


def write_coco(folder: Path, data: dict[str, Any] | None = None, name: str = "train.json") -> Path:
    """A folder with that file and its pictures in images/; gives the file."""
    data = coco_data() if data is None else data
    for image in data["images"]:
        if not (folder / "images" / image["file_name"]).exists():
            picture(folder / "images" / image["file_name"], (40, 30))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(data))
    return folder / name


def voc_object(name: str, box: tuple[float, float, float, float], more: str = "") -> str:
    """XML of an object."""
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{corners}</bndbox></object>"


def write_voc(folder: Path, pages: dict[str, str], lists: dict[str, str] | None = None) -> Path:
    """A folder with these objects of images by name, and lists of names."""
    for name, objects in pages.items():
        picture(folder / "JPEGImages" / f"{name}.jpg")
        path = folder / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        path.write_text(f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>")
    for name, text in (lists or {}).items():
        path = folder / "ImageSets" / "Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def write_yolo(folder: Path, labels: dict[str, str], page: str | None = None) -> Path:
    """A folder with images/NAME.png and labels/NAME.txt, and a data.yaml or classes.txt."""
    for name, text in labels.items():
        picture(folder / "images" / f"{name}.png")
        path = folder / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / ("data.yaml" if page else "classes.txt")).write_text(page or "\n".join(CLASSES))
    return folder


def bdd_frame(name: str, *labels: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A frame of BDD100K."""
    return {"name": name, "labels": list(labels), **more}


def bdd_label(category: str, box: tuple[float, float, float, float], **more: Any) -> dict[str, Any]:
    """A label with a box."""
    return {"category": category, "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)), **more}


def write_bdd(folder: Path, frames: list[dict[str, Any]], name: str = "labels/det_20/det_train.json") -> Path:
    """A folder with that file and its pictures."""
    for frame in frames:
        picture(folder / "images" / "100k" / "train" / frame["name"])
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(frames))
    return folder
