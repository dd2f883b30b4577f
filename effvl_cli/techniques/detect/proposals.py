"""torchvision's region proposal network with ignored boxes, seeded draws, batches of several processes, and float32."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from effvl_cli.techniques.detect.box_sampling import NEITHER, SeededSampler, Truth, spare_ignored
from effvl_cli.techniques.detect.shared_batch import ALONE

_UNSURE = -2.0  # label of an anchor that is a negative unless the network itself takes it for an object
_BETA = 1 / 9  # of torchvision's smooth L1 loss of anchors


class Float32RPNHead(RPNHead):  # type: ignore[misc]
    """Its outputs are float32 under autocast too: boxes in bfloat16 are pixels off."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness and regression of each level."""
        logits, deltas = super().forward(x)
        return [found.float() for found in logits], [found.float() for found in deltas]


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """Proposals (Ren et al., arXiv 1506.01497); arguments as torchvision's."""

    def __init__(self, *args: object, batch_size_per_image: int, positive_fraction: float, **words: object) -> None:
        super().__init__(*args, batch_size_per_image=batch_size_per_image, positive_fraction=positive_fraction, **words)
        self.fg_bg_sampler = SeededSampler(batch_size_per_image, positive_fraction)
        self.group = ALONE

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label (1, 0, -1: neither, -2: unsure) and matched box of each anchor; one in an ignored box is no negative.

        Negatives are unsure in images whose source does not label every class: an anchor may lie on an object that
        nobody has marked.
        """
        truths = [Truth.of(target, target["boxes"].dtype) for target in targets]
        labels, matched = super().assign_targets_to_anchors(anchors, [{"boxes": truth.boxes} for truth in truths])
        found = []
        for own, boxes, truth in zip(labels, anchors, truths, strict=True):
            spared = spare_ignored(own, boxes, truth.ignored)
            partly = truth.labelled is not None and not bool(truth.labelled.all())
            found.append(spared.masked_fill(spared == 0, _UNSURE) if partly else spared)
        return found, matched

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """torchvision's two losses of the anchors drawn, over all processes; zeros where none is.

        An unsure anchor is a negative where the network finds no object in it (objectness of at most .5), as in images
        that are fully labelled it has learned to; else it is neither.

        Args:
            objectness: (A, 1) of the anchors of all images.
            pred_bbox_deltas: (A, 4).
            labels: of each image's anchors.
            regression_targets: (., 4) of each image's anchors.
        """
        seen = objectness.detach().flatten().split([len(own) for own in labels])
        labels = [
            torch.where(own == _UNSURE, torch.where(score > 0, NEITHER, 0.0), own)
            for own, score in zip(labels, seen, strict=True)
        ]
        positive, negative = (torch.where(torch.cat(masks))[0] for masks in self.fg_bg_sampler(labels))
        drawn = torch.cat([positive, negative])
        weight = self.group.weight(len(drawn), objectness)
        if not len(drawn):  # where ignored boxes cover every anchor
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        wanted = torch.cat(regression_targets)[positive]
        box = F.smooth_l1_loss(pred_bbox_deltas[positive], wanted, beta=_BETA, reduction="sum") / len(drawn)
        found = F.binary_cross_entropy_with_logits(objectness.flatten()[drawn], torch.cat(labels)[drawn])
        return found * weight, box * weight
