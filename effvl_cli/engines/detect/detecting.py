"""Runs a detector over the images of a split, distributed over the processes of the run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.loop import autocast
from effvl_cli.core.modes import as_found
from effvl_cli.core.run import Run
from effvl_cli.data.box_batches import BoxBatch, Pictures, Shrink, evaluation_batches
from effvl_cli.data.loader import loader_workers
from effvl_cli.models.detector import CascadeRCNN
from effvl_cli.models.detector_spec import DetectorSpec
from effvl_cli.techniques.detect.cascade_head import stage_iou

Detections = dict[str, Tensor]
"""One image's: boxes (N, 4) in its pixels, scores (N,), labels (N,) from 1, conditions (N,), the surest first."""

Find = Callable[[BoxBatch], list[dict[str, Any]]]
"""From a batch to what is found in each of its images: `Detections`, and more where a detector exposes its stages."""

NUMBERS = ("scores", "labels", "conditions")


class Running(Protocol):
    """The options that detection needs."""

    @property
    def eval_batch_size(self) -> int:
        """Images at a time."""

    @property
    def precision(self) -> str:
        """Autocast type."""

    @property
    def workers(self) -> int | None:
        """Loader processes."""

    @property
    def on_bad(self) -> str:
        """What to do with an unreadable image."""


