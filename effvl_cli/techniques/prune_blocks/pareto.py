"""Cost and accuracy along the steps of a removal, as rows of the report; ours, for arXiv 2312.16904."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from .step_row import StepRow
from .surgery import ORIGINAL
from .targets import Size

FINAL: Literal["final"] = "final"
RUNTIMES = {"torch": "torch", "ort": "onnxruntime"}


@dataclass(frozen=True)
class ParetoPoint:
    """Cost and accuracy of one network.

    Attributes:
        step: number of the step that made it; 0: the original network.
        params: its parameters.
        macs: multiply-adds of one image.
        top1: test accuracy.
        latency_torch: milliseconds of one image; None: not measured.
        latency_ort: the same in onnxruntime.
        latency_torch_low: lower end of the interval of the former.
        latency_torch_high: upper end.
        latency_ort_low: of the latter.
        latency_ort_high: likewise.
    """

    step: int | Literal["final"]
    params: int
    macs: int
    top1: float
    latency_torch: float | None = None
    latency_ort: float | None = None
    latency_torch_low: float | None = None
    latency_torch_high: float | None = None
    latency_ort_low: float | None = None
    latency_ort_high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def pareto_points(steps: Sequence[StepRow], before: float, after: float, original: Size) -> list[ParetoPoint]:
    """Cost and accuracy of the original network, of each step, and of the result if it was trained further.

    Args:
        steps: of the run; those taken back are left out.
        before: test top-1 of the original network.
        after: the same of the result.
        original: size of the original network.
    """
    points = [ParetoPoint(0, original.params, original.macs, before)]
    for row in steps:
        if not row.rejected:
            points.append(ParetoPoint(row.removed[0].step, row.params, row.macs, row.top1_test_after_ft))
    return points if after == points[-1].top1 else [*points, replace(points[-1], step=FINAL, top1=after)]


def with_latencies(
    points: Iterable[ParetoPoint],
    latencies: Mapping[tuple[str, str], tuple[float, float, float]],
    first: str = ORIGINAL,
) -> list[ParetoPoint]:
    """The points with these latencies in place of theirs.

    Args:
        points: of one network after the other.
        latencies: milliseconds and both ends of their interval, by network and runtime.
        first: name of the original network in these.
    """
    found: list[ParetoPoint] = []
    name = first
    for point in points:
        if point.step != FINAL:  # a further training changes no latency
            name = f"step {point.step}" if point.step else first
        times: dict[str, Any] = {}
        for short, runtime in RUNTIMES.items():
            place = f"latency_{short}"
            keys = (place, f"{place}_low", f"{place}_high")
            times |= zip(keys, latencies.get((name, runtime), (None, None, None)), strict=True)
        found.append(replace(point, **times))
    return found
