"""How safe it is to remove patches, measured on the embedding without them. High = safe to remove.

Wu et al., arXiv 2409.14607, phase I: the label's posterior, the largest posterior, or closeness to the embedding with
all patches. Shapes: C candidates, E embedding width, Y classes, B images.

A ranking compares nearly equal scores: without one patch the embedding has a cosine of 1 - 1e-7, and the label
a posterior of 1 - 1e-9. So each score is measured from its upper bound, where floating-point numbers are dense, and
computed in float64. The only rounding left is that of the embeddings themselves.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Space = Literal["log", "prob", "logit"]


class Scorer(Protocol):
    """How safe a removal is.

    Attributes:
        stationary: with nothing removed the score is at its maximum, so its gradient is zero.
    """

    stationary: ClassVar[bool]

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """Embeddings (C, E) without the removed patches, and (E,) with all, to (C,) float64; high = safe to remove.

        Only differences of scores mean anything.
        `sample` is the image's row in the batch that is being ranked, for scorers that know more about it.
        """


class FeatureScorer:
    """Cosine between the embeddings with and without the removed patches, less 1.

    That is minus half the squared distance of the unit vectors. An embedding of length 0 has cosine 0.
    """

    stationary: ClassVar[bool] = True

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """See `Scorer`."""
        whole, rest = F.normalize(_wide(reference), dim=-1), F.normalize(_wide(embeddings), dim=-1)
        scores = (rest - whole).square().sum(-1) / -2
        return torch.where(embeddings.any(-1), scores, -1.0)


@dataclass(frozen=True, kw_only=True)
class ClassScorer:
    """Scores of the embedding against the zero-shot classes.

    Attributes:
        classifier: (E, Y) unit class embeddings.
        tau: scalar that multiplies cosines.
        space: log-posterior, posterior less 1, or scaled cosine. The first two give single patches the same order, but
            means over windows differ.
    """

    classifier: Tensor
    tau: Tensor
    space: Space = "log"

    stationary: ClassVar[bool] = False

    def logits(self, embeddings: Tensor) -> Tensor:
        """Scaled cosines, (C, E) to (C, Y) float64."""
        return _wide(self.tau) * F.normalize(_wide(embeddings), dim=-1) @ _wide(self.classifier)

    def of_class(self, logits: Tensor, chosen: Tensor) -> Tensor:
        """(C, Y) logits and (C,) classes to (C,) scores."""
        own = logits.gather(1, chosen[:, None])[:, 0]
        if self.space == "logit":
            return own
        others = logits.scatter(1, chosen[:, None], -torch.inf).logsumexp(1)
        log = -F.softplus(others - own)  # of the posterior; log_softmax cannot represent values between 0 and -1e-14
        return log if self.space == "log" else log.expm1()


@dataclass(frozen=True, kw_only=True)
class LabelScorer(ClassScorer):
    """Score of the true class of the image.

    Attributes:
        labels: (B,) classes of the images that are being ranked.
    """

    labels: Tensor

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """See `Scorer`."""
        logits = self.logits(embeddings)
        return self.of_class(logits, self.labels[sample].to(logits.device).expand(len(logits)))


@dataclass(frozen=True, kw_only=True)
class ConfidenceScorer(ClassScorer):
    """Score of the most likely class.

    Attributes:
        anchor_first: the class of the first candidate is used for all, as in the official code; otherwise
            each candidate has its own.
    """

    anchor_first: bool = False

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """See `Scorer`."""
        logits = self.logits(embeddings)
        chosen = logits.argmax(1)
        return self.of_class(logits, chosen[:1].expand(len(logits)) if self.anchor_first else chosen)


def _wide(values: Tensor) -> Tensor:
    """A tensor of any shape in float64, where the device supports it."""
    return values.float() if values.device.type == "mps" else values.double()
