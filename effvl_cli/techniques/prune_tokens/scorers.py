"""How harmless it is to remove patches, judged by the embedding that is left. High = safe to remove.

Wu et al., arXiv 2409.14607, phase I: the label's posterior, the largest posterior, or closeness to the embedding with
all patches. Shapes: C candidates, E embedding width, Y classes, B images.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

Space = Literal["log", "prob", "logit"]


class Scorer(Protocol):
    """How harmless a removal is.

    Attributes:
        stationary: with nothing removed, the score is at its largest, so that its gradient says nothing.
    """

    stationary: ClassVar[bool]

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """Embeddings (C, E) without the removed patches, and (E,) with all, to (C,) float32; high = safe to remove.

        `sample` is the image's row in the batch that is being ranked, for scorers that know more about it.
        """


class FeatureScorer:
    """Cosine between the embeddings with and without the removed patches; 0 for an embedding of length 0."""

    stationary: ClassVar[bool] = True

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """See `Scorer`."""
        return F.normalize(embeddings.float(), dim=-1) @ F.normalize(reference.float(), dim=-1)


@dataclass(frozen=True, kw_only=True)
class ClassScorer:
    """What the zero-shot classes make of the embedding.

    Attributes:
        classifier: (E, Y) unit class embeddings.
        tau: scalar that multiplies cosines.
        space: log-posterior, posterior, or scaled cosine. The first two order single patches alike, but a posterior
            saturates at 1, and means over windows differ.
    """

    classifier: Tensor
    tau: Tensor
    space: Space = "log"

    stationary: ClassVar[bool] = False

    def values(self, embeddings: Tensor) -> Tensor:
        """(C, E) to (C, Y)."""
        logits = self.tau * F.normalize(embeddings.to(self.classifier), dim=-1) @ self.classifier
        if self.space == "logit":
            return logits
        return logits.log_softmax(-1) if self.space == "log" else logits.softmax(-1)


@dataclass(frozen=True, kw_only=True)
class LabelScorer(ClassScorer):
    """The true class of the image.

    Attributes:
        labels: (B,) classes of the images that are being ranked.
    """

    labels: Tensor

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """See `Scorer`."""
        return self.values(embeddings)[:, int(self.labels[sample])]


@dataclass(frozen=True, kw_only=True)
class ConfidenceScorer(ClassScorer):
    """The most likely class.

    Attributes:
        anchor_first: of the first candidate, and then the same class for the others, as in the official code; otherwise
            each candidate has its own.
    """

    anchor_first: bool = False

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """See `Scorer`."""
        values = self.values(embeddings)
        return values[:, values[0].argmax()] if self.anchor_first else values.max(-1).values
