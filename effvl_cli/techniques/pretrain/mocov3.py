"""MoCo-v3 (Chen, Xie and He, arXiv 2104.02057)."""

import copy

import torch
from torch import nn

from effvl_cli.techniques.common.momentum import follow, freeze, half_cosine

from .contrastive import info_nce
from .cost import Passes
from .heads import projector
from .method import Gather, Method, MethodLoss, View, Views, encode
from .vit import VisionTransformer


class MoCoV3(Method):
    """Queries of a trained encoder against keys of its moving average.

    Args:
        backbone: the encoder.
        hidden: width of the hidden layers of projector and predictor.
        out: width of the embedding.
        layers: of the projector.
        temperature: T.
        momentum: of the key encoder at t = 0; it rises to 1 along half a cosine.
        symmetric: loss in both directions, as in the released code; else in one, as in arXiv 2410.22364, table 5.
        loss_scale: factor of the loss; None: 2 T.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        *,
        hidden: int,
        out: int,
        layers: int = 3,
        temperature: float = 0.2,
        momentum: float = 0.99,
        symmetric: bool = False,
        loss_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone: VisionTransformer = backbone
        self.projector: nn.Module = projector([backbone.shape.width, *[hidden] * (layers - 1), out])
        self.predictor: nn.Module = projector([out, hidden, out])
        self.key_backbone = freeze(copy.deepcopy(backbone))
        self.key_projector = freeze(copy.deepcopy(self.projector))
        self.temperature, self.momentum, self.symmetric = temperature, momentum, symmetric
        self.loss_scale = 2 * temperature if loss_scale is None else loss_scale

    @property
    def passes(self) -> Passes:
        """One query and one key, or two of each."""
        count = 2 if self.symmetric else 1
        return Passes(query=count, key=count)

    def after_step(self, t: float, ahead: float) -> None:
        """Move the key encoder before it makes the keys of the next step; before the first step both are equal."""
        momentum = half_cosine(ahead, self.momentum, 1.0)
        follow(self.key_backbone, self.backbone, momentum)
        follow(self.key_projector, self.projector, momentum)

    def loss(self, views: Views, gather: Gather, t: float) -> MethodLoss:
        """InfoNCE of each query with the keys of all images of the whole batch."""
        directions = list(zip(views.query, views.key, strict=True))
        queries = self._queries([query for query, _ in directions], gather)
        keys = self._keys([key for _, key in directions], gather)
        losses = [info_nce(q, k, self.temperature) for q, k in zip(queries, keys, strict=True)]
        return MethodLoss(self.loss_scale * torch.stack(losses).mean() * len(losses), queries[0].detach())

    def _queries(self, views: list[View], gather: Gather) -> list[torch.Tensor]:
        """(B, E) of each view, by the base encoder and the predictor; B over all processes."""
        return [self.predictor(self.projector(gather(part))) for part in encode(self.backbone, views)]

    @torch.no_grad()
    def _keys(self, views: list[View], gather: Gather) -> list[torch.Tensor]:
        """(B, E) of each view, by the momentum encoder and without gradient; B over all processes."""
        return [self.key_projector(gather(part)) for part in encode(self.key_backbone, views)]
