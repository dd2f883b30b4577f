"""SimCLR (Chen et al., arXiv 2002.05709)."""

from typing import ClassVar

import torch
from torch import nn

from .contrastive import nt_xent
from .cost import Passes
from .heads import projector
from .method import Gather, Method, MethodLoss, Views, encode
from .vit import VisionTransformer


class SimCLR(Method):
    """Both views have gradients and share one pass through the projector, and so its batch-norm statistics.

    Args:
        backbone: the encoder.
        hidden: width of the projector's hidden layers.
        out: width of the embedding.
        layers: of the projector.
        temperature: of the loss.
    """

    key_gradient: ClassVar[bool] = True

    def __init__(
        self, backbone: VisionTransformer, *, hidden: int, out: int, layers: int = 2, temperature: float = 0.2
    ) -> None:
        super().__init__()
        self.backbone: VisionTransformer = backbone
        self.projector: nn.Module = projector([backbone.shape.width, *[hidden] * (layers - 1), out], last_affine=True)
        self.temperature = temperature

    @property
    def passes(self) -> Passes:
        """One pass for each view, both with gradient."""
        return Passes(query=1, key=1, key_gradient=True)

    def loss(self, views: Views, gather: Gather, t: float) -> MethodLoss:
        """NT-Xent over the 2 B embeddings of the whole batch."""
        features = encode(self.backbone, [views.query[0], views.key[0]])
        first, second = self.projector(torch.cat([gather(part) for part in features])).chunk(2)
        return MethodLoss(nt_xent(first, second, self.temperature), first.detach())
