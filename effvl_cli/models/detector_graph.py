"""A detector of one image of a fixed size; without the final NMS no shape depends on the image after the proposals.

It is what an ONNX file holds. H and W are the sides of the image, R proposals, C classes.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, nms

from effvl_cli.models.detector import CascadeRCNN
from effvl_cli.techniques.detect.box_pooling import PyramidRoIAlign
from effvl_cli.techniques.detect.cascade_head import CascadeRoIHeads


class FixedSize(nn.Module):
    """The detector for normalised images (1, 3, H, W), all of whose pixels are of the image.

    Proposals are R whatever the image: those that are lacking are boxes of zeros with scores of 0.

    Args:
        module: the detector; copied.
        size: H and W.
        full: with the final NMS.
    """

    anchors: Tensor

    def __init__(self, module: CascadeRCNN, size: tuple[int, int], *, full: bool) -> None:
        super().__init__()
        own: Any = copy.deepcopy(module).cpu().eval()
        self.size, self.full = size, full
        self.heads: CascadeRoIHeads = own.roi_heads
        self.backbone: Any = own.backbone
        self.rpn: Any = own.rpn
        # Pooling all boxes from all levels takes onnxruntime twice as long in all; `raw` has fixed shapes for it.
        self.heads.box_roi_pool = PyramidRoIAlign(aligned=own.spec.roi_aligned, every_level=not full)
        self.heads.merge = "max" if self.heads.merge == "gated" else self.heads.merge
        blank = torch.zeros(1, 3, *size)
        self.eval()
        with torch.no_grad():
            levels = list(own.backbone(blank).values())
            anchors = own.rpn.anchor_generator(ImageList(blank, [size]), levels)[0]
        self.register_buffer("anchors", anchors, persistent=False)
        self.counts = [3 * level.shape[2] * level.shape[3] for level in levels]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """What a graph gives.

        Args:
            image: (1, 3, H, W).

        Returns:
            full: boxes (D, 4), scores (D,), labels (D,), conditions (D,). Else boxes (R, 4), or (R, 1 + C, 4) where
            each class has its own, scores (R, 1 + C), conditions (R, 1 + C).
        """
        features: dict[str, Tensor] = self.backbone(image)
        proposals, real = self._proposals(list(features.values()))
        stages = [stage[0] for stage in self.heads.refine(features, [proposals], [self.size])]
        boxes, scores, best = self.heads.candidates(stages)
        scores = scores * real[:, None]
        if not self.full:
            return boxes, scores, self.heads.conditions[best]
        found = self.heads.selected(boxes, scores, best)
        return found["boxes"], found["scores"], found["labels"], found["conditions"]

    def _proposals(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(R, 4) boxes, best first, and (R,) whether they are proposals and no padding."""
        total = self.rpn._post_nms_top_n["testing"]
        boxes, scores = [torch.zeros(total, 4)], [torch.full((total,), -1.0)]
        logits, deltas = self.rpn.head(levels)
        for anchors, objectness, change in zip(self.anchors.split(self.counts), logits, deltas, strict=True):
            best, order = _by_anchor(objectness, 1)[:, 0].topk(min(self.rpn._pre_nms_top_n["testing"], len(anchors)))
            decoded = self.rpn.box_coder.decode_single(_by_anchor(change, 4)[order], anchors[order])
            decoded = clip_boxes_to_image(decoded, self.size)
            sides = decoded[:, 2:] - decoded[:, :2]
            large = torch.where((sides >= self.rpn.min_size).all(1))[0]
            decoded, best = decoded[large], torch.sigmoid(best[large])
            kept = nms(decoded, best, self.rpn.nms_thresh)
            boxes.append(decoded[kept])
            scores.append(best[kept])
        best, order = torch.cat(scores).topk(total)
        return torch.cat(boxes)[order], best >= 0


def _by_anchor(level: Tensor, numbers: int) -> Tensor:
    """(1, anchors * numbers, h, w) to (h * w * anchors, numbers), in the order of the anchors."""
    _, channels, height, width = level.shape
    rows = level.reshape(channels // numbers, numbers, height, width).permute(2, 3, 0, 1)
    return rows.reshape(-1, numbers)
