"""Direct scoring: every unit, or set of units, is left out once, and the answers are compared (arXiv 2312.16904).

Candidates share their beginning. They are run in the order of their units: the forward pass of a candidate gets the
outputs of all parts before its unit from the passes before it, and the parts between the last candidate's unit and its
own are computed and kept on the way. So a part before a unit is computed once for all of them, by the same kernels from
the same tensors as without sharing, and the logits are equal bit for bit. The pass itself is the network's own
`forward`, with the parts' replaced.

Sets of units are the leaves of a tree of decisions, to keep or to skip each unit in turn: what two sets have in common
before they part is computed once.

Two ways to keep outputs:

    chain   only the newest one; for networks where each part sees the output of the part before and nothing else
    replay  those of all parts before the frontier; for any network that calls its parts in a fixed order

In a chain the older outputs are replaced by NaN without storage: were one used after all, the answers would be NaN.

B images, C classes, n units.
"""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .containers import evaluating
from .surgery import bypassed
from .trace import Forward, Trace, first_input, patched
from .unit import Unit

Sharing = Literal["auto", "chain", "replay", "off"]
_ORDER: dict[str, tuple[Literal["chain", "replay"], ...]] = {
    "auto": ("chain", "replay"),
    "chain": ("chain",),
    "replay": ("replay",),
    "off": (),
}


@dataclass(frozen=True)
class BatchScores:
    """Scores of one batch; row 0 is the network itself, row 1 + k the network without the k-th candidate's units.

    Attributes:
        correct: (1 + n, B) bool, the largest logit is the label's; the lowest class of equal ones counts.
        loss: (1 + n, B) float32, cross entropy.
        nan: (1 + n,) bool, some image has no finite loss; it counts as wrong.
    """

    correct: Tensor
    loss: Tensor
    nan: Tensor


class DivergedError(RuntimeError):
    """The parts were called in another order than before."""


