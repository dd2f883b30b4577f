"""Checks that an exported tower equals the pruned tower: embeddings, and kept patches.

B images, N patches, K kept, E embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.core.errors import CheckError
from effvl_cli.core.measure import unfused_attention
from effvl_cli.core.modes import as_found
from effvl_cli.techniques.prune_tokens.tower import PrunedVision

COSINE = 0.9999
GAP = 1e-5  # between scores; up to this, another rounding may keep another patch


class Embedder(nn.Module):
    """Normalised images (B, 3, H, W) to embeddings (B, E), not of unit length, and the kept patches' ids (B, K) int64.

    Args:
        vision: the pruned tower.
    """

    OUTPUTS = ("embedding", "kept")

    def __init__(self, vision: PrunedVision) -> None:
        super().__init__()
        self.vision = vision
        self.tower = vision.tower.module  # whose weights are none of `vision`

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        output, kept = self.vision(images, return_keep=True)
        return (output[0] if isinstance(output, tuple) else output), kept

    def gaps(self, images: Tensor) -> Tensor:
        """(B,) float32: by how much the lowest score of a kept patch is above the highest of a dropped one."""
        scores, kept = self.vision.scores(self.vision.states(images)), self.vision.num_keep
        if scores is None:
            return torch.full((images.shape[0],), torch.inf)
        ordered = scores.sort(dim=1, descending=True).values
        return ordered[:, kept - 1] - ordered[:, kept]


@dataclass
class Parity:
    """A `Compare` (see models/program.py) that accumulates its results.

    Attributes:
        images: compared.
        cosine: the lowest cosine between the two embeddings of an image.
        ties: images whose kept patches may depend on rounding, because two scores are nearly equal.
    """

    images: int = 0
    cosine: float = 1.0
    ties: int = 0

    def __call__(self, module: Embedder, function: Callable[[Tensor], Any], images: Tensor, name: str) -> None:
        """Compare some images.

        Raises:
            CheckError: a cosine below 0.9999, or other kept patches where the scores differ clearly.
        """
        with as_found(module, training=False), torch.no_grad(), unfused_attention():
            (expected, kept), gaps = module(images), module.gaps(images)
            found, found_kept = function(images)
        cosine = float(F.cosine_similarity(found.float(), expected.float(), dim=-1).min())
        other = (found_kept != kept).any(1) & (gaps > GAP)
        if not cosine >= COSINE or other.any():
            raise CheckError(
                f"{name} differs from the pruned tower: cosine {cosine:.6f} (at least {COSINE}), "
                f"different kept patches in {int(other.sum())} of {len(images)} images",
                "Nothing is replaced",
            )
        self.images += len(images)
        self.cosine = min(self.cosine, cosine)
        self.ties += int((gaps <= GAP).sum())
