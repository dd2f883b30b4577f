"""Direct scoring: every unit, or set of units, is left out once, and the logits are compared (arXiv 2312.16904).

Candidates share the parts before their units. They run in the order of their units: the pass of a candidate gets the
outputs of all parts before its unit from earlier passes, and the parts between the previous candidate's unit and its
own are computed and kept on the way. So a part before a unit is computed once for all of them, by the same kernels from
the same tensors as without sharing, and the logits are equal bit for bit. The pass itself is the network's own
`forward`, with the forward methods of the parts replaced.

Sets of units are the leaves of a tree of decisions, to keep or to skip each unit in turn: what two sets have in common
before they diverge is computed once.

Usually nothing takes a unit's place; another module may, and later norms may have other statistics.

Two ways to keep outputs:

    chain   only the newest one; for networks where each part sees the output of the part before and nothing else
    replay  those of all parts before the frontier; for any network that calls its parts in a fixed order

In a chain older outputs are replaced by NaN without storage: if one were used after all, the logits would be NaN.
Several candidates of a chain can also run as one larger batch: faster on a GPU, and no longer equal bit for bit.

B images, C classes, n units.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .containers import evaluating
from .shared_forward import Buffers, DivergedError, StackedSweep, Sweep, run
from .trace import Forward, Trace, passing_on, patched
from .unit import Unit

Sharing = Literal["auto", "chain", "replay", "off"]
STACKED = "stack"
STACK_TOLERANCE = 1e-3  # of logits, relative above 1
_ORDER: dict[str, tuple[str, ...]] = {
    "auto": ("chain", "replay"),
    "chain": ("chain",),
    "replay": ("replay",),
    "off": (),
}


@dataclass(frozen=True)
class BatchScores:
    """Scores of one batch; row 0 is the network itself, row 1 + k the network without the k-th candidate's units.

    Attributes:
        correct: (1 + n, B) bool, whether the largest logit is the label's; of equal logits the lowest class counts.
        loss: (1 + n, B) float64, cross entropy; for a confident answer it is below the float32 resolution near 1, and
            impacts are differences of it.
        nan: (1 + n,) bool, whether some image has no finite loss; it counts as wrong.
    """

    correct: Tensor
    loss: Tensor
    nan: Tensor


class Scorer:
    """Scores a network without each of its units, or without each of some sets of them, batch by batch.

    The first batch is also scored without sharing, for the network itself and the first and last candidate; where the
    logits differ in a bit, the next way is tried, and finally nothing is shared. Equality needs the same kernels in
    both: the caller turns cuDNN's benchmark off and deterministic algorithms on.

    Args:
        network: to score, in evaluation mode.
        units: removable modules, at least one, not nested.
        sharing: "auto" tries a chain, then replay.
        sets: indices of the units of each candidate; default each unit alone.
        stand_ins: what is called instead of each unit; default: what its removal leaves.
        buffers: of each candidate, those that differ from the network's; of modules called after its only unit.
        stack: candidates that run as one larger batch where the network is a chain; more than 1 only for single units
            without `buffers`. Their logits may then differ by `STACK_TOLERANCE`.
        autocast: autocast type of the passes; None: no autocast, whatever the caller has set.

    Attributes:
        sharing: the way in use, which may also be "stack"; before the first batch, the requested one.
        reason: why it is not the first choice; empty if it is.

    Raises:
        ValueError: no units, or an unknown way of sharing.
    """

    def __init__(
        self,
        network: nn.Module,
        units: Sequence[Unit],
        sharing: Sharing = "auto",
        sets: Sequence[Sequence[int]] | None = None,
        *,
        stand_ins: Sequence[Forward] | None = None,
        buffers: Sequence[Buffers] | None = None,
        stack: int = 1,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not units:
            raise ValueError("there are no units to score")
        if sharing not in get_args(Sharing):
            raise ValueError(f"sharing {sharing!r} is not one of {', '.join(get_args(Sharing))}")
        self.network = network
        self.units = list(units)
        self.sets = [(index,) for index in range(len(units))] if sets is None else [tuple(s) for s in sets]
        self.stand_ins = [passing_on(unit) for unit in units] if stand_ins is None else list(stand_ins)
        self.buffers: Sequence[Buffers] = [{} for _ in self.sets] if buffers is None else buffers
        self.stack, self.autocast = stack, autocast
        self.sharing: str = sharing
        self.reason = ""
        self._untried = ((STACKED,) if stack > 1 else ()) + _ORDER[sharing]
        self._trace: Trace | None = None

    def batch(self, images: Tensor, labels: Tensor, active: Sequence[int] | None = None) -> BatchScores:
        """Score one batch.

        Args:
            images: (B, 3, H, W) float32, normalised.
            labels: (B,) int64.
            active: indices of the candidates that still count; default all. Row 1 + k is then for `active[k]`.

        Raises:
            ValueError: a unit is not called exactly once.
        """
        chosen = list(range(len(self.sets))) if active is None else list(active)
        kind = images.device.type
        with evaluating(self.network), torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
            logits = self._logits(images, chosen)
            loss = torch.stack([F.cross_entropy(row.double(), labels, reduction="none") for row in logits])
        broken = ~loss.isfinite()
        right = torch.stack([row.argmax(1) == labels for row in logits])
        return BatchScores(right & ~broken, loss, broken.any(1))

    def _logits(self, images: Tensor, active: list[int]) -> list[Tensor]:
        """(B, C) float32 of the network and of each candidate."""
        if self._untried:
            return self._first(images, active)
        if self.sharing == "off":
            return self._naive(images, [None, *active])
        try:
            return self._shared(images, active)
        except DivergedError as error:
            self._give_up(str(error))
            return self._naive(images, [None, *active])

    def _first(self, images: Tensor, active: list[int]) -> list[Tensor]:
        """Try the ways of sharing in turn; logits (B, C) of the network and of each candidate."""
        if not active:
            return self._naive(images, [None])
        self._trace = Trace.of(self.network, self.units, images[:2])
        probes = [0, 1, len(active)]
        expected = self._naive(images, [None, active[0], active[-1]])
        reasons: list[str] = []
        for way in self._untried:
            self.sharing = way
            found, reason = self._attempt(images, active)
            same = _close if way == STACKED else same_bits
            if found and not all(same(found[row], logits) for row, logits in zip(probes, expected, strict=True)):
                reason = "the logits differ from those without sharing"
            if not reason:
                self.reason, self._untried = "; ".join(reasons), ()
                return found
            reasons.append(f"{way}: {reason}")
        self._give_up("; ".join(reasons))
        return self._naive(images, [None, *active])

    def _attempt(self, images: Tensor, active: list[int]) -> tuple[list[Tensor], str]:
        """Logits (B, C) of the network and of each candidate, or why there are none."""
        assert self._trace is not None
        if self.sharing != "replay" and not self._trace.is_chain:
            return [], "some part between units does not see the output of the part before and nothing else"
        try:
            return self._shared(images, active), ""
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # also from code between parts that cannot handle an output without storage
            return [], str(error).splitlines()[0]

    def _give_up(self, reason: str) -> None:
        self.sharing, self.reason, self._untried = "off", reason, ()

    def _naive(self, images: Tensor, rows: Sequence[int | None]) -> list[Tensor]:
        """A full pass for each row, to logits (B, C); None is the network itself."""
        found = []
        for row in rows:
            chosen = [] if row is None else self.sets[row]
            forwards = {self.network.get_submodule(self.units[index].path): self.stand_ins[index] for index in chosen}
            with patched(forwards):
                found.append(run(self.network, images, {} if row is None else self.buffers[row]))
        return found

    def _shared(self, images: Tensor, active: list[int]) -> list[Tensor]:
        """Logits (B, C) of the network and of each active candidate, by the way of sharing in use."""
        assert self._trace is not None
        numbers = self._trace.positions
        stand_ins = {row: {numbers[index]: self.stand_ins[index] for index in self.sets[row]} for row in active}
        in_order = sorted(active, key=lambda row: [*sorted(stand_ins[row]), math.inf])  # longer sets first
        if self.sharing == STACKED:
            return self._stacked(images, active, in_order)
        sweep = Sweep(self.network, self._trace, images, chain=self.sharing == "chain")
        with patched(sweep.forwards()):
            found = {row: sweep.without(stand_ins[row], self.buffers[row]) for row in in_order}
            return [sweep.without({}, {}), *(found[row] for row in active)]

    def _stacked(self, images: Tensor, active: list[int], in_order: list[int]) -> list[Tensor]:
        """The same, several candidates as one batch: (B, C) each."""
        assert self._trace is not None
        found: dict[int, Tensor] = {}
        sweep = StackedSweep(self.network, self._trace, images)
        with patched(sweep.forwards()):
            for start in range(0, len(in_order), self.stack):
                rows = in_order[start : start + self.stack]
                indices = [self.sets[row][0] for row in rows]
                logits = sweep.beside({self._trace.positions[index]: self.stand_ins[index] for index in indices})
                found |= dict(zip(rows, logits, strict=True))
            return [*sweep.beside({}), *(found[row] for row in active)]


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of the same shape are bitwise equal; NaN equals itself."""
    return torch.equal(first.contiguous().view(torch.int32), second.contiguous().view(torch.int32))


def _close(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of the same shape are equal up to rounding; NaN equals itself."""
    limit = STACK_TOLERANCE * second.abs().clamp(min=1)
    return bool((((first - second).abs() <= limit) | (first.isnan() & second.isnan())).all())


def side_by_side(
    scorers: tuple[Scorer, Scorer], images: Tensor, labels: Tensor, *, rounds: int, now: Callable[[], float]
) -> tuple[float, bool]:
    """Score a batch in two ways, in turn.

    Args:
        scorers: of the same network and units.
        images: (B, 3, H, W).
        labels: (B,).
        rounds: how often; the first warms up, and is not timed.
        now: seconds on a clock that the device obeys.

    Returns:
        Time of the first over that of the second, and whether every answer and every loss is the same, bit for bit.
    """
    seconds, equal = [0.0, 0.0], True
    for turn in range(rounds):
        results = []
        for place, scorer in enumerate(scorers):
            started = now()
            results.append(scorer.batch(images, labels))
            seconds[place] += (now() - started) if turn else 0.0
        first, second = results
        equal &= torch.equal(first.correct, second.correct) and same_bits(first.loss, second.loss)
    return seconds[0] / seconds[1], equal
