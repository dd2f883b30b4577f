"""What one step of a removal did and measured, as a row of the report; ours, for arXiv 2312.16904."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .surgery import Removal


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """A step; what chose the units is None where they were named.

    Attributes:
        k: number of the step in this run.
        removed: what it removed.
        top1_score_before_ft: on the scoring images, just after the removal.
        top1_score_after_bn_recal: the same with new statistics; None without.
        top1_score_after_ft: the same after the treatment.
        top1_test_before_ft: on the test images, just after the removal.
        top1_test_after_ft: the same after the treatment.
        params: of the network that is left.
        macs: multiply-adds of one image through it.
        flops: twice those.
        params_removed: share of the network that the run began with.
        macs_removed: likewise.
        ft: length, learning rate and seconds of the fine-tuning.
        treatment: "fine-tuned", "recalibrated" or "".
        checkpoint: folder of the fine-tuning's states, in the run's.
        importance: a mapping for each candidate.
        criterion: what chose.
        metric: the ranking measure.
        sharing: how candidates shared computations.
        score_bn: statistics during direct scoring.
        bit_exact: 1 where scores are bitwise those of full passes.
        cost_model: multiply-adds of the scoring.
        images_needed: images that would tell the first two apart.
        score_seconds: time of the scoring.
        score_images: images that it used.
        lookahead: figures of the candidates that were tried out.
        latency: of one image, over the original network's.
        rejected: whether the step was taken back.
    """

    k: int
    removed: Sequence[Removal]
    top1_score_before_ft: float
    top1_score_after_bn_recal: float | None
    top1_score_after_ft: float
    top1_test_before_ft: float
    top1_test_after_ft: float
    params: int
    macs: int
    flops: int
    params_removed: float
    macs_removed: float
    ft: Mapping[str, Any] | None
    treatment: str
    checkpoint: str | None
    importance: Sequence[Mapping[str, Any]] | None = None
    criterion: str | None = None
    metric: str | None = None
    sharing: str | None = None
    score_bn: str | None = None
    bit_exact: int | None = None
    cost_model: Mapping[str, Any] | None = None
    images_needed: Mapping[str, Any] | None = None
    score_seconds: float | None = None
    score_images: int | None = None
    lookahead: Sequence[Mapping[str, Any]] | None = None
    latency: float | None = None
    rejected: bool = False

    @property
    def names(self) -> list[str]:
        """Original paths of what was removed."""
        return [removal.original_path for removal in self.removed]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `rejected` only where it is."""
        return {key: value for key, value in asdict(self).items() if key != "rejected" or value}


def treatment_of(treatments: Sequence[str]) -> str:
    """What the second accuracy of steps is measured after: fine-tuning, new statistics alone, or nothing."""
    return "fine-tuned" if "fine-tuned" in treatments else next(iter(treatments), "")
