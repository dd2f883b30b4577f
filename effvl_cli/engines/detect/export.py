"""`effvl detect export`: RUN's detector as an ONNX file, which finds what the detector finds."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from effvl_cli.config.detect_export import ExportConfig
from effvl_cli.core.checkpoint import sha256
from effvl_cli.core.errors import CheckError
from effvl_cli.core.find_run import find_run
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.common.verified_files import ONNX
from effvl_cli.engines.detect.detectors import classes_of, open_detector
from effvl_cli.engines.detect.fixed_images import road_images, size_of
from effvl_cli.engines.detect.onnx_runner import OnnxDetector
from effvl_cli.models.detector import CascadeRCNN
from effvl_cli.models.detector_graph import FixedSize
from effvl_cli.models.detector_onnx import halve, properties, write_onnx

Detected = Mapping[str, NDArray[Any]]
MARGIN = 1e-3  # above the threshold; a detection nearer to it may fall on either side
BOX_ERROR, SCORE_ERROR = 0.05, 1e-4  # px, and of a probability


@dataclass(frozen=True)
class Parity:
    """How far a file finds what the detector finds.

    Attributes:
        detections: sure ones of the detector.
        lonely: sure ones of either that the other one has not.
        box: largest difference of a coordinate, px.
        score: largest difference of a score.
        worst: one that is lonely, else the pair that differs most, in words.
    """

    detections: int
    lonely: int
    box: float
    score: float
    worst: str

    @property
    def holds(self) -> bool:
        """Whether every sure detection has its like."""
        return not self.lonely and self.box <= BOX_ERROR and self.score <= SCORE_ERROR


def run(config: ExportConfig, run: Run) -> None:
    """Write the file, compare, keep it; one of half precision is compared before and after its weights are rounded.

    Raises:
        CheckError: onnxruntime finds something else.
        ModelError: no detector in RUN, or one that cannot be written.
    """
    network = open_detector(find_run("detect", config.run), run)
    classes = classes_of(network)
    size = size_of(config.size, network.module.spec)
    module: CascadeRCNN = copy.deepcopy(network.module).cpu().eval()
    if module.roi_heads.merge == "gated":
        run.warn("a file does not know whether it is day or night: merge gated is exported as max")
        module.roi_heads.merge = "max"
    run.report.model(network.name, network.source, network.module)
    images = [torch.full((3, *size), 0.5), *road_images(config.num_check - 1, size, config.seed)]
    props = properties(module, classes, size, config.graph)

    def write(path: Path) -> list[Parity]:
        candidate = path.with_name(f".{path.name}")
        try:
            write_onnx(FixedSize(module, size, full=config.graph == "full"), candidate, props, config.opset)
            found = [compared(module, OnnxDetector(candidate), images)]
            if not found[0].holds:
                what = f"{path.name} finds something else in onnxruntime: {found[0].worst}"
                raise CheckError(what, "Nothing is written")
            if config.precision == "fp16":
                halve(candidate)
                found.append(compared(module, OnnxDetector(candidate), images))
            candidate.replace(path)
        finally:
            candidate.unlink(missing_ok=True)
        return found

    found = run.write(ONNX, write)
    if found is not None:
        _record(run, config, props, found)


def compared(module: CascadeRCNN, file: OnnxDetector, images: Sequence[Tensor]) -> Parity:
    """Detections of a file beside those of the detector, in images of the file's size."""
    found = []
    for number, image in enumerate(images, start=1):
        placed, _ = file.placed(image)
        with torch.no_grad():
            wanted = module.at_size(ImageList(torch.from_numpy(placed), [file.size]))[0][0]
        ours = {name: values.numpy() for name, values in wanted.items()}
        found.append(_in_image(ours, file.at_size(placed), file.props["score_thresh"] + MARGIN, f"image {number}"))
    return joined(found)


