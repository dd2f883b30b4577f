"""`effvl detect eval`: figures of a run's detector, of an exported one, or of a file of detections."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from effvl_cli.config.detect_eval import EvalConfig
from effvl_cli.core.run import Run
from effvl_cli.core.table import counted
from effvl_cli.data.box_batches import Pictures, Shrink
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.detect import pictures, tables
from effvl_cli.engines.detect.box_data import open_boxes
from effvl_cli.engines.detect.box_splits import tagger_of
from effvl_cli.engines.detect.coco_results import ResultRow, by_image, parsed_results
from effvl_cli.engines.detect.detecting import Found, over_batches
from effvl_cli.engines.detect.detection_figures import MOST_PARTS, record_metrics
from effvl_cli.engines.detect.detectors import check_classes, load_detector
from effvl_cli.engines.detect.judged import (
    Judged,
    arm_row,
    describe_detector,
    describe_figures,
    judge,
    measured,
    note_recall,
    note_speed,
    pictures_of,
)
from effvl_cli.engines.detect.onnx_runner import OnnxDetector

table = tables.evaluated


MeasureAll = Callable[[BoxSource], Judged]
"""What is measured on images that have their tags."""


def refuse_first(config: EvalConfig) -> None:
    """Refuse a file of detections that is none, before there is a run.

    Raises:
        DataError: it cannot be read, or holds other rows.
    """
    if config.results:
        parsed_results(Path(config.results))


def run(config: EvalConfig, run: Run) -> None:
    """Detect, or read detections, and measure."""
    name, fitted = _what(config, run)
    source = open_boxes(config, config.split, run, seed=config.seed)
    measure_all = fitted(source)  # what does not fit is refused before the images are looked at
    source = tagger_of(config, run).tagged(source)
    run.report.data(source)
    judged = measure_all(source)
    _remark_scenes(config, judged, run)
    record_metrics(run, judged.measured, config.split)
    note_recall(run, judged)
    run.report.technique.update(describe_figures(judged, config.by))
    run.report.technique["arms"] = {name: arm_row({}, judged)}
    pictures.draw_all(run, {"eval": judged}, config.num_pictures)


def _what(config: EvalConfig, run: Run) -> tuple[str, Callable[[BoxSource], MeasureAll]]:
    """The name of what is measured, and what checks it against images that are not tagged yet.

    Raises:
        DataError: rows that are no detections.
        ModelError: no such file or run.
    """
    if config.results:
        return config.results, partial(_of_file, Path(config.results), parsed_results(Path(config.results)), run)
    if config.onnx:
        return config.onnx, partial(_of_onnx, OnnxDetector(config.onnx), config, run)
    return "detector", partial(_of_run, config, run)


def _of_file(path: Path, rows: Sequence[ResultRow], run: Run, images: BoxSource) -> MeasureAll:
    """What a file of any program says."""
    found = by_image(path, rows, images.records, images.category_ids)
    detections = [{name: torch.from_numpy(values) for name, values in row.items()} for row in found]
    for one in detections:
        one["conditions"] = torch.full_like(one["labels"], -1)
    return lambda source: measured(source, Found(list(range(len(source))), detections, 0.0), run)


def _of_onnx(detector: OnnxDetector, config: EvalConfig, run: Run, images: BoxSource) -> MeasureAll:
    """What an exported detector finds."""
    check_classes(detector.classes, images, f"--onnx {config.onnx}")

    def measure_all(source: BoxSource) -> Judged:
        pictures = Pictures(source, Shrink(detector.props["min_size"], detector.props["max_size"]))
        judged = measured(source, over_batches(lambda batch: detector(batch.images), pictures, config, run), run)
        note_speed(run, judged)
        return judged

    return measure_all


def _of_run(config: EvalConfig, run: Run, images: BoxSource) -> MeasureAll:
    """What RUN's detector finds."""
    network = load_detector(config.run, images, run)
    if config.merge is not None:
        network.module.roi_heads.merge = config.merge

    def measure_all(source: BoxSource) -> Judged:
        judged = judge(network.module, pictures_of(source, network), config, run)
        note_speed(run, judged)
        run.report.model(network.name, network.source, network.module)
        run.report.technique.update(describe_detector(network) | {"merge": network.module.roi_heads.merge})
        return judged

    return measure_all


def _remark_scenes(config: EvalConfig, judged: Judged, run: Run) -> None:
    """Say why there are no figures of scenes that were asked for."""
    if "scene" not in config.by or any(name.startswith("scene ") for name in judged.measured.parts):
        return
    records = [judged.source.records[index] for index in judged.found.seen]
    scenes = counted(len({record.seq for record in records}), "scene")
    run.warn(
        f"--by scene: {counted(len(records), 'image')} of {scenes} have no figures by scene, which are given of 2 to "
        f"{MOST_PARTS} scenes with two images each on average"
    )
