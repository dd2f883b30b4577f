"""A linear map of some pixels. B images of N numbers, K of them kept, C classes."""

import torch
from torch import Tensor, nn


def most_varied(images: Tensor, keep: float) -> Tensor:
    """(K,) int64 positions, ascending, of the share `keep` of the N numbers that vary most over (B, ...) images."""
    rows = images.flatten(1).double()
    count = max(1, round(keep * rows.shape[1]))
    return rows.var(0).argsort(descending=True, stable=True)[:count].sort().values


class PixelProbe(nn.Module):
    """Images (B, 3, H, W) to logits (B, C).

    Args:
        kept: (K,) positions in a flattened image.
        num_classes: C.
    """

    kept: Tensor

    def __init__(self, kept: Tensor, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.linear = nn.Linear(len(kept), num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        found: Tensor = self.linear(torch.index_select(images.flatten(1), 1, self.kept))
        return found
