"""torchvision's region proposal network with ignored boxes, a generator of its own, and box arithmetic in float32."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from effvl_cli.techniques.detect.box_sampling import SeededSampler, Truth, spare_ignored


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

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: Sequence[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label (1, 0, -1: neither) and matched box of each anchor; one in an ignored box is no negative."""
        truths = [Truth.of(target, target["boxes"].dtype) for target in targets]
        labels, matched = super().assign_targets_to_anchors(anchors, [{"boxes": truth.boxes} for truth in truths])
        found = [spare_ignored(own, boxes, t.ignored) for own, boxes, t in zip(labels, anchors, truths, strict=True)]
        return found, matched

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """torchvision's two losses; zeros where ignored boxes cover every anchor, of which it would make NaN."""
        if all(bool((own < 0).all()) for own in labels):
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        found: tuple[Tensor, Tensor] = super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)
        return found


def use_generator(network: torch.nn.Module, generator: torch.Generator | None) -> None:
    """Let every sampler in a network draw from a generator; None: from the device's stream, as torchvision does."""
    for part in network.modules():
        sampler = getattr(part, "fg_bg_sampler", None)
        if isinstance(sampler, SeededSampler):
            sampler.generator = generator
