"""Detections against ground truth: COCO's box metric (by faster-coco-eval), as a whole, by class and by subset."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from effvl_cli.data.boxes import BoxRecord

Detections = Mapping[str, Any]
"""One image's: boxes (N, 4) xyxy in pixels of the file, scores (N,), labels (N,) from 1; tensors or arrays."""

Floats = NDArray[np.float64]
LARGEST = 4_000_000  # numbers of an array, in sums over resamples

# name: (kind, IoU or None for the mean over .50:.05:.95, area range, most detections per class and image)
NUMBERS: dict[str, tuple[str, float | None, str, int]] = {
    "ap": ("precision", None, "all", 100),
    "ap50": ("precision", 0.5, "all", 100),
    "ap75": ("precision", 0.75, "all", 100),
    "ap_small": ("precision", None, "small", 100),
    "ap_medium": ("precision", None, "medium", 100),
    "ap_large": ("precision", None, "large", 100),
    "ar1": ("recall", None, "all", 1),
    "ar10": ("recall", None, "all", 10),
    "ar100": ("recall", None, "all", 100),
    "ar_small": ("recall", None, "small", 100),
    "ar_medium": ("recall", None, "medium", 100),
    "ar_large": ("recall", None, "large", 100),
}
"""COCO's twelve numbers, in its order."""


@dataclass(frozen=True)
class ClassFigures:
    """One class; `ap` and `ap50` are None where it has no ground truth (boxes to ignore are none)."""

    ap: float | None
    ap50: float | None
    n_gt: int


@dataclass(frozen=True)
class Figures:
    """One set of images.

    Attributes:
        numbers: the keys of `NUMBERS`; None where no class has ground truth.
        per_class: in the order of the classes.
        precision: (C, 10, 101) at IoU .50:.05:.95 and recall 0:.01:1; NaN for a class without ground truth.
        n_images: how many images.
    """

    numbers: Mapping[str, float | None]
    per_class: tuple[ClassFigures, ...]
    precision: Floats = field(repr=False, compare=False)
    n_images: int


@dataclass(frozen=True)
class Evaluation:
    """All images, and the parts that were asked for."""

    whole: Figures
    subsets: Mapping[str, Figures]
    matches: "Matches" = field(repr=False, compare=False)


