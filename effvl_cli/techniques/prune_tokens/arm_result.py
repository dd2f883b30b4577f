"""What one arm measured, as a row of the report; ours, for the selectors of arXiv 2409.14607 and others."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """Accuracy of a selector at a keep rate, and its paired difference to the dense tower on the same images.

    Attributes:
        selector: its name, or "dense".
        keep: share of the patches that is kept.
        K: their number.
        oracle: whether it sees what a user would not have.
        n: number of images.
        templates: number of text templates.
        top1: accuracy.
        top5: likewise.
        top1_per_class: mean over classes.
        se: standard error of `top1` of the dense tower, else of `delta`.
        delta: `top1` minus the dense tower's.
        ci95: Wilson interval of `top1`.
        mcnemar: images that only the arm answers correctly, and only the dense tower.
        agreement: share of the images with the dense tower's answer.
        cosine: mean cosine with the dense tower's embedding.
        macs: multiply-adds of an image, the selector's included.
        flops: twice those.
        merges: tokens merged in each block; None for arms that drop.
    """

    selector: str
    keep: float
    K: int
    oracle: bool
    n: int
    templates: int
    top1: float
    top5: float
    top1_per_class: float
    se: float
    delta: float
    ci95: Sequence[float]
    mcnemar: Sequence[float]
    agreement: float
    cosine: float
    macs: int
    flops: int
    merges: Sequence[int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `merges` only where there are some."""
        return {key: value for key, value in asdict(self).items() if key != "merges" or value is not None}
