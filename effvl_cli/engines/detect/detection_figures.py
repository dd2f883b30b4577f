"""What detections are worth: COCO's numbers of all images, of those by day and by night, of sources and of scenes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxRecord, BoxSource
from effvl_cli.engines.detect.coco_eval import Detections, Evaluation, Figures, bootstrap, evaluate

TIMES = ("day", "night")
NAMED = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
"""Those of COCO's numbers that are metrics; with `_day` and `_night` too."""
WITH_ERROR: Mapping[str, float | None] = {"ap": None, "ap50": 0.5, "ap75": 0.75}
"""Those that have a standard error, and their IoU."""
IOU75 = 5  # of the first axis of precision
FEW_CLASSES = 12  # of more of them, single classes are in the report, but no metrics
MOST_PARTS = 40  # sources or scenes that have figures of their own
DRAWS = 200  # resamples of the images for a standard error

_KEYS: Mapping[str, Callable[[BoxRecord], str]] = {
    "time": lambda record: record.time or "unknown",
    "source": lambda record: f"source {record.source}",
    "scene": lambda record: f"scene {record.seq}",
}


@dataclass(frozen=True)
class Measured:
    """Figures of one split.

    Attributes:
        evaluation: of all images and of each part.
        parts: positions of the images of each part, e.g. "night", "source bdd", "scene day_junction".
        classes: names.
    """

    evaluation: Evaluation
    parts: Mapping[str, list[int]]
    classes: tuple[str, ...]

    @property
    def of_all_and_times(self) -> dict[str, tuple[Figures, list[int] | None]]:
        """Figures and positions by the end of a metric's name: "", "_day", "_night"."""
        found: dict[str, tuple[Figures, list[int] | None]] = {"": (self.evaluation.whole, None)}
        for time in TIMES:
            if time in self.parts:
                found[f"_{time}"] = self.evaluation.subsets[time], self.parts[time]
        return found


def parts_of(records: Sequence[BoxRecord], by: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the images of each part; `by` holds "time", "source" and "scene".

    Of sources and scenes there are parts where there are several, with some images each.
    """
    found: dict[str, list[int]] = {}
    for kind in (kind for kind in _KEYS if kind in by):
        parts: dict[str, list[int]] = {}
        for place, record in enumerate(records):
            parts.setdefault(_KEYS[kind](record), []).append(place)
        if kind == "time" or 1 < len(parts) <= min(MOST_PARTS, len(records) / 2):
            found |= parts
    return found


def measure(
    source: BoxSource,
    detections: Sequence[Detections],
    seen: Sequence[int] | None = None,
    by: Sequence[str] = ("time",),
    check_stop: Callable[[], None] = lambda: None,
) -> Measured:
    """COCO's numbers of detections.

    Args:
        source: a split.
        detections: of its images, or of those that `seen` names.
        seen: positions.
        by: parts that have figures too: "time", "source", "scene".
        check_stop: called now and then.
    """
    records = source.records if seen is None else [source.records[index] for index in seen]
    parts = parts_of(records, by)
    return Measured(evaluate(records, detections, len(source.classes), parts, check_stop), parts, source.classes)


def record_metrics(run: Run, measured: Measured, split: str, suffix: str = "") -> None:
    """Put the figures of all images, of day and of night, and of each class, into `metrics`.

    Args:
        run: whose report.
        measured: figures.
        split: its name.
        suffix: end of every name.
    """
    for time, (figures, places) in measured.of_all_and_times.items():
        for name in NAMED:
            run.check_stop()
            about: dict[str, Any] = {"split": split, "n": figures.n_images}
            if name in WITH_ERROR:
                about["se"] = bootstrap(measured.evaluation, indices=places, iou=WITH_ERROR[name], draws=DRAWS)
            run.report.metric(f"{name}{time}{suffix}", figures.numbers[name], **about)
        if len(measured.classes) <= FEW_CLASSES:
            _record_classes(run, measured, split, time, suffix)
    day, night = (measured.evaluation.subsets[time].numbers["ap"] if time in measured.parts else None for time in TIMES)
    if day is not None and night is not None:
        run.report.metric(f"gap{suffix}", day - night, split=split, higher_is_better=False)


def _record_classes(run: Run, measured: Measured, split: str, time: str, suffix: str) -> None:
    """AP50 of each class that the images have; n is the number of its boxes."""
    figures, places = measured.of_all_and_times[time]
    for label, (name, found) in enumerate(zip(measured.classes, figures.per_class, strict=True), 1):
        if found.ap50 is not None:
            run.check_stop()
            error = bootstrap(measured.evaluation, label, places, draws=DRAWS)
            metric = f"ap50_{slug(name)}{time}{suffix}"
            run.report.metric(metric, found.ap50, split=split, n=found.n_gt, se=error)


def slug(name: str) -> str:
    """A name as part of a metric's, e.g. "traffic light" -> "traffic_light"."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()


def per_class(measured: Measured) -> dict[str, dict[str, float | int | None]]:
    """ap, ap50, ap75 of each class, by day and by night, and its number of boxes."""
    found: dict[str, dict[str, float | int | None]] = {name: {} for name in measured.classes}
    for time, (figures, _) in measured.of_all_and_times.items():
        for name, one, curve in zip(measured.classes, figures.per_class, figures.precision, strict=True):
            strict = None if one.ap is None else float(curve[IOU75].mean())
            found[name] |= {f"ap{time}": one.ap, f"ap50{time}": one.ap50, f"ap75{time}": strict}
            found[name][f"n_gt{time}"] = one.n_gt
    return found


def per_part(measured: Measured) -> dict[str, dict[str, Any]]:
    """AP, AP50 and AP75 of each part, and AP50 of its classes, by the part's name."""
    return {
        part: {
            "n_images": figures.n_images,
            "n_gt": sum(one.n_gt for one in figures.per_class),
            **{name: figures.numbers[name] for name in WITH_ERROR},
            "ap50_per_class": {
                name: one.ap50
                for name, one in zip(measured.classes, figures.per_class, strict=True)
                if one.ap50 is not None
            },
        }
        for part, figures in measured.evaluation.subsets.items()
    }
