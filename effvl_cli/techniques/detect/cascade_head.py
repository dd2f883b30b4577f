"""The head of Cascade R-CNN (Cai and Vasconcelos, arXiv 1712.00726): boxes refined stage by stage.

A drop-in for torchvision's `RoIHeads`; one stage with its settings is its head, bit for bit. K stages, P proposals of
an image, R those of all images, n outputs beside background, C classes of the data (subclass.py).
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from effvl_cli.techniques.detect.box_sampling import SeededSampler, Truth, assigned, sampled
from effvl_cli.techniques.detect.shared_batch import ALONE
from effvl_cli.techniques.detect.subclass import NO_CONDITION, Children, Merge, merge

__all__ = ["CascadePredictor", "CascadeRoIHeads", "merge", "stage_iou"]

Weights = tuple[float, float, float, float]
ScoreAverage = Literal["prob", "logit"]
IOUS = (0.5, 0.6, 0.7)
REG_WEIGHTS: tuple[Weights, ...] = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
_SMALLEST = 1e-2  # px; a box with a smaller side is none
_NEAR = 0.5  # IoU from which a proposal counts for the mean IoU of a stage's inputs


class CascadePredictor(nn.Module):
    """Logits and box regression of pooled features; names as in torchvision's `FastRCNNPredictor`.

    Args:
        features: size of the input.
        outputs: n + 1 with background.
        class_agnostic: one box for all classes instead of one for each.
    """

    def __init__(self, features: int, outputs: int, *, class_agnostic: bool = True) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, outputs)
        self.bbox_pred = nn.Linear(features, 4 if class_agnostic else 4 * outputs)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):  # as detectron2 and mmdetection
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(R, features) to (R, outputs) and (R, 4 or 4 * outputs)."""
        return self.cls_score(features), self.bbox_pred(features)


class _Rows(NamedTuple):
    """Proposals of an image on their way through the stages of training."""

    boxes: Tensor
    given: Tensor  # whether a row is a box of the truth, appended by us


class Stage(NamedTuple):
    """What an image's proposals became in one stage of inference."""

    logits: Tensor
    boxes: Tensor  # (P, 4) or (P, 1 + n, 4), clipped


