"""A linear map from image features to logits of classes: what every method but a key-value cache ends as. Ours.

Cosines with class features are CLIP's (Radford et al., arXiv 2103.00020); weights with a bias are a linear probe's.
Shapes: B images, K classes, D feature width.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClassHead:
    """Weights of the classes, and how features are brought to them.

    Attributes:
        weight: (K, D).
        bias: (K,), or None.
        scale: factor of the product.
        normalize: whether features are brought to unit length first.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    normalize: bool = True

    def __call__(self, features: Tensor) -> Tensor:
        """(B, K) float32 logits of features (B, D)."""
        features = features.float()
        rows = F.normalize(features, dim=-1) if self.normalize else features
        logits = self.scale * rows @ self.weight.float().T
        return logits if self.bias is None else logits + self.bias.float()
