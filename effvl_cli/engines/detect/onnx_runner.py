"""A detector's ONNX file as a function: what stands around the graph is numpy, to be read by who runs it elsewhere.

The graph takes one image at its size. An image is scaled until it fits, lies in the upper left corner, and is followed
by zeros; with `raw` graphs the choice of detections is done here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core.errors import EffvlError, ModelError
from effvl_cli.core.files import file_or_folder
from effvl_cli.models.detector_onnx import IMAGE, OUTPUTS, PROPS
from effvl_cli.models.onnx import session

Array = NDArray[Any]
_SMALLEST = 1e-2  # px


class OnnxDetector:
    """Detections of an ONNX file of `effvl detect export`.

    Args:
        path: of the file.
        threads: of one operator; None: as many as torch has.

    Attributes:
        path: of the file.
        props: what the file says of itself.
        classes: names, in the order of the labels from 1.

    Raises:
        ModelError: missing, or not such a file.
        MissingPackageError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path = path = Path(path)
        if file_or_folder(path) != "file":
            raise ModelError(f"no file --onnx {path}", "Write one with effvl detect export")
        try:
            self.session = session(path, threads)
        except EffvlError:
            raise
        except Exception as error:  # onnxruntime raises classes of its own, which have no base
            reason = str(error).splitlines()[0]
            raise ModelError(f"--onnx {path} cannot be read: {reason}", "Write it with effvl detect export") from error
        props = self.session.get_modelmeta().custom_metadata_map.get(PROPS)
        if props is None:
            raise ModelError(f"--onnx {path} is not of effvl detect export", "Write one with it")
        try:
            self.props = _described(props, self.session)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ModelError(
                f"--onnx {path} is not what it says of itself: {reason}", "Write it again with effvl detect export"
            ) from error
        self.classes = tuple(self.props["classes"])
        self._mean, self._std = (torch.tensor(self.props[name]).reshape(3, 1, 1) for name in ("mean", "std"))

    @property
    def size(self) -> tuple[int, int]:
        """H and W of the graph."""
        height, width = self.props["size"]
        return int(height), int(width)

    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of each image: boxes (D, 4) in its pixels, scores (D,), labels (D,), conditions (D,).

        Args:
            images: (3, H, W) each, float32 in 0..1 or uint8, of any size.
        """
        return [self._one(image) for image in images]

    def _one(self, image: Tensor) -> dict[str, Tensor]:
        placed, inside = self.placed(image)
        found = self.at_size(placed)
        height, width = image.shape[-2:]
        boxes = found["boxes"].clip(0, np.array([inside[1], inside[0]] * 2, np.float32))
        found["boxes"] = boxes * np.array([width / inside[1], height / inside[0]] * 2, np.float32)
        return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in found.items()}

    def at_size(self, placed: Array) -> dict[str, Array]:
        """Detections of the graph's input (1, 3, H, W), in its pixels."""
        found = self.session.run(None, {IMAGE: placed})
        rows = found if self.props["graph"] == "full" else self.selected(*found)
        return dict(zip(OUTPUTS["full"], rows, strict=True))

    def placed(self, image: Tensor) -> tuple[Array, tuple[int, int]]:
        """The graph's input (1, 3, H, W), and height and width of the image in it."""
        pixels = image.float() / 255 if image.dtype == torch.uint8 else image
        pixels = ((pixels.cpu() - self._mean) / self._std)[None]
        height, width = image.shape[-2:]
        scale = min(
            self.props["min_size"] / min(height, width),
            self.props["max_size"] / max(height, width),
            self.size[0] / height,
            self.size[1] / width,
        )
        if scale != 1:
            pixels = F.interpolate(
                pixels, scale_factor=scale, mode="bilinear", recompute_scale_factor=True, align_corners=False
            )
        inside = int(pixels.shape[2]), int(pixels.shape[3])
        padded = F.pad(pixels, (0, self.size[1] - inside[1], 0, self.size[0] - inside[0]))
        return padded.numpy(), inside

    def selected(self, boxes: Array, scores: Array, conditions: Array) -> tuple[Array, Array, Array, Array]:
        """Detections of a `raw` graph: score, size, NMS of each class, number.

        Args:
            boxes: (R, 4), or (R, 1 + C, 4) where each class has its own.
            scores: (R, 1 + C).
            conditions: (R, 1 + C).

        Returns:
            Boxes (D, 4), scores (D,), labels (D,), conditions (D,), the surest first.
        """
        rows, columns = np.nonzero(scores[:, 1:] > self.props["score_thresh"])
        labels = columns + 1
        boxes = boxes[rows] if boxes.ndim == 2 else boxes[rows, labels]
        scores, conditions = scores[rows, labels], conditions[rows, labels]
        large = ((boxes[:, 2:] - boxes[:, :2]) >= _SMALLEST).all(1)
        boxes, scores, labels, conditions = boxes[large], scores[large], labels[large], conditions[large]
        kept = nms(boxes, scores, labels, self.props["nms_thresh"])[: self.props["detections"]]
        return boxes[kept], scores[kept], labels[kept], conditions[kept]


def _described(text: str, graph: Any) -> dict[str, Any]:
    """What a file says of itself, compared with its graph.

    Args:
        text: JSON, as `models.detector_onnx.properties`.
        graph: onnxruntime's session.

    Raises:
        ValueError: they differ, or a value is of another form.
        KeyError: one is missing.
        TypeError: one is of another type.
    """
    props: dict[str, Any] = json.loads(text)
    kind, size, names = props["graph"], [int(side) for side in props["size"]], props["classes"]
    wanted = {IMAGE: [1, 3, *size]}
    found = {one.name: list(one.shape) for one in graph.get_inputs()}
    if found != wanted:
        raise ValueError(f"its input is {found}, expected {wanted}")
    outputs = [one.name for one in graph.get_outputs()]
    if outputs != list(OUTPUTS[kind]):
        raise ValueError(f"its outputs are {', '.join(outputs)}, expected {', '.join(OUTPUTS[kind])}")
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its classes are no list of names")
    for name in ("mean", "std"):
        if len([float(value) for value in props[name]]) != 3:
            raise ValueError(f"{name} is {props[name]}, expected three numbers")
    for name in ("min_size", "max_size", "score_thresh", "nms_thresh", "detections"):
        float(props[name])
    return props


def nms(boxes: Array, scores: Array, labels: Array, threshold: float) -> Array:
    """Rows that are left, the surest first: of two of a class that overlap by more than `threshold` the surer one."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        corners = np.minimum(boxes[first, 2:], boxes[order, 2:]) - np.maximum(boxes[first, :2], boxes[order, :2])
        shared = corners.clip(0).prod(1)
        near = shared > threshold * (area[first] + area[order] - shared)
        order = order[~(near & (labels[order] == labels[first]))]
    return np.array(kept, dtype=np.int64)
