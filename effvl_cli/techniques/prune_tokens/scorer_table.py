"""The scorers by name: what each reads, and how it is made. A new one is a row of SCORERS.

Each names its source where it is defined; the rows are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .scorers import ConfidenceScorer, FeatureScorer, LabelScorer, Scorer, Space


@dataclass(frozen=True, kw_only=True)
class Known:
    """What scorers may know about the ranked images.

    Attributes:
        labels: (B,) their classes.
        classifier: (E, Y) unit class embeddings.
        tau: scalar that multiplies cosines.
        space: see `ClassScorer`.
        anchor_first: see `ConfidenceScorer`.
    """

    labels: Tensor
    classifier: Tensor
    tau: Tensor
    space: Space
    anchor_first: bool


@dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """Description of a scorer.

    Attributes:
        make: makes the scorer from what it may know about the images.
        by_class: whether it reads the class weights.
        by_label: whether it reads the labels.
        by_gradients: whether scores are estimated from gradients instead of evaluated removals.
    """

    make: Callable[[Known], Scorer]
    by_class: bool = False
    by_label: bool = False
    by_gradients: bool = False


SCORERS: dict[str, ScorerSpec] = {
    "feature": ScorerSpec(make=lambda known: FeatureScorer()),
    "label": ScorerSpec(
        make=lambda known: LabelScorer(
            labels=known.labels, classifier=known.classifier, tau=known.tau, space=known.space
        ),
        by_class=True,
        by_label=True,
    ),
    "maxconf": ScorerSpec(
        make=lambda known: ConfidenceScorer(
            anchor_first=known.anchor_first, classifier=known.classifier, tau=known.tau, space=known.space
        ),
        by_class=True,
    ),
    "taylor": ScorerSpec(make=lambda known: FeatureScorer(), by_gradients=True),
}