def _in_image(ours: Detected, theirs: Detected, sure: float, where: str) -> Parity:
    """The detections of one image; those surer than `sure` need their like."""
    pairs = _pairs(ours, theirs, sure)
    lonely = [
        f"{where}: {finder} finds {_text(mine, row)}, and {other} does not"
        for mine, others, finder, other in (
            (ours, theirs, "the detector", "the file"),
            (theirs, ours, "the file", "the detector"),
        )
        for row, partner in _pairs(mine, others, sure).items()
        if partner is None
    ]
    found = [
        Parity(
            1,
            0,
            float(np.abs(ours["boxes"][row] - theirs["boxes"][partner]).max()),
            float(abs(ours["scores"][row] - theirs["scores"][partner])),
            f"{where}: {_text(ours, row)} is {_text(theirs, partner)}",
        )
        for row, partner in pairs.items()
        if partner is not None
    ]
    whole = joined(found)
    return replace(whole, lonely=len(lonely), worst=lonely[0]) if lonely else whole


def joined(found: Sequence[Parity]) -> Parity:
    """That of several pairs or images as one."""
    found = [Parity(0, 0, 0.0, 0.0, ""), *found]
    worst = max(found, key=lambda one: (one.lonely, max(one.box / BOX_ERROR, one.score / SCORE_ERROR)))
    detections, lonely = (sum(getattr(one, name) for one in found) for name in ("detections", "lonely"))
    return Parity(detections, lonely, max(one.box for one in found), max(one.score for one in found), worst.worst)


def _pairs(mine: Detected, others: Detected, sure: float) -> dict[int, int | None]:
    """For each sure row of `mine` the nearest free row of `others` of the same class, the surest first."""
    free: set[int | None] = set(range(len(others["scores"])))
    found: dict[int, int | None] = {}
    for row in np.argsort(-mine["scores"], kind="stable").tolist():
        if mine["scores"][row] > sure:
            alike = [k for k in free if k is not None and others["labels"][k] == mine["labels"][row]]
            distance = [float(np.abs(others["boxes"][k] - mine["boxes"][row]).sum()) for k in alike]
            found[row] = alike[int(np.argmin(distance))] if alike else None
            free.discard(found[row])
    return found


def _text(found: Detected, row: int) -> str:
    corners = ", ".join(f"{value:.3f}" for value in found["boxes"][row])
    return f"class {int(found['labels'][row])} at ({corners}) with {float(found['scores'][row]):.6f}"


def _record(run: Run, config: ExportConfig, props: Mapping[str, Any], found: Sequence[Parity]) -> None:
    path, last = run.path(ONNX), found[-1]
    run.report.technique["export"] = {
        **props,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "opset": config.opset,
        "weights": config.precision,
        "images": config.num_check,
        "parity": [asdict(one) for one in found],
    }
    if not last.detections:
        run.warn("the detector finds nothing in the images of the check, which compared nothing but that")
    for name, value, unit in (("box", last.box, "px"), ("score", last.score, "score")):
        metric = f"max_{name}_error"
        run.report.metric(metric, value, unit=unit, higher_is_better=False, n=last.detections)


def table(report: Report) -> Table:
    """The file, and how near it is to the detector."""
    about = report.technique["export"]
    size, megabytes = "x".join(map(str, about["size"])), f"{about['bytes'] / 1e6:.1f}"
    rows = tuple(
        (
            *(about["file"], about["graph"], size, weights, megabytes if weights == about["weights"] else None),
            *(f"{one['detections']} in {about['images']}", one["lonely"], f"{one['box']:.1e}", f"{one['score']:.1e}"),
        )
        for weights, one in zip(("fp32", "fp16"), about["parity"], strict=False)
    )
    columns = (
        "file",
        "graph",
        "image",
        "weights",
        "MB",
        "detections",
        "of one only",
        "box differs px",
        "score differs",
    )
    note = f"allowed with fp32: {BOX_ERROR} px and {SCORE_ERROR:g}; eval and predict take the file as --onnx"
    return Table(report.command, columns, rows, (note,))


def preview(config: ExportConfig) -> list[Table]:
    """What is written."""
    network = open_detector(find_run("detect", config.run))
    size = size_of(config.size, network.module.spec)
    row = (network.name, config.graph, "x".join(map(str, size)), config.precision, config.opset, config.num_check)
    return [Table("what is written", ("detector", "graph", "image", "weights", "opset", "images compared"), (row,))]