def evaluate(
    records: Sequence[BoxRecord],
    detections: Sequence[Detections],
    num_classes: int,
    subsets: Mapping[str, Sequence[int]] | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> Evaluation:
    """COCO's box metric of some detections.

    Args:
        records: ground truth of I images; `ignore` and `iscrowd` boxes are COCO's crowds, those of label 0 for every
            class.
        detections: of the I images, in their order.
        num_classes: C; labels run from 1 to C.
        subsets: name: indices of images, e.g. of those at night.
        check_stop: called before each part.
    """
    check_stop()
    matches = Matches(records, detections, num_classes)
    parts: dict[str, Figures] = {}
    for name, indices in (subsets or {}).items():
        check_stop()
        parts[name] = matches.figures(indices)
    return Evaluation(matches.figures(), parts, matches)


class Matches:
    """Which detection hits which box, image by image: found once, then summed over any choice of the images."""

    def __init__(self, records: Sequence[BoxRecord], detections: Sequence[Detections], num_classes: int) -> None:
        if len(records) != len(detections):
            raise ValueError(f"{len(detections)} images of detections, {len(records)} of ground truth")
        self.num_images, self.num_classes = len(records), num_classes
        truth = COCO(_truth(records, num_classes))
        self.evaluator = COCOeval_faster(truth, truth.loadRes(_results(detections)), "bbox", separate_eval=True)
        self.num_boxes = np.stack([_counts(record, num_classes) for record in records]) if records else np.zeros((0, 1))
        self.found: list[Any] = []
        self._ranked: dict[int, Ranked] = {}
        if records:
            self.evaluator.evaluate()
            self.found = self.evaluator._evalImgs_cpp  # [class][area range][image], flat

    def figures(self, indices: Sequence[int] | None = None) -> Figures:
        """The figures of some images (all of them by default)."""
        chosen = range(self.num_images) if indices is None else [int(index) for index in indices]
        if not len(chosen):
            nothing = np.full((self.num_classes, 10, 101), np.nan)
            empty = (ClassFigures(None, None, 0),) * self.num_classes
            return Figures(dict.fromkeys(NUMBERS), empty, nothing, 0)
        parameters, totals = self._accumulated(chosen)
        curves = totals["precision"][:, :, :, 0, -1].transpose(2, 0, 1)
        boxes = self.num_boxes[list(chosen)].sum(0)
        per_class = tuple(
            ClassFigures(_mean(curve), _mean(curve[0]), int(count)) for curve, count in zip(curves, boxes, strict=True)
        )
        numbers = {name: _number(parameters, totals, *asked) for name, asked in NUMBERS.items()}
        return Figures(numbers, per_class, np.where(curves < 0, np.nan, curves), len(chosen))

    def standard_error(
        self,
        label: int | None = None,
        indices: Sequence[int] | None = None,
        iou: float | None = 0.5,
        draws: int = 500,
        seed: int = 0,
    ) -> float | None:
        """Bootstrap over images: standard deviation of the AP of images drawn with replacement.

        Args:
            label: a class, from 1; None for the mean over the classes.
            indices: the images to draw from; all by default.
            iou: 0.5 for AP50 and so on, None for AP.
            draws: how many resamples.
            seed: of the draws.

        Returns:
            None where fewer than two images or none with ground truth are at hand.
        """
        chosen = np.arange(self.num_images) if indices is None else np.asarray(indices, dtype=np.int64)
        if len(chosen) < 2:
            return None
        generator = np.random.default_rng(seed)
        drawn = [generator.choice(chosen, len(chosen)) for _ in range(draws)]
        times = np.stack([np.bincount(images, minlength=self.num_images) for images in drawn]).astype(np.float64)
        labels = range(1, self.num_classes + 1) if label is None else [label]
        per_class = np.stack([ranked.average_precision(times, iou) for ranked in map(self.ranked, labels)])
        # a resample can miss every box of a class, or of all of them
        with_boxes = per_class[:, ~np.isnan(per_class).all(0)]
        return float(np.nanmean(with_boxes, 0).std(ddof=1)) if with_boxes.shape[1] > 1 else None

    def ranked(self, label: int) -> "Ranked":
        """The detections of a class, the surest first."""
        if label not in self._ranked:
            first = (label - 1) * len(self.evaluator.params.areaRng) * self.num_images
            states = [one.__getstate__() for one in self.found[first : first + self.num_images]]
            self._ranked[label] = Ranked.of(states, self.evaluator.params)
        return self._ranked[label]

    def _accumulated(self, chosen: Sequence[int]) -> tuple[Any, dict[str, Any]]:
        """Settings, COCO's precision (T, R, K, A, M) and recall (T, K, A, M) over some images."""
        parameters = copy.copy(self.evaluator._paramsEval)
        parameters.imgIds = list(range(1, len(chosen) + 1))
        rows = range(0, len(self.found), self.num_images)
        part = COCOeval_faster(separate_eval=True, iouType="bbox")
        part._paramsEval, part._evalImgs_cpp = parameters, [self.found[row + image] for row in rows for image in chosen]
        part.accumulate()
        return parameters, part.eval


@dataclass(frozen=True)
class Ranked:
    """Detections of a class by falling score, for sums over images that count several times.

    Attributes:
        image: (D,) of each detection.
        hit: for each IoU, positions of the detections that hit a box that counts.
        weight: for each IoU, (D,) 1, or 0 where a detection lies in a box to ignore; None: all 1.
        boxes: (I,) boxes of each image that count.
        ious: (T,).
        recalls: (R,) at which precision is read.
    """

    image: NDArray[np.int64]
    hit: tuple[NDArray[np.int64], ...]
    weight: tuple[Floats | None, ...]
    boxes: Floats
    ious: Floats
    recalls: Floats

    @classmethod
    def of(cls, states: Sequence[tuple[Any, ...]], parameters: Any) -> "Ranked":
        """From the matches that COCO's evaluator found in each image, of every size."""
        thresholds = len(parameters.iouThrs)
        scores = np.concatenate([np.asarray(state[2], dtype=np.float64) for state in states])
        image = np.concatenate([np.full(len(state[2]), place) for place, state in enumerate(states)])
        matched, ignored = (
            np.concatenate([np.asarray(state[key], dtype=np.int64).reshape(thresholds, -1) for state in states], 1)
            for key in (0, 4)
        )
        order = np.argsort(-scores, kind="stable")
        matched, ignored = matched[:, order] > 0, ignored[:, order] > 0
        return cls(
            image[order].astype(np.int64),
            tuple(np.flatnonzero(hits & ~skipped) for hits, skipped in zip(matched, ignored, strict=True)),
            tuple((~skipped).astype(np.float64) if skipped.any() else None for skipped in ignored),
            np.array([len(state[3]) - sum(state[3]) for state in states], dtype=np.float64),
            np.asarray(parameters.iouThrs),
            np.asarray(parameters.recThrs),
        )

    def average_precision(self, times: Floats, iou: float | None) -> Floats:
        """COCO's AP of images that count several times, for W ways of counting; NaN without a box.

        A detection that counts twice changes neither the precision nor the recall at the ends of its steps, and the
        envelope of the precision takes no others.

        Args:
            times: (W, I).
            iou: one of `ious`, or None for the mean over all.

        Returns:
            (W,).
        """
        rows = max(1, LARGEST // max(1, len(self.image)))
        return np.concatenate([self._part(times[start : start + rows], iou) for start in range(0, len(times), rows)])

    def _part(self, times: Floats, iou: float | None) -> Floats:
        boxes = times @ self.boxes
        drawn = times[:, self.image]
        seen = drawn.cumsum(1)
        wanted = range(len(self.ious)) if iou is None else np.flatnonzero(np.isclose(self.ious, iou))
        values = np.zeros(len(times))
        for place in wanted:
            hit, weight = self.hit[place], self.weight[place]
            hits = drawn[:, hit].cumsum(1)
            total = (seen if weight is None else (drawn * weight).cumsum(1))[:, hit]
            precision = np.maximum.accumulate((hits / np.maximum(total, 1))[:, ::-1], axis=1)[:, ::-1]
            recall = hits / np.maximum(boxes, 1)[:, None]
            # precision is read at each recall where a hit first reaches it
            reached = np.searchsorted(self.recalls, recall, side="right")
            values += (precision * np.diff(reached, axis=1, prepend=0)).sum(1) / len(self.recalls)
        return np.where(boxes > 0, values / len(wanted), np.nan)


def bootstrap(
    evaluation: Evaluation,
    label: int | None = None,
    indices: Sequence[int] | None = None,
    iou: float | None = 0.5,
    draws: int = 500,
    seed: int = 0,
) -> float | None:
    """Standard error over images, e.g. of the AP50 of a class at night: `Matches.standard_error`."""
    return evaluation.matches.standard_error(label, indices, iou, draws, seed)


def proposal_recall(
    proposals: Sequence[Tensor],
    records: Sequence[BoxRecord],
    ious: Sequence[float] = (0.5, 0.7, 0.9),
    limits: Sequence[int] = (100, 300),
) -> dict[str, float | None]:
    """Share of the boxes that a proposal covers.

    Args:
        proposals: (R, 4) xyxy of each image, in pixels of the file, the surest first.
        records: ground truth; boxes to ignore are left out.
        ious: what covering means.
        limits: how many proposals of each image count.

    Returns:
        `proposal_recall<limit>_iou<percent>`; None without any box.
    """
    best: dict[int, list[Tensor]] = {limit: [] for limit in limits}
    for boxes, record in zip(proposals, records, strict=True):
        asked = torch.as_tensor(record.boxes[~_ignored(record)], dtype=torch.float32)
        overlaps = box_iou(asked, boxes.float().cpu())
        for limit in limits:
            first = overlaps[:, :limit]
            best[limit].append(first.amax(1) if first.shape[1] else overlaps.new_zeros(len(asked)))
    figures: dict[str, float | None] = {}
    for limit in limits:
        values = torch.cat(best[limit]) if best[limit] else torch.zeros(0)
        for iou in ious:
            share = float((values >= iou).float().mean()) if len(values) else None
            figures[f"proposal_recall{limit}_iou{round(100 * iou)}"] = share
    return figures


def _ignored(record: BoxRecord) -> NDArray[np.bool_]:
    """(N,) boxes that are neither hit nor missed."""
    return record.ignore | record.iscrowd


def _counts(record: BoxRecord, num_classes: int) -> NDArray[np.int64]:
    """(C,) boxes of each class that count."""
    labels = np.asarray(record.labels, dtype=np.int64)[~_ignored(record)]
    return np.bincount(labels, minlength=num_classes + 1)[1:]


def _truth(records: Sequence[BoxRecord], num_classes: int) -> dict[str, Any]:
    """Ground truth in COCO's form, image and annotation ids from 1: its evaluators take a match with id 0 for none."""
    annotations: list[dict[str, Any]] = []
    for image, record in enumerate(records, 1):
        crowd = _ignored(record)
        for box, label, area, ignored in zip(record.boxes, record.labels, record.area, crowd, strict=True):
            for category in range(1, num_classes + 1) if int(label) == 0 else (int(label),):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": category,
                        "bbox": _corner_and_size(box),
                        "area": float(area),
                        "iscrowd": int(ignored),
                    }
                )
    images = [{"id": image, "width": r.width, "height": r.height} for image, r in enumerate(records, 1)]
    categories = [{"id": category, "name": str(category)} for category in range(1, num_classes + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _results(detections: Sequence[Detections]) -> list[dict[str, Any]]:
    """Detections in the form of COCO's results, image ids from 1."""
    return [
        {"image_id": image, "category_id": int(label), "bbox": _corner_and_size(box), "score": float(score)}
        for image, found in enumerate(detections, 1)
        for box, score, label in zip(*(np.asarray(found[key]) for key in ("boxes", "scores", "labels")), strict=True)
    ]


def _corner_and_size(box: NDArray[Any]) -> list[float]:
    left, top, right, bottom = (float(value) for value in box)
    return [left, top, right - left, bottom - top]


def _number(
    parameters: Any, totals: Mapping[str, Any], kind: str, iou: float | None, area: str, most: int
) -> float | None:
    """One of COCO's numbers from accumulated totals."""
    thresholds = (
        slice(None)
        if iou is None
        else [i for i, value in enumerate(parameters.iouThrs) if math.isclose(value, iou, abs_tol=1e-9)]
    )
    where = (parameters.areaRngLbl.index(area), parameters.maxDets.index(most))
    return _mean(totals[kind][thresholds][..., where[0], where[1]])


def _mean(values: Any) -> float | None:
    """Mean over what is known; COCO writes -1 for a class without ground truth."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None