@dataclass
class Inside:
    """What a detector does before its detections, of all images.

    Attributes:
        proposals: (P, 4) of each image, in its pixels, the surest first.
        stages: for each stage the detections that a head of the stages up to it gives.
        iou: (1 + K,) mean IoU of the same boxes with the truth, as proposals and after each stage.
    """

    proposals: list[Tensor] = field(default_factory=list)
    stages: list[list[Detections]] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What a detector finds in a split.

    Attributes:
        seen: positions of the images that could be read.
        detections: of these.
        images_per_s: of this process's share, the network alone.
        inside: what came before them, where it was asked for.
    """

    seen: list[int]
    detections: list[Detections]
    images_per_s: float
    inside: Inside | None = None


def shrink_of(spec: DetectorSpec) -> Shrink:
    """Size at which a detector looks at images in evaluation."""
    return Shrink(spec.min_size[-1], spec.max_size)


def detect(module: CascadeRCNN, pictures: Pictures, options: Running, run: Run, *, inside: bool = False) -> Found:
    """Detections of every image of a split, in order, the same on every process.

    Args:
        module: the detector.
        pictures: at the size that it works at.
        options: sizes of batches and the like.
        run: device and progress.
        inside: whether to give what comes before them too; not within a training, whose loop stops it.

    Raises:
        DataError: unreadable images.
    """

    def find(batch: BoxBatch) -> list[dict[str, Any]]:
        # the condition of an image is looked at by --merge gated alone
        conditions = [{"condition": target["night"].long()} for target in batch.targets]
        found: list[dict[str, Any]] = module(batch.to(run.device).images, conditions)
        return found

    exposed = module.expose
    module.expose = inside
    try:
        with as_found(module, training=False), torch.inference_mode(), autocast(run.device, options.precision):
            stages = module.spec.num_stages if inside else 0
            return over_batches(find, pictures, options, run, stages=stages, saved=inside)
    finally:
        module.expose = exposed


def over_batches(
    find: Find, pictures: Pictures, options: Running, run: Run, *, stages: int = 0, saved: bool = True
) -> Found:
    """What a function finds in every image of a split, in order, the same on every process.

    Args:
        find: from a batch to the results of its images, in pixels of the images as they are in it.
        pictures: the images.
        options: sizes of batches and the like.
        run: device and progress.
        stages: how many stages the results expose.
        saved: whether what was computed before is saved, so that a request to stop may end it here.

    Raises:
        DataError: unreadable images.
    """
    share = _Share()
    mine = distributed.shard(len(pictures.source))
    batches = evaluation_batches(
        pictures,
        options.eval_batch_size,
        indices=np.arange(mine.start, mine.stop),
        workers=loader_workers(options.workers, run.device.type),
        on_bad=options.on_bad,
    )
    with run.progress(f"detecting, {pictures.source.split}", len(mine)) as progress:
        for batch in batches:
            share.add(find, batch)
            progress.update(len(share.results))
            if saved and run.stop_signal():
                break
    if saved:
        run.check_stop()  # together: the processes have different numbers of batches
    return share.joined(len(pictures.source), mine, stages)


class _Share:
    """What this process finds."""

    def __init__(self) -> None:
        self.results: dict[int, dict[str, Any]] = {}
        self.iou: Tensor | None = None
        self.seconds = 0.0

    def add(self, find: Find, batch: BoxBatch) -> None:
        """Those of a batch."""
        began = time.perf_counter()
        results = [_to_cpu(result) for result in find(batch)]
        self.seconds += time.perf_counter() - began
        if "stages" in results[0]:
            self._add_iou(batch, results)
            proposals = batch.restored([{"boxes": result["proposals"]} for result in results])
            stages = [batch.restored(found) for found in zip(*(result["stages"] for result in results), strict=True)]
        plain = [{key: result[key] for key in ("boxes", *NUMBERS)} for result in results]
        for place, (index, found) in enumerate(zip(batch.indices.tolist(), batch.restored(plain), strict=True)):
            self.results[index] = {"detections": found}
            if "stages" in results[0]:
                own = [stage[place] for stage in stages]
                self.results[index] |= {"proposals": proposals[place]["boxes"], "stages": own}

    def _add_iou(self, batch: BoxBatch, results: Sequence[Mapping[str, Any]]) -> None:
        for target, result in zip(batch.targets, results, strict=True):
            truth = target["boxes"][~target["ignore"]]
            sums = stage_iou(result["proposals"], result["stage_boxes"], truth)
            self.iou = sums if self.iou is None else self.iou + sums

    def joined(self, total: int, mine: range, stages: int) -> Found:
        """Those of all processes; `stages`: how many are given too."""
        own = [self.results.get(index, {}) for index in mine]
        read = torch.tensor([float(bool(result)) for result in own])
        seen = distributed.gather_rows(read, total).nonzero()[:, 0].tolist()
        found = _gathered([result.get("detections") for result in own], total)
        speed = len(self.results) / self.seconds if self.seconds else 0.0
        inside = None
        if stages:
            boxes = _gathered([_as_detections(result.get("proposals")) for result in own], total)
            each = [
                _gathered([result["stages"][k] if result else None for result in own], total) for k in range(stages)
            ]
            sums = distributed.all_reduce_sum(torch.zeros(2 + stages).double() if self.iou is None else self.iou)
            inside = Inside(
                [boxes[k]["boxes"] for k in seen],
                [[stage[k] for k in seen] for stage in each],
                (sums[1:] / sums[0]).tolist() if sums[0] else [],
            )
        return Found(seen, [found[k] for k in seen], speed, inside)


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("cpu", torch.float32 if value.is_floating_point() else torch.int64)
    if isinstance(value, Mapping):
        return {key: _to_cpu(part) for key, part in value.items()}
    return [_to_cpu(part) for part in value]


def _as_detections(boxes: Tensor | None) -> Detections | None:
    """Boxes without scores."""
    return None if boxes is None else {"boxes": boxes, **dict.fromkeys(NUMBERS, torch.zeros(len(boxes)))}


def _gathered(found: Sequence[Detections | None], total: int) -> list[Detections]:
    """Join the detections of every process's `shard(total)`, in order; of an image without any, none."""
    most = distributed.all_reduce_max(max((len(one["scores"]) for one in found if one), default=0))
    rows = torch.full((len(found), most, 4 + len(NUMBERS)), torch.nan)
    for row, one in zip(rows, found, strict=True):
        if one:
            columns = [one["boxes"], *(one[key].float()[:, None] for key in NUMBERS)]
            row[: len(one["scores"])] = torch.cat(columns, 1)
    return [_unpacked(row) for row in distributed.gather_rows(rows, total)]


def _unpacked(row: Tensor) -> Detections:
    row = row[~row[:, 4].isnan()]
    scores, labels, conditions = row[:, 4:].unbind(1)
    return {"boxes": row[:, :4], "scores": scores, "labels": labels.long(), "conditions": conditions.long()}
