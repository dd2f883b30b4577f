"""The images of a training: tagged by day and night, and without near-duplicates where that is asked for."""

from dataclasses import dataclass
from typing import Any

from effvl_cli.config.detect_eval import EvalConfig
from effvl_cli.config.detect_tag import TagConfig
from effvl_cli.config.detect_train import TrainingOptions
from effvl_cli.core.errors import DataError
from effvl_cli.core.run import Run
from effvl_cli.data import SPLITS
from effvl_cli.data.box_batches import Augment, BoxBatch, Pictures, Shrink, training_batches
from effvl_cli.data.boxes import BoxSource
from effvl_cli.data.loader import loader_workers
from effvl_cli.data.mixing import MixedSampler
from effvl_cli.engines.common.batches import Stream, check_divides
from effvl_cli.engines.detect.box_data import open_boxes, splits_of
from effvl_cli.engines.detect.near_duplicates import deduplicated
from effvl_cli.engines.detect.tags import Tagger
from effvl_cli.models.detector_spec import DetectorSpec

JITTER = 0.3  # largest change of brightness and contrast
JITTER_OF_SUBCLASSES = 0.1  # of brightness, where night is told from day


@dataclass(frozen=True)
class Splits:
    """What is trained on, chosen by and measured on.

    Attributes:
        train: images without the near-duplicates.
        val: that choose the best step.
        test: that are measured once.
        skipped: what `dedup.json` says; None where it was not asked for.
    """

    train: BoxSource
    val: BoxSource
    test: BoxSource
    skipped: dict[str, Any] | None = None


def open_splits(config: TrainingOptions, run: Run) -> Splits:
    """All splits of the data.

    Raises:
        UsageError: no image is drawn from, or fewer than a batch takes.
        DataError: missing or unreadable, or splits of different classes.
    """
    tagger = tagger_of(config, run)
    opened = [open_boxes(config, split, run, seed=config.seed) for split in SPLITS]
    for source in opened[1:]:
        if source.classes != opened[0].classes:
            raise DataError(
                f"the classes of {source.split} are {', '.join(source.classes)}, of train "
                f"{', '.join(opened[0].classes)}",
                "Give splits of the same classes, e.g. with --map",
            )
    _sampler(config, opened[0])  # refuses what it cannot do before the images are looked at
    train, val, test = (thinned(tagger.tagged(source), config.num_images) for source in opened)
    skipped = None
    if config.dedup:
        train, skipped = deduplicated(train, config, run, config)
    return Splits(train, val, test, skipped)


def thinned(source: BoxSource, count: int | None) -> BoxSource:
    """So many images, taken evenly; all where there are fewer."""
    if count is None or count >= len(source):
        return source
    return source.take([k * len(source) // count for k in range(count)])


def tagger_of(config: TrainingOptions | EvalConfig | TagConfig, run: Run) -> Tagger:
    """What tags the images of --data."""
    return Tagger(config, run, config, lambda: splits_of(config, "all", run, seed=config.seed))


@dataclass(frozen=True)
class TrainingBatches:
    """`stream(k)` gives this process's batches from micro-batch k on; a step takes --accumulate of them."""

    stream: Stream[BoxBatch]
    steps_per_epoch: int


def batches_for(config: TrainingOptions, source: BoxSource, spec: DetectorSpec, run: Run) -> TrainingBatches:
    """Training batches at the size that a detector works at.

    Raises:
        UsageError: batches that processes cannot share, or larger than the data.
    """
    sampler = _sampler(config, source)
    pictures = Pictures(source, Shrink(max(spec.min_size), spec.max_size))
    stream = training_batches(
        pictures,
        sampler,
        augment_of(config),
        seed=config.seed,
        workers=loader_workers(config.workers, run.device.type),
        on_bad=config.on_bad,
    )
    return TrainingBatches(stream, max(1, sampler.steps_per_epoch // config.accumulate))


def _sampler(config: TrainingOptions, source: BoxSource) -> MixedSampler:
    """What chooses the images of each micro-batch.

    Raises:
        UsageError: batches that processes cannot share, or larger than the data; or nothing to draw from.
    """
    assert config.batch_size is not None
    check_divides(config.batch_size, "--batch-size", accumulate=config.accumulate)
    return MixedSampler(source, config.batch_size // config.accumulate, config.seed, config.epoch_size)


def augment_of(config: TrainingOptions) -> Augment:
    """What is drawn for each training image; where night is told from day, its brightness changes little."""
    brightness = JITTER_OF_SUBCLASSES if config.subclass else JITTER
    return Augment(0.5, brightness, JITTER) if config.color_jitter else Augment(0.5)
