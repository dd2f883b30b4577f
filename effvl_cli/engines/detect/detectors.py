"""The detector of a command: what the options ask for, with the subclasses that the training images have."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from effvl_cli.config.detect_train import TrainingOptions
from effvl_cli.config.options import ModelOptions
from effvl_cli.core import distributed
from effvl_cli.core.errors import DataError, ModelError
from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.common.verified_files import ONNX
from effvl_cli.models import network as networks
from effvl_cli.models.detector_spec import FAMILY, PRESETS, DetectorSpec
from effvl_cli.models.detector_weights import start, with_norm
from effvl_cli.models.network import Network

CONDITIONS = ("day", "night")
SMALLEST = 32  # px, shorter side that a detector can work at
FEW = 50  # boxes of a class by night below which a subclass is hardly learned


def boxes_by_condition(source: BoxSource) -> Tensor:
    """(2, C) number of boxes of each class by day and by night; images without a tag count as by day."""
    counts = torch.zeros(len(CONDITIONS), len(source.classes), dtype=torch.int64)
    for record in source.records:
        labels = torch.from_numpy(record.labels[~record.ignore]) - 1
        counts[int(record.time == "night")] += torch.bincount(labels, minlength=counts.shape[1])
    return counts


def spec_for(config: TrainingOptions, source: BoxSource, run: Run, weights: str | None) -> DetectorSpec:
    """What the options ask for, with the subclasses that the training images have.

    Raises:
        UsageError: options that do not fit one another.
    """
    spec = with_norm(asked_spec(config), config.norm, weights, _share(config))
    return spec.without(_present(source, run)) if config.subclass else spec


def asked_spec(config: TrainingOptions) -> DetectorSpec:
    """What the options ask for, whatever the images.

    Raises:
        UsageError: options that do not fit one another.
    """
    return DetectorSpec.of(
        config.preset,
        num_stages=config.num_stages,
        iou=config.iou or None,
        loss_weights=config.loss_weights or None,
        box_loss_beta=config.box_loss_beta,
        class_agnostic=config.class_agnostic,
        head_width=config.head_width,
        min_size=config.min_size or _shorter_side(config),
        max_size=config.max_size,
        roi_aligned=config.roi_aligned,
        score_avg=config.score_avg,
        merge=config.merge,
        resample=config.resample,
        stage_grad_scale=config.stage_grad_scale,
        conditions=CONDITIONS if config.subclass else (),
    )


def _shorter_side(config: TrainingOptions) -> tuple[int, ...] | None:
    """--min-size where --max-size alone is given: in proportion to the preset's; None: the preset's."""
    if config.max_size is None:
        return None
    usual = PRESETS[config.preset]
    return tuple(max(SMALLEST, round(side * config.max_size / usual.max_size)) for side in usual.min_size)


def _present(source: BoxSource, run: Run) -> Tensor:
    """(2, C) bool: the subclasses that are learned. Warns of those that have few boxes."""
    counts = boxes_by_condition(source)
    empty = [name for name, row in zip(CONDITIONS, counts, strict=True) if not row.sum()]
    for condition in empty:
        run.warn(f"no boxes of {condition} images: subclasses of the other condition alone")
    for name, number in zip(source.classes, counts[1].tolist(), strict=True):
        if not empty and number < FEW:
            what = "is little for a subclass" if number else "gives it no subclass of its own"
            run.warn(f"{name} has {number} boxes by night, which {what}")
    return counts > 0


def check_start(config: TrainingOptions, earlier: str | None = None) -> None:
    """Refuse start weights that do not fit, whatever the images.

    Args:
        config: options.
        earlier: run folder whose detector is trained further, unless --weights are given; None: none.

    Raises:
        UsageError: options that do not fit one another.
        ModelError: weights that are missing, damaged or another network's.
    """
    weights = config.weights or earlier
    if weights in (None, "none"):
        return
    spec = with_norm(asked_spec(config), config.norm, weights, _share(config))
    start(spec, weights, num_classes=1, seed=config.seed, options=ModelOptions(download=config.download))


def _share(config: TrainingOptions) -> int:
    """Images of a process at a time."""
    assert config.batch_size is not None
    return config.batch_size // config.accumulate // distributed.world().size


def new_detector(config: TrainingOptions, source: BoxSource, run: Run, earlier: str | None = None) -> Network:
    """The detector that a training begins with.

    Args:
        config: options.
        source: training images.
        run: log and warnings.
        earlier: run folder whose detector is trained further, unless --weights are given; None: none.

    Raises:
        UsageError: options that do not fit one another.
        DataError: the detector of `earlier` has other classes.
        ModelError: weights that are missing, damaged or another network's.
    """
    weights = config.weights or earlier
    if weights and weights == earlier:
        check_classes(networks.manifest_of(earlier).get("classes", ()), source, earlier)
    return start(
        spec_for(config, source, run, weights),
        weights,
        num_classes=len(source.classes),
        seed=config.seed,
        options=ModelOptions(download=config.download),
        log=run.log,
    )


def load_detector(folder: str | None, source: BoxSource, run: Run) -> Network:
    """The detector of a run, on the run's device.

    Args:
        folder: of the run.
        source: images that it is for.
        run: device and log.

    Raises:
        DataError: the images are of other classes.
        ModelError: there is no detector.
    """
    network = open_detector(folder, run)
    check_classes(network.manifest.get("classes", ()), source, str(folder))
    return network


def open_detector(folder: str | Path | None, run: Run | None = None) -> Network:
    """The detector of a run, whatever its classes are.

    Args:
        folder: of the run that trained it.
        run: the one on whose device it is to be; None: the CPU.

    Raises:
        ModelError: there is no detector.
    """
    folder = None if folder is None else str(folder)
    if not str(networks.manifest_of(folder).get("model", "")).startswith(f"{FAMILY}:"):
        hint = "Give a run of `effvl detect` or `effvl detect train`"
        exported = Path(str(folder)) / ONNX if Path(str(folder)).is_dir() else Path(str(folder))
        if exported.suffix == ".onnx" and exported.is_file():
            hint = f"`effvl detect predict` and `eval` take its file as --onnx {exported}"
        raise ModelError(f"{folder} holds no detector", hint)
    network = networks.load(None, folder, default=FAMILY, kind="detector", log=run.log if run else None)
    if run is not None:
        network.module.to(run.device)
    return network


def classes_of(network: Network) -> tuple[str, ...]:
    """Names of the classes, as the run's manifest says."""
    names = network.manifest.get("classes") or [f"class {k + 1}" for k in range(network.module.num_classes)]
    return tuple(map(str, names))


def describe(network: Network, source: BoxSource, **more: object) -> dict[str, object]:
    """What the manifest of a detector says."""
    return {**network.describe(), "classes": list(source.classes), "conditions": list(CONDITIONS), **more}


def check_classes(theirs: Sequence[str], source: BoxSource, where: str) -> None:
    """Refuse data of other classes than a detector's.

    Raises:
        DataError: names those that differ, and both numbers.
    """
    if tuple(theirs) == source.classes:
        return
    missing = [name for name in source.classes if name not in theirs]
    further = [name for name in theirs if name not in source.classes]
    raise DataError(
        f"{where} has {len(theirs)} classes ({', '.join(theirs)}), and {source.name} has {len(source.classes)} "
        f"({', '.join(source.classes)}); unknown to the detector: {', '.join(missing) or 'none'}; "
        f"not in the data: {', '.join(further) or 'none'}",
        "Give data of the same classes in the same order, e.g. with --map",
    )