class Scorer:
    """Scores a network without each of its units, or without each of some sets of them, batch by batch.

    The first batch is also scored without sharing, for the network itself and the first and last candidate; where the
    logits differ in a bit, the next way is tried, and at last nothing is shared. Equality needs the same kernels in
    both: the caller turns cuDNN's benchmark off and deterministic algorithms on.

    Args:
        network: what is scored, in evaluation mode.
        units: removable modules, at least one, none within another.
        sharing: "auto" tries a chain, then replay.
        sets: indices of the units of each candidate; default each unit alone.

    Attributes:
        sharing: what is in use; before the first batch, what was asked for.
        reason: why it is not the first choice, or empty.

    Raises:
        ValueError: no units, or no such sharing.
    """

    def __init__(
        self,
        network: nn.Module,
        units: Sequence[Unit],
        sharing: Sharing = "auto",
        sets: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if not units:
            raise ValueError("there are no units to score")
        if sharing not in get_args(Sharing):
            raise ValueError(f"sharing {sharing!r} is not one of {', '.join(get_args(Sharing))}")
        self.network = network
        self.units = list(units)
        self.sets = [(index,) for index in range(len(units))] if sets is None else [tuple(s) for s in sets]
        self.sharing = sharing
        self.reason = ""
        self._untried = _ORDER[sharing]
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
        with evaluating(self.network), torch.autocast(images.device.type, enabled=False):
            logits = self._logits(images, chosen)
            loss = torch.stack([F.cross_entropy(row, labels, reduction="none") for row in logits])
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
        """Try the ways of sharing in turn."""
        if not active:
            return self._naive(images, [None])
        self._trace = Trace.of(self.network, self.units, images[:2])
        probes = [0, 1, len(active)]
        expected = self._naive(images, [None, active[0], active[-1]])
        reasons: list[str] = []
        for way in self._untried:
            self.sharing = way
            found, reason = self._attempt(images, active)
            if found and not all(_same(found[row], logits) for row, logits in zip(probes, expected, strict=True)):
                reason = "other logits than without sharing"
            if not reason:
                self.reason, self._untried = "; ".join(reasons), ()
                return found
            reasons.append(f"{way}: {reason}")
        self._give_up("; ".join(reasons))
        return self._naive(images, [None, *active])

    def _attempt(self, images: Tensor, active: list[int]) -> tuple[list[Tensor], str]:
        """Logits, or why there are none."""
        assert self._trace is not None
        if self.sharing == "chain" and not self._trace.is_chain:
            return [], "some part between units does not see the output of the part before and nothing else"
        try:
            return self._shared(images, active), ""
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # also of code between parts that cannot handle an output without storage
            return [], str(error).splitlines()[0]

    def _give_up(self, reason: str) -> None:
        self.sharing, self.reason, self._untried = "off", reason, ()

    def _naive(self, images: Tensor, rows: Sequence[int | None]) -> list[Tensor]:
        """One whole pass for each row; None is the network itself."""
        found = []
        for row in rows:
            with bypassed(self.network, [] if row is None else [self.units[index] for index in self.sets[row]]):
                found.append(self.network(images).float())
        return found

    def _shared(self, images: Tensor, active: list[int]) -> list[Tensor]:
        assert self._trace is not None
        numbers = self._trace.positions
        sweep = _Sweep(self.network, self._trace, images, chain=self.sharing == "chain")
        skips = {row: {numbers[index]: self.units[index] for index in self.sets[row]} for row in active}
        with patched(sweep.forwards()):
            in_order = sorted(active, key=lambda row: [*sorted(skips[row]), math.inf])  # longer sets first
            found = {row: sweep.without(skips[row]) for row in in_order}
            return [sweep.without({}), *(found[row] for row in active)]


class _Sweep:
    """Passes over one batch, with the outputs that they share.

    Args:
        network: in evaluation mode.
        trace: of it.
        images: the batch.
        chain: keep no more than the newest output.
    """

    def __init__(self, network: nn.Module, trace: Trace, images: Tensor, *, chain: bool) -> None:
        self.network = network
        self.trace = trace
        self.images = images
        self.chain = chain
        self._levels: list[list[Any]] = [[]]  # outputs from call 0 on, then from each skipped call on
        self._next = 0  # number of the next call of this pass
        self._skips: dict[int, Unit] = {}
        self._path: list[int] = []  # numbers of the skipped calls, ascending

    def forwards(self) -> dict[nn.Module, Forward]:
        """For `patched`, while the passes run."""
        return {module: partial(self._call, module, module.forward) for module in set(self.trace.modules)}

    def without(self, skips: Mapping[int, Unit]) -> Tensor:
        """Logits (B, C) without the units of some calls.

        Sets come in the order of their calls' numbers, a set after all that begin with it; so the empty one is last.
        """
        path = sorted(skips)
        pairs = zip(path, self._path, strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._levels = [*self._levels[: same + 1], *([] for _ in path[same:])]
        self._next, self._skips, self._path = 0, dict(skips), path
        logits = self.network(self.images).float()
        if self._next != len(self.trace.modules):
            raise DivergedError("not all parts are called each time")
        return logits

    def _call(self, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        number = self._next
        self._next += 1
        if number >= len(self.trace.modules) or self.trace.modules[number] is not module:
            raise DivergedError("the parts are not called in the same order each time")
        depth = bisect.bisect_right(self._path, number)
        level = self._levels[depth]
        place = number - (self._path[depth - 1] if depth else 0)
        if place < len(level):
            output = level[place]
        else:
            unit = self._skips.get(number)
            output = _skip(unit, *args, **kwargs) if unit else forward(*args, **kwargs)
            if depth < len(self._path):
                self._keep(level, number, output)
        return output.clone() if number in self.trace.overwritten else output

    def _keep(self, level: list[Any], number: int, output: Any) -> None:
        """Keep an output; in a chain, those before it on its level lose their storage, and other levels' do not."""
        if self.chain and number >= self.trace.chain_from and level:
            oldest = 0 if number == self.trace.chain_from else len(level) - 1
            level[oldest:] = [_without_storage(value) for value in level[oldest:]]
        level.append(output)


def _skip(unit: Unit, *args: Any, **kwargs: Any) -> Tensor:
    """What takes the place of a removed unit."""
    x = first_input(args, kwargs)
    return x.relu() if unit.relu else x


def _without_storage(value: Any) -> Any:
    """NaN of the same shape and type, for floating-point tensors."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.new_full((), torch.nan).expand(value.shape)
    return value


def _same(first: Tensor, second: Tensor) -> bool:
    """Equal bits: NaN is equal to itself."""
    return torch.equal(first.contiguous().view(torch.int32), second.contiguous().view(torch.int32))
