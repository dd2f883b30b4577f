"""What a trained detector finds in the images that a run is measured on, and how the report says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effvl_cli.core.measure import count_parameters
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data.box_batches import Pictures
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.detect.box_splits import Splits
from effvl_cli.engines.detect.coco_eval import proposal_recall
from effvl_cli.engines.detect.detecting import Found, Inside, Running, detect, shrink_of
from effvl_cli.engines.detect.detection_figures import Measured, measure, per_class, per_part
from effvl_cli.models.detector import CascadeRCNN
from effvl_cli.models.network import Network

FIGURES = ("ap", "ap50", "ap75")


@dataclass(frozen=True)
class Judged:
    """Detections of a split and their figures.

    Attributes:
        source: the images.
        found: detections and what came before them.
        measured: their figures.
        stages: AP, AP50 and AP75 of each stage's own output.
        recall: of the proposals.
    """

    source: BoxSource
    found: Found
    measured: Measured
    stages: list[dict[str, float | None]]
    recall: Mapping[str, float | None]

    @property
    def figures(self) -> dict[str, float | None]:
        """AP, AP50 and AP75 of all images, of day and of night."""
        each = self.measured.of_all_and_times.items()
        return {f"{name}{time}": figures.numbers[name] for time, (figures, _) in each for name in FIGURES}


def judge(module: CascadeRCNN, pictures: Pictures, options: Running, run: Run) -> Judged:
    """Detect, and measure the detections, the proposals and each stage.

    Args:
        module: the detector.
        pictures: of the split.
        options: of detection.
        run: device and progress.
    """
    return measured(pictures.source, detect(module, pictures, options, run, inside=True), run)


def measured(source: BoxSource, found: Found, run: Run) -> Judged:
    """Figures of detections, and of the proposals and stages where they are known; a request to stop ends it."""
    inside = found.inside or Inside()
    records = [source.records[index] for index in found.seen]
    return Judged(
        source,
        found,
        measure(source, found.detections, found.seen, by=("time", "source", "scene"), check_stop=run.check_stop),
        [_numbers(measure(source, stage, found.seen, by=(), check_stop=run.check_stop)) for stage in inside.stages],
        proposal_recall(inside.proposals, records) if inside.proposals else {},
    )


def _numbers(measured: Measured) -> dict[str, float | None]:
    return {name: measured.evaluation.whole.numbers[name] for name in FIGURES}


def pictures_of(source: BoxSource, network: Network) -> Pictures:
    """Images of a split at the size at which a detector looks at them."""
    return Pictures(source, shrink_of(network.module.spec))


def note_speed(run: Run, judged: Judged) -> None:
    """Put the images a second, of this or of the attempt that was here before, into `metrics`."""
    speed = Phases.of(run).timed("detection", lambda: judged.found.images_per_s)
    run.report.metric("images_per_s", speed, unit="images/s", split=judged.source.split)


def note_recall(run: Run, judged: Judged) -> None:
    """Put the recall of the proposals into `metrics`."""
    for name, value in judged.recall.items():
        run.report.metric(name, value, split=judged.source.split)


def describe_detector(network: Network) -> dict[str, Any]:
    """What the report says of the network."""
    spec, module = network.module.spec, network.module
    parts = {
        "backbone": module.backbone.body,
        "fpn": module.backbone.fpn,
        "rpn": module.rpn,
        "heads": module.roi_heads,
    }
    return {
        "preset": spec.preset,
        "num_stages": spec.num_stages,
        "iou": list(spec.iou),
        "reg_weights": list(spec.reg_weights),
        "norm": spec.norm,
        "merge": spec.merge,
        "conditions": list(spec.conditions),
        "absent": list(spec.absent),
        "params_by_part": {name: count_parameters(part) for name, part in parts.items()},
    }


def describe_data(splits: Splits) -> dict[str, Any]:
    """Sources, faults and skipped near-duplicates of the training images."""
    rows = splits.train.summary()
    if splits.skipped is not None:
        lost = skipped_by_source(splits.skipped)
        rows = [{**row, "n_skipped_dup": lost.get(row["name"], 0)} for row in rows]
    kept = {} if splits.skipped is None else {key: splits.skipped[key] for key in ("n_in", "n_kept", "params")}
    return {"sources": rows, "problems": splits.train.problems.to_dict(), "dedup": kept}


def skipped_by_source(summary: Mapping[str, Any]) -> dict[str, int]:
    """Number of skipped images of each source, from what `dedup.json` says."""
    lost: dict[str, int] = {}
    for row in summary["per_seq"]:
        lost[row["source"]] = lost.get(row["source"], 0) + row["n_in"] - row["n_kept"]
    return lost


def describe_figures(judged: Judged, by: Sequence[str] = ("time", "source", "scene", "class")) -> dict[str, Any]:
    """Figures by stage, by class and by part; `by` names what is given."""
    inside = judged.found.inside
    kinds = tuple(f"{kind} " for kind in ("source", "scene") if kind in by)
    parts = {
        name: row
        for name, row in per_part(judged.measured).items()
        if name.startswith(kinds) or ("time" in by and not name.startswith(("source ", "scene ")))
    }
    return {
        "split": judged.source.split,
        "per_class": per_class(judged.measured) if "class" in by else {},
        "per_part": parts,
        "stage_iou": inside.iou if inside else [],
        "ap_by_stage": judged.stages,
    }


def arm_row(about: Mapping[str, Any], judged: Judged) -> dict[str, Any]:
    """What the table shows of an arm."""
    boxes = sum(one.n_gt for one in judged.measured.evaluation.whole.per_class)
    return {**about, "figures": judged.figures, "n_gt": boxes}
