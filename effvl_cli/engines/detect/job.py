"""The whole job: tags, near-duplicates, detectors of one stage and of several, figures by day and night, pictures."""

import dataclasses

from effvl_cli.config.detect_train import DetectConfig, TrainingOptions
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.detect import tables
from effvl_cli.engines.detect.detector_arms import train_and_measure
from effvl_cli.engines.detect.detectors import check_start, new_detector
from effvl_cli.engines.detect.preview import preview_of

table = tables.results


def run(config: DetectConfig, run: Run) -> None:
    """Train and measure each arm on the same images; the last one is kept."""
    train_and_measure(arms_of(config), run, lambda own, source: new_detector(own, source, run))


def refuse_first(config: DetectConfig) -> None:
    """Refuse start weights that do not fit, before there is a run.

    Raises:
        ModelError: they are missing, damaged or another network's.
    """
    for own in arms_of(config).values():
        check_start(own)


def preview(config: DetectConfig) -> list[Table]:
    """What it will do and cost."""
    refuse_first(config)
    return preview_of("detect", arms_of(config))


def arms_of(config: DetectConfig) -> dict[str, TrainingOptions]:
    """The options of each arm."""
    return {arm: options_of(config, arm) for arm in config.arms}


def options_of(config: DetectConfig, arm: str) -> DetectConfig:
    """The options of an arm."""
    if arm == "cascade":
        return config
    return dataclasses.replace(config, num_stages=1, iou=config.iou[:1], loss_weights=config.loss_weights[:1])
