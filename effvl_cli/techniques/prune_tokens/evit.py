"""Dropping the patches that CLS attends to least, with one token in place of all that is dropped.

Liang et al., "Not All Patches are What You Need", ICLR 2022, arXiv 2202.07800, at one depth and without
training. Shapes: B images, N patches, K kept, D width.
"""

import torch
from torch import Tensor

from .selectors import ClsAttentionSelector


class EvitSelector(ClsAttentionSelector):
    """CLS attention, with the attention-weighted mean of the dropped patches appended to the kept ones.

    The weights sum to 1: a tower that was not trained with such a token expects rows of the size of a state.
    """

    def fuse(self, patches: Tensor, keep: Tensor, scores: Tensor) -> Tensor:
        """Patch states (B, N, D), kept ids (B, K) and attention (B, N) to (B, 1, D)."""
        weights = scores.scatter(1, keep, 0.0)
        weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return weights[:, None].to(patches.dtype) @ patches