class CascadeRoIHeads(nn.Module):
    """Cascade R-CNN's head, with torchvision's forward signature.

    Beside torchvision's results (boxes, labels, scores) a detection has its `conditions`: that of its best child.

    Args:
        box_roi_pool: pools features of boxes.
        box_heads: K modules from pooled features to vectors.
        box_predictors: K modules from vectors to logits (1 + n) and regression (4, or 4 for each output).
        fg_iou: for each stage, least IoU of a positive.
        bg_iou: for each stage, a negative has less (None: as fg_iou).
        reg_weights: for each stage, factors of the regression targets.
        loss_weights: for each stage.
        batch_size_per_image: rows that a stage is trained on.
        positive_fraction: largest share of positives among them.
        class_agnostic: whether the regression is shared by all classes.
        box_loss_beta: of the smooth L1 loss; mmdetection 1, torchvision 1/9.
        resample: append the truth and draw rows before every stage, as mmdetection; else only before the first, as
            detectron2.
        stage_grad_scale: divide the gradient of the pooled features by K, as detectron2.
        score_avg: mean of the stages' probabilities (detectron2) or of their logits (mmdetection).
        score_thresh: a detection has more.
        nms_thresh: IoU from which the lesser of two detections of a class is dropped.
        detections_per_img: at most.
        parents: 1 + n numbers, the class of each output (None: its own).
        conditions: 1 + n numbers, the condition of each output (None: none).
        merge: how children's scores become their parent's.

    Raises:
        ValueError: a tuple of another length than K, or an IoU outside (0, 1).

    Attributes:
        diagnostics: after a training step, `num_pos_s{k}` and `input_iou_s{k}` (mean IoU with the truth of the rows
            that reach .5; NaN where none does), detached, of all processes.
        expose_stages: in evaluation, each result also has `proposals` (P, 4), `stage_boxes` (K, P, 4) and `stages`: the
            detections that a head of the first k stages would give.
    """

    parents: Tensor
    conditions: Tensor

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_heads: Sequence[nn.Module],
        box_predictors: Sequence[nn.Module],
        fg_iou: Sequence[float] = IOUS,
        bg_iou: Sequence[float] | None = None,
        reg_weights: Sequence[Weights] = REG_WEIGHTS,
        loss_weights: Sequence[float] = LOSS_WEIGHTS,
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        class_agnostic: bool = True,
        box_loss_beta: float = 1.0,
        resample: bool = True,
        score_avg: ScoreAverage = "prob",
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 100,
        parents: Sequence[int] | None = None,
        conditions: Sequence[int] | None = None,
        merge: Merge = "max",
        stage_grad_scale: bool = False,
    ) -> None:
        super().__init__()
        bg_iou = fg_iou if bg_iou is None else bg_iou
        _check_stages(
            len(box_heads),
            box_predictors=box_predictors,
            fg_iou=fg_iou,
            bg_iou=bg_iou,
            reg_weights=reg_weights,
            loss_weights=loss_weights,
        )
        _check_ious(fg_iou, bg_iou)
        self.box_roi_pool = box_roi_pool
        self.box_heads, self.box_predictors = nn.ModuleList(box_heads), nn.ModuleList(box_predictors)
        self.fg_iou, self.bg_iou, self.loss_weights = tuple(fg_iou), tuple(bg_iou), tuple(loss_weights)
        self.box_coders = [BoxCoder(weights) for weights in reg_weights]
        self.fg_bg_sampler = SeededSampler(batch_size_per_image, positive_fraction)
        self.class_agnostic, self.box_loss_beta, self.resample = class_agnostic, box_loss_beta, resample
        self.score_avg, self.stage_grad_scale, self.merge = score_avg, stage_grad_scale, merge
        self.score_thresh, self.nms_thresh, self.detections_per_img = score_thresh, nms_thresh, detections_per_img
        outputs = _outputs(box_predictors[0])
        parents = range(outputs) if parents is None else parents
        conditions = [NO_CONDITION] * outputs if conditions is None else conditions
        _check_stages(outputs, parents=parents, conditions=conditions)
        self.register_buffer("parents", torch.tensor(list(parents)))
        self.register_buffer("conditions", torch.tensor(list(conditions)))
        self._known: tuple[object, Children] | None = None
        self.diagnostics: dict[str, Tensor] = {}
        self.expose_stages = False
        self.group = ALONE

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.box_heads)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Losses in training, detections in evaluation.

        Args:
            features: levels of the pyramid, (B, channels, height, width).
            proposals: (P, 4) of each image, in its pixels.
            image_shapes: height and width of each image.
            targets: of each image; for training boxes (N, 4), labels (N,) int64 in 1..n, and perhaps ignore (N,) bool
                and labelled (1 + C,) bool; in evaluation perhaps condition (), for merge="gated".

        Returns:
            In evaluation for each image boxes (D, 4), labels (D,) in 1..C, scores (D,), conditions (D,); in training
            loss_classifier_s{k} and loss_box_reg_s{k}, k from 0.

        Raises:
            ValueError: training without targets.
        """
        if self.training:
            if targets is None:
                raise ValueError("targets are needed in training")
            return [], self._losses(features, proposals, image_shapes, targets)
        stages = self.refine(features, proposals, image_shapes)
        found = []
        for k, boxes in enumerate(proposals):
            own = [stage[k] for stage in stages]
            condition = None if targets is None else targets[k].get("condition")
            result = self._detections(own, condition)
            if self.expose_stages:
                parts = [self._detections(own[: s + 1], condition) for s in range(len(own) - 1)]
                result |= {
                    "proposals": boxes,
                    "stage_boxes": torch.stack([self._passed_on(stage) for stage in own]),
                    "stages": [*parts, dict(result)],  # type: ignore[dict-item]
                }
            found.append(result)
        return found, {}

    def scores_of(self, logits: Sequence[Tensor], condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores of the classes from the logits of the stages so far, and each class's best output.

        Args:
            logits: of each stage (P, 1 + n).
            condition: () int64 of the frame, for merge="gated"; negative or None: not known.

        Returns:
            (P, 1 + C) float32, (P, 1 + C) int64.
        """
        return self._children().merged(self._probabilities(logits), self.merge, self._allowed(condition))

    def _probabilities(self, logits: Sequence[Tensor]) -> Tensor:
        if self.score_avg == "logit":
            return F.softmax(sum(logits[1:], logits[0]) / len(logits), -1)
        shares = [F.softmax(found, -1) for found in logits]
        return sum(shares[1:], shares[0]) / len(shares)

    def _children(self) -> Children:
        """The columns of each class, made once for every state of `parents`."""
        state = (self.parents.device, self.parents._version)
        if self._known is None or self._known[0] != state:
            with torch.inference_mode(False):  # it is kept, also for passes with gradients
                self._known = state, Children.of(self.parents.tolist()).to(self.parents.device)
        return self._known[1]

    def _allowed(self, condition: Tensor | None) -> Tensor | None:
        if self.merge != "gated" or condition is None:
            return None
        condition = torch.as_tensor(condition, device=self.conditions.device)
        allowed: Tensor = (self.conditions == condition) | (condition < 0)
        return allowed

    def _run(self, k: int, features: dict[str, Tensor], boxes: list[Tensor], shapes: object) -> tuple[Tensor, Tensor]:
        """Logits and regression of one stage, in float32 whatever the precision of the layers."""
        pooled = self.box_roi_pool(features, boxes, shapes)
        if self.stage_grad_scale and pooled.requires_grad:
            pooled.register_hook(lambda gradient: gradient / self.num_stages)
        logits, deltas = self.box_predictors[k](self.box_heads[k](pooled))
        return logits.float(), deltas.float()

    def refine(
        self, features: dict[str, Tensor], proposals: list[Tensor], shapes: Sequence[tuple[int, int]]
    ) -> list[list[Stage]]:
        """For each stage and image what its proposals became; no row is dropped, so that scores stay aligned."""
        found: list[list[Stage]] = []
        boxes = proposals
        for k in range(self.num_stages):
            logits, deltas = self._run(k, features, boxes, shapes)
            sizes = [len(rows) for rows in boxes]
            decoded = self._decoded(k, deltas, boxes)
            stage = [
                Stage(own, clip_boxes_to_image(rows, shape))
                for own, rows, shape in zip(logits.split(sizes), decoded.split(sizes), shapes, strict=True)
            ]
            found.append(stage)
            boxes = [self._passed_on(rows) for rows in stage]
        return found

    def _decoded(self, k: int, deltas: Tensor, boxes: list[Tensor]) -> Tensor:
        """(R, 4), or (R, 1 + n, 4) where each output has its own box."""
        rows = torch.cat(boxes)
        found: Tensor = self.box_coders[k].decode_single(deltas, rows)
        return found if self.class_agnostic else found.reshape(len(rows), len(self.parents), 4)

    def _passed_on(self, stage: Stage) -> Tensor:
        """(P, 4) boxes for the next stage; of the best foreground output where each has its own."""
        if self.class_agnostic:
            return stage.boxes
        best = stage.logits[:, 1:].argmax(1) + 1
        return stage.boxes[torch.arange(len(best), device=best.device), best]

    def _detections(self, stages: Sequence[Stage], condition: Tensor | None) -> dict[str, Tensor]:
        return self.selected(*self.candidates(stages, condition))

    def candidates(self, stages: Sequence[Stage], condition: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the stages so far say of the proposals, before anything is dropped.

        Args:
            stages: as `refine` gives them, of one image.
            condition: () int64 of the frame, for merge="gated".

        Returns:
            Boxes (P, 4), or (P, 1 + C, 4) where each class has its own; scores (P, 1 + C); best output (P, 1 + C).
        """
        scores, best = self.scores_of([stage.logits for stage in stages], condition)
        boxes = stages[-1].boxes if self.class_agnostic else self.class_boxes(stages, best)
        return boxes, scores, best

    def selected(self, boxes: Tensor, scores: Tensor, best: Tensor) -> dict[str, Tensor]:
        """Detections among candidates: score, size, NMS of each class, number."""
        num_classes = scores.shape[1] - 1
        kept = torch.where(scores[:, 1:].reshape(-1) > self.score_thresh)[0]
        rows, labels = kept // num_classes, kept % num_classes + 1
        boxes = boxes[rows] if self.class_agnostic else boxes[rows, labels]
        scores, best = scores[rows, labels], best[rows, labels]
        large = remove_small_boxes(boxes, _SMALLEST)
        boxes, scores, labels, best = boxes[large], scores[large], labels[large], best[large]
        kept = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return {
            "boxes": boxes[kept],
            "labels": labels[kept],
            "scores": scores[kept],
            "conditions": self.conditions[best[kept]],
        }

    def class_boxes(self, stages: Sequence[Stage], best: Tensor) -> Tensor:
        """(P, 1 + C, 4): the box of each class's best output; with merge="sum" the mean weighted by probability."""
        boxes, children = stages[-1].boxes, self._children()
        if self.merge != "sum" or children.columns.shape[1] == 1:
            return boxes[torch.arange(len(boxes), device=boxes.device)[:, None], best]
        weights = self._probabilities([stage.logits for stage in stages])[:, children.columns] * children.real
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        found: Tensor = (boxes[:, children.columns] * weights[..., None]).sum(2)
        return found

    def _losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        shapes: list[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        dtype = proposals[0].dtype
        truths = [Truth.of(target, dtype) for target in targets]
        rows = [_Rows(boxes, boxes.new_zeros(len(boxes), dtype=torch.bool)) for boxes in proposals]
        losses: dict[str, Tensor] = {}
        self.diagnostics = {}
        for k in range(self.num_stages):
            draws = k == 0 or self.resample
            if draws:
                rows = [_with_truth(own, truth) for own, truth in zip(rows, truths, strict=True)]
            found = [
                assigned(own.boxes, t, self.fg_iou[k], self.bg_iou[k]) for own, t in zip(rows, truths, strict=True)
            ]
            labels, matched, quality = map(list, zip(*found, strict=True))
            if draws:
                kept = sampled(labels, self.fg_bg_sampler)
                rows = [_Rows(own.boxes[at], own.given[at]) for own, at in zip(rows, kept, strict=True)]
                labels, matched, quality = (
                    [part[at] for part, at in zip(parts, kept, strict=True)] for parts in (labels, matched, quality)
                )
            boxes = [own.boxes for own in rows]
            logits, deltas = self._run(k, features, boxes, shapes)
            wanted = self.box_coders[k].encode_single(torch.cat(matched), torch.cat(boxes))
            given = torch.cat([own.given for own in rows])
            self._measure(k, torch.cat(labels), torch.cat(quality), given)
            classifier, box = self._stage_losses(
                self._masked(logits, labels, truths), deltas, torch.cat(labels), wanted
            )
            losses[f"loss_classifier_s{k}"] = self.loss_weights[k] * classifier
            losses[f"loss_box_reg_s{k}"] = self.loss_weights[k] * box
            if k + 1 < self.num_stages:
                rows = self._next_rows(k, logits, deltas, rows, shapes)
        return losses

    def _masked(self, logits: Tensor, labels: Sequence[Tensor], truths: Sequence[Truth]) -> Tensor:
        """Logits without, for negatives, the classes that an image's source has no labels of."""
        if all(truth.labelled is None for truth in truths):
            return logits
        everything = torch.ones(int(self.parents.max()) + 1, dtype=torch.bool, device=logits.device)
        closed = [
            ((own == 0)[:, None] & ~(everything if truth.labelled is None else truth.labelled)[self.parents])
            for own, truth in zip(labels, truths, strict=True)
        ]
        return logits.masked_fill(torch.cat(closed) & (self.parents > 0), -torch.inf)

    def _stage_losses(self, logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy and smooth L1 of one stage; zeros that reach every parameter where there is nothing."""
        if not self.resample:  # rows that are neither may be left then
            used = labels >= 0
            logits, deltas, labels, wanted = logits[used], deltas[used], labels[used], wanted[used]
        weight = self.group.weight(len(labels), logits)
        if not len(labels):
            return logits.sum() * 0, deltas.sum() * 0
        positive = torch.where(labels > 0)[0]
        if not self.class_agnostic:
            own = deltas.reshape(len(labels), len(self.parents), 4)[positive, labels[positive]]
        else:
            own = deltas[positive]
        box = F.smooth_l1_loss(own, wanted[positive], beta=self.box_loss_beta, reduction="sum") / labels.numel()
        return F.cross_entropy(logits, labels) * weight, box * weight

    @torch.no_grad()
    def _next_rows(
        self, k: int, logits: Tensor, deltas: Tensor, rows: Sequence[_Rows], shapes: Sequence[tuple[int, int]]
    ) -> list[_Rows]:
        """Refined boxes; those of the truth are dropped where the next stage appends it afresh."""
        sizes = [len(own.boxes) for own in rows]
        decoded = self._decoded(k, deltas, [own.boxes for own in rows]).split(sizes)
        found = []
        for own, its_logits, boxes, shape in zip(rows, logits.split(sizes), decoded, shapes, strict=True):
            refined = self._passed_on(Stage(its_logits, clip_boxes_to_image(boxes, shape)))
            kept = remove_small_boxes(refined, _SMALLEST)
            if self.resample:
                kept = kept[~own.given[kept]]
            found.append(_Rows(refined[kept], own.given[kept]))
        return found

    @torch.no_grad()
    def _measure(self, k: int, labels: Tensor, quality: Tensor, given: Tensor) -> None:
        near = (quality >= _NEAR) & ~given
        total = self.group.total
        self.diagnostics[f"num_pos_s{k}"] = total((labels > 0).sum())
        self.diagnostics[f"input_iou_s{k}"] = total((quality * near).sum()) / total(near.sum())


def stage_iou(proposals: Tensor, stage_boxes: Tensor, truth: Tensor) -> Tensor:
    """Sum of the IoU with the truth before the first stage and after each, of the same proposals throughout.

    They are those whose best IoU is at least .5 before the first stage; each is held against the box that it is
    nearest to then, so that a rise is one of the boxes and not of the choice.

    Args:
        proposals: (P, 4).
        stage_boxes: (K, P, 4) after each stage.
        truth: (G, 4).

    Returns:
        (2 + K,) float64: number of such proposals, then the sums, for images to be added up.
    """
    found = torch.zeros(2 + len(stage_boxes), dtype=torch.float64)
    if not len(truth) or not len(proposals):
        return found
    best, place = box_iou(truth.double(), proposals.double()).max(0)
    near = torch.where(best >= _NEAR)[0]
    found[0] = len(near)
    rows = torch.arange(len(near), device=near.device)
    for k, boxes in enumerate([proposals, *stage_boxes]):
        found[1 + k] = box_iou(truth.double(), boxes[near].double())[place[near], rows].sum()
    return found


def _with_truth(rows: _Rows, truth: Truth) -> _Rows:
    given = torch.ones(len(truth.boxes), dtype=torch.bool, device=rows.given.device)
    return _Rows(torch.cat([rows.boxes, truth.boxes]), torch.cat([rows.given, given]))


def _outputs(predictor: nn.Module) -> int:
    """1 + n, from the size of a predictor's logits."""
    return int(predictor.cls_score.out_features)  # type: ignore[union-attr, arg-type]


def _check_stages(length: int, **tuples: Sequence[object]) -> None:
    if not length:
        raise ValueError("box_heads is empty")
    for name, values in tuples.items():
        if len(values) != length:
            raise ValueError(f"{name} has length {len(values)}, not {length}")


def _check_ious(fg_iou: Sequence[float], bg_iou: Sequence[float]) -> None:
    for name, values in (("fg_iou", fg_iou), ("bg_iou", bg_iou)):
        if not all(0 < value < 1 for value in values):
            raise ValueError(f"{name} {tuple(values)} is not inside (0, 1)")
        if any(later < earlier for earlier, later in pairwise(values)):
            warnings.warn(f"{name} {tuple(values)} falls from one stage to the next", stacklevel=3)
    if any(low > high for low, high in zip(bg_iou, fg_iou, strict=True)):
        raise ValueError(f"bg_iou {tuple(bg_iou)} exceeds fg_iou {tuple(fg_iou)}")
