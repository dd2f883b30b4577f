"""Small COCO data sets on disk."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def scene(seed: int, light: float = 1.0, noise: float = 0.0, size: tuple[int, int] = (50, 80)) -> np.ndarray:
    """A smooth random scene (H, W, 3) of mean luminance about 127 times `light`."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(60, 195, (5, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)) * light
    fresh = np.random.default_rng(seed + int(1000 * light)).normal(0, noise, smooth.shape) if noise else 0
    return (smooth + fresh).clip(0, 255).astype(np.uint8)


def write_coco(folder: Path, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """`images/*.png` and a file for each split.

    Args:
        folder: to make.
        splits: for each the images: file_name, pixels, boxes [x, y, width, height] of class car, and whatever else an
            image of COCO says.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        images, annotations = [], []
        for number, row in enumerate(rows, 1):
            about = {key: value for key, value in row.items() if key not in ("pixels", "boxes")}
            height, width = row["pixels"].shape[:2]
            Image.fromarray(row["pixels"]).save(folder / "images" / row["file_name"])
            images.append({"id": number, "height": height, "width": width, **about})
            for box in row.get("boxes", ([10, 10, 20, 15],)):
                area = box[2] * box[3]
                one = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box, "area": area}
                annotations.append({**one, "iscrowd": 0})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
        (folder / f"{split}.json").write_text(json.dumps(content))
