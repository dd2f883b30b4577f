"""`effvl detect eval`: figures of a run's detector, of an exported one, or of a file of detections."""

from pathlib import Path

import torch

from effvl_cli.config.detect_eval import EvalConfig
from effvl_cli.core.run import Run
from effvl_cli.data.box_batches import Pictures, Shrink
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.detect import pictures, tables
from effvl_cli.engines.detect.box_splits import open_tagged
from effvl_cli.engines.detect.coco_results import read_results
from effvl_cli.engines.detect.detecting import Found, over_batches
from effvl_cli.engines.detect.detection_figures import record_metrics
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


def run(config: EvalConfig, run: Run) -> None:
    """Detect, or read detections, and measure."""
    source = open_tagged(config, config.split, run)
    run.report.data(source)
    if config.results:
        name, judged = config.results, _of_file(config.results, source, run)
    elif config.onnx:
        name, judged = config.onnx, _of_onnx(config.onnx, config, run, source)
    else:
        name, judged = "detector", _of_run(config, run, source)
    record_metrics(run, judged.measured, config.split)
    note_recall(run, judged)
    run.report.technique.update(describe_figures(judged, config.by))
    run.report.technique["arms"] = {name: arm_row({}, judged)}
    pictures.draw_all(run, {"eval": judged}, config.num_pictures)


def _of_file(path: str, source: BoxSource, run: Run) -> Judged:
    """What a file of any program says."""
    rows = read_results(Path(path), source.records, source.category_ids)
    detections = [{name: torch.from_numpy(values) for name, values in row.items()} for row in rows]
    for one in detections:
        one["conditions"] = torch.full_like(one["labels"], -1)
    return measured(source, Found(list(range(len(source))), detections, 0.0), run)


def _of_onnx(path: str, config: EvalConfig, run: Run, source: BoxSource) -> Judged:
    """What an exported detector finds."""
    detector = OnnxDetector(path)
    check_classes(detector.classes, source, f"--onnx {path}")
    images = Pictures(source, Shrink(detector.props["min_size"], detector.props["max_size"]))
    judged = measured(source, over_batches(lambda batch: detector(batch.images), images, config, run), run)
    note_speed(run, judged)
    return judged


def _of_run(config: EvalConfig, run: Run, source: BoxSource) -> Judged:
    """What RUN's detector finds."""
    network = load_detector(config.run, source, run)
    if config.merge is not None:
        network.module.roi_heads.merge = config.merge
    judged = judge(network.module, pictures_of(source, network), config, run)
    note_speed(run, judged)
    run.report.model(network.name, network.source, network.module)
    run.report.technique.update(describe_detector(network) | {"merge": network.module.roi_heads.merge})
    return judged
