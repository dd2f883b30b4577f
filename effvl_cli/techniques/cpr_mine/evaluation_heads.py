"""Classifiers on the features of a video encoder, as CoCLR evaluates them (arXiv 2010.09709, sec. 4.2; its code).

B clips, D features, C classes, G settings trained side by side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.01


def linear(width: int, classes: int) -> nn.Linear:
    """A linear layer that begins near zero."""
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=INIT_STD)
    nn.init.zeros_(layer.bias)
    return layer


class FeatureHeads(nn.Module):
    """G times batch norm and a linear layer, of the same stored features."""

    def __init__(self, count: int, width: int, classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(width), linear(width, classes)) for _ in range(count))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (G, B, C)."""
        return torch.stack([head(features) for head in self.heads])


class ClipClassifier(nn.Module):
    """A backbone with a classifier: fine-tuned as a whole, or frozen below the classifier.

    Args:
        backbone: clips to features (B, D).
        width: D.
        classes: C.
        frozen: the backbone gets no gradient and stays in evaluation mode; its features are scaled to norm 1 and pass a
            batch norm. Otherwise they pass a dropout.
        dropout: share of the features that are dropped.
    """

    def __init__(self, backbone: nn.Module, width: int, classes: int, *, frozen: bool, dropout: float = 0.9) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, frozen
        before = nn.BatchNorm1d(width) if frozen else nn.Dropout(dropout)
        self.head = nn.Sequential(before, linear(width, classes))
        if frozen:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "ClipClassifier":
        """All but a frozen backbone follow the mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, clips: Tensor) -> Tensor:
        """(B, channels, T, H, W) to logits (B, C)."""
        if self.frozen:
            with torch.no_grad():
                features = F.normalize(self.backbone(clips).float(), dim=1)
        else:
            features = self.backbone(clips)
        found: Tensor = self.head(features)
        return found


def mean_probabilities(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Probabilities of videos, each the mean of the softmax of its rows.

    Args:
        logits: (W, C) of all windows and crops, those of one video after another; where a video has as many windows in
            every crop, the order of the two means does not matter.
        counts: rows of each video, W in all, none of them 0.

    Returns:
        (V, C) float32.
    """
    return mean_rows(logits.float().softmax(1), counts)


def mean_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean of each video's rows: (W, D) and V counts to (V, D)."""
    sizes = torch.tensor(counts, device=rows.device)
    video = torch.arange(len(sizes), device=rows.device).repeat_interleave(sizes)
    return rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, video, rows) / sizes[:, None]
