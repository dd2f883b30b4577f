"""Trains one detector, RUN's further or a new one, and measures it."""

from effvl_cli.config.detect_train import TrainConfig
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.detect import tables
from effvl_cli.engines.detect.detector_arms import train_and_measure
from effvl_cli.engines.detect.detectors import check_start, new_detector
from effvl_cli.engines.detect.preview import preview_of

table = tables.results


def refuse_first(config: TrainConfig) -> None:
    """Refuse start weights that do not fit, before there is a run.

    Raises:
        ModelError: they are missing, damaged or another network's.
    """
    check_start(config, config.run)


def preview(config: TrainConfig) -> list[Table]:
    """What it will do and cost."""
    refuse_first(config)
    return preview_of("detect train", {"train": config})


def run(config: TrainConfig, run: Run) -> None:
    """Train, measure, save."""
    train_and_measure({"train": config}, run, lambda own, source: new_detector(own, source, run, config.run))
