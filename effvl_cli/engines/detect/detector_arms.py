"""Trained detectors of one run, each measured on the same images: the arms of the job, or the one of `train`."""

from collections.abc import Callable, Mapping
from typing import Any

from effvl_cli.config.detect_train import TrainingOptions
from effvl_cli.core.files import write_json
from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.detect import pictures
from effvl_cli.engines.detect.box_splits import Splits, open_splits
from effvl_cli.engines.detect.detection_figures import record_metrics
from effvl_cli.engines.detect.detector_training import check_sync_bn, train
from effvl_cli.engines.detect.detectors import asked_spec, describe
from effvl_cli.engines.detect.judged import (
    Judged,
    arm_row,
    describe_data,
    describe_detector,
    describe_figures,
    judge,
    note_recall,
    note_speed,
    pictures_of,
)
from effvl_cli.models.network import Network

Make = Callable[[TrainingOptions, BoxSource], Network]
"""From the options of an arm and the training images to the detector that it begins with."""


def train_and_measure(arms: Mapping[str, TrainingOptions], run: Run, make: Make) -> dict[str, Judged]:
    """Train and measure each arm on the same images; the last one is kept, and is what the report is about.

    Args:
        arms: options of each; they differ in the detector alone.
        run: folder, device, records.
        make: the detector that an arm begins with.

    Returns:
        What each finds.
    """
    names = list(arms)
    config = arms[names[-1]]
    for own in arms.values():  # refused before the images are read
        asked_spec(own)
        check_sync_bn(own, run.device)
    splits = open_splits(config, run)
    for source in (splits.train, splits.val, splits.test):
        run.report.data(source)
    judged: dict[str, Judged] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, own in arms.items():
        network = make(own, splits.train)
        about = train(own, run, splits, network, name)
        judged[name] = judge(network.module, pictures_of(splits.test, network), own, run)
        rows[name] = arm_row({**about, "num_stages": own.num_stages}, judged[name])
        run.check_stop()
    _report(run, splits, network, judged[names[-1]])
    run.report.technique["arms"] = rows
    if "single" in judged and len(judged) > 1:
        figure = judged["single"].figures["ap75"]
        run.report.metric("ap75_single_stage", figure, split=splits.test.split, n=len(judged["single"].found.seen))
    if splits.skipped is not None:  # not before: a run that failed in its beginning holds nothing
        run.write("dedup.json", write_json, splits.skipped)
    run.save_model(network.module.state_dict(), describe(network, splits.train))
    pictures.draw_all(run, judged, config.num_pictures)
    return judged


def _report(run: Run, splits: Splits, network: Network, judged: Judged) -> None:
    split = judged.source.split
    record_metrics(run, judged.measured, split)
    note_recall(run, judged)
    note_speed(run, judged)
    run.report.model(network.name, network.source, network.module)
    run.report.technique.update(describe_data(splits) | describe_detector(network) | describe_figures(judged))
