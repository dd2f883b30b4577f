"""Training of a whole text tower on class names in templates: the comparison of arXiv 2307.11978, sec. 4.2."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class TextFinetuner(nn.Module):
    """Class features of a text tower that is trained itself.

    Args:
        text: a copy of the tower, with `encode_text`; all its parameters that ask for a gradient are trained.
        tokens: (K, P, T) int64, each of K class names in P templates.
    """

    tokens: Tensor

    def __init__(self, text: Any, tokens: Tensor) -> None:
        super().__init__()
        self.text = text
        self.register_buffer("tokens", tokens, persistent=False)

    def forward(self) -> Tensor:
        """(K, E) unit float32 class features: the mean over the templates (Radford et al., arXiv 2103.00020)."""
        features = F.normalize(self.text.encode_text(self.tokens.flatten(0, 1)).float(), dim=-1)
        return F.normalize(features.unflatten(0, self.tokens.shape[:2]).mean(1), dim=-1)
