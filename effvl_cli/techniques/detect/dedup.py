"""Near-duplicate frames: signatures, the walk that skips frames, its label guard, and frames shared by two splits.

IMMVP (arXiv 1910.06573) leaves look-alike training samples out against overfitting and does not say how it finds
them; signatures, thresholds, walk and guard are ours. `dhash` is the gradient hash of Krawetz, `phash` the DCT hash.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from effvl_cli.techniques.detect.tagging import shrunk

GRID = 8  # of the hashes
PHASH_SIZE = 32
NCC_HEIGHT, NCC_WIDTH = 20, 32
LEAST_STD = 1.0  # of the luma 0..255: below it a frame is flat, and its noise is not magnified
BLOCK = 256  # frames compared with all kept ones at a time
BANDS = 4  # parts of a hash
SLACK = 1e-3  # of a distance by a matrix product in float32


# --- signatures ------------------------------------------------------------------------------------------------------


def dhash(luma: Tensor, grid: int = GRID) -> Tensor:
    """Whether each cell is darker than its right neighbour.

    Args:
        luma: (H, W) in 0..255, any type.
        grid: cells along each side.

    Returns:
        (grid * grid,) bool, row by row.
    """
    small = shrunk(luma, grid, grid + 1)
    return (small[:, 1:] > small[:, :-1]).flatten()


def phash(luma: Tensor, grid: int = GRID) -> Tensor:
    """Whether each low coefficient of the DCT-II of a 32 x 32 frame is above their median.

    Args:
        luma: (H, W) in 0..255, any type.
        grid: coefficients along each side; the first of all, the mean, is left out.

    Returns:
        (grid * grid - 1,) bool.
    """
    basis = _dct(PHASH_SIZE)
    low = (basis @ shrunk(luma, PHASH_SIZE, PHASH_SIZE).double() @ basis.T)[:grid, :grid].flatten()[1:]
    return low > low.quantile(0.5)


def _dct(size: int) -> Tensor:
    """(size, size) float64 orthonormal DCT-II."""
    steps = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (steps + 0.5) * steps[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def standardised(luma: Tensor) -> Tensor:
    """A 32 x 20 frame with mean 0 and standard deviation 1 (of flat frames less), for correlations.

    Args:
        luma: (H, W) in 0..255, any type.

    Returns:
        (640,) float32.
    """
    small = shrunk(luma, NCC_HEIGHT, NCC_WIDTH).flatten()
    return (small - small.mean()) / small.std(correction=0).clamp(min=LEAST_STD)


class Rule(NamedTuple):
    """When two frames are alike: in all that is not None.

    Attributes:
        bits: most bits of the hashes that differ.
        distance: most half mean squared difference of the vectors, which for vectors of mean square 1 is 1 -
            correlation or 1 - cosine.
    """

    bits: int | None
    distance: float | None


@dataclass(frozen=True, eq=False)
class Signatures:
    """What is compared of N frames.

    Attributes:
        bits: (N, B) bool hashes, or None.
        vectors: (N, D) float32 of mean square 1 or less, or None.
    """

    bits: Tensor | None
    vectors: Tensor | None

    def __len__(self) -> int:
        found = self.vectors if self.bits is None else self.bits
        return 0 if found is None else len(found)

    def take(self, rows: Sequence[int]) -> "Signatures":
        """Some of them, in that order."""
        places = torch.as_tensor(rows, dtype=torch.int64)
        return Signatures(*(None if part is None else part[places] for part in (self.bits, self.vectors)))

    @cached_property
    def hashes(self) -> list[int]:
        """The hashes as numbers with a byte for each bit."""
        return [] if self.bits is None else [int.from_bytes(row.numpy().tobytes(), "big") for row in self.bits]

    def alike(self, frame: int, others: "Signatures", other: int, rule: Rule) -> float | None:
        """How far a frame is from one of other frames, if they are alike by the rule; else None.

        Returns:
            Half the mean squared difference of the vectors where these count, else the number of differing bits.
        """
        bits = distance = None
        if rule.bits is not None:
            bits = (self.hashes[frame] ^ others.hashes[other]).bit_count()
            if bits > rule.bits:
                return None
        if rule.distance is not None:
            assert self.vectors is not None and others.vectors is not None
            distance = float((self.vectors[frame] - others.vectors[other]).square().mean()) / 2
            if distance > rule.distance:
                return None
        return bits if distance is None else distance

    def candidates(self, others: "Signatures", rule: Rule) -> Tensor:
        """(N, M) bool, true at least where two frames are alike: the bits exactly, the vectors by a matrix product."""
        found = torch.ones(len(self), len(others), dtype=torch.bool)
        if rule.bits is not None and self.bits is not None and others.bits is not None:
            one, two = self.bits.float(), others.bits.float()
            found &= one.sum(1)[:, None] + two.sum(1) - 2 * one @ two.T <= rule.bits  # sums of whole numbers are exact
        if rule.distance is not None and self.vectors is not None and others.vectors is not None:
            ours, theirs = self.vectors, others.vectors
            squares = ours.square().sum(1)[:, None] + theirs.square().sum(1) - 2 * ours @ theirs.T
            found &= squares / (2 * ours.shape[1]) <= rule.distance + SLACK  # of near twins it is noise
        return found


# --- the walk --------------------------------------------------------------------------------------------------------


class Skip(NamedTuple):
    """A frame that is left out.

    Attributes:
        kept: position of the frame that stands for it.
        distance: to it.
    """

    kept: int
    distance: float


Guard = Callable[[int, int], bool]
"""Whether the labels of a frame allow it to be skipped for the sake of a kept one."""


def walk(
    signatures: Signatures,
    sequences: Sequence[Hashable],
    rule: Rule,
    *,
    guard: Guard | None = None,
    max_gap: int = 0,
) -> Iterator[Skip | None]:
    """Which frames are skipped, one after another: those like the last frame that was kept.

    The last *kept* one, not the last seen: slow drift cannot remove a whole sequence.

    Args:
        signatures: N frames in order.
        sequences: N; where it changes, the walk begins anew.
        rule: what alike means.
        guard: see `Guard`; None: labels do not matter.
        max_gap: keep a frame once so many were skipped; 0: never for that reason.

    Yields:
        N, None where the frame is kept.
    """
    reference, gap = 0, 0
    for frame, sequence in enumerate(sequences):
        skip = None
        if frame and sequence == sequences[frame - 1] and not (max_gap and gap >= max_gap):
            skip = _skip(signatures, frame, [reference], rule, guard)
        reference, gap = (frame, 0) if skip is None else (reference, gap + 1)
        yield skip


def walk_all(
    signatures: Signatures,
    sequences: Sequence[Hashable],
    rule: Rule,
    *,
    guard: Guard | None = None,
    max_gap: int = 0,
) -> Iterator[Skip | None]:
    """The same with every frame kept so far in the place of the last one.

    Args:
        signatures: N frames in order.
        sequences: N; `max_gap` counts anew where it changes.
        rule: what alike means.
        guard: see `Guard`.
        max_gap: keep a frame once so many of its sequence were skipped in a row.
    """
    kept = _bands_or_blocks(signatures, rule)
    gap = 0
    for frame, sequence in enumerate(sequences):
        gap = gap if frame and sequence == sequences[frame - 1] else 0
        skip = None
        if not (max_gap and gap >= max_gap):
            skip = _skip(signatures, frame, kept.near(frame), rule, guard)
        if skip is None:
            kept.add(frame)
        gap = 0 if skip is None else gap + 1
        yield skip


def _skip(signatures: Signatures, frame: int, kept: Sequence[int], rule: Rule, guard: Guard | None) -> Skip | None:
    """The nearest of some kept frames that a frame may be skipped for."""
    distances = [(signatures.alike(frame, signatures, one, rule), one) for one in kept]
    for distance, one in sorted((distance, one) for distance, one in distances if distance is not None):
        if guard is None or guard(frame, one):
            return Skip(one, float(distance))
    return None


class _Bands:
    """Kept frames by the quarters of their hashes: two that differ in fewer than 4 bits share one.

    Args:
        signatures: of all frames.
    """

    def __init__(self, signatures: Signatures) -> None:
        assert signatures.bits is not None
        self._keys = [
            [(place, row.numpy().tobytes()) for place, row in enumerate(bits.chunk(BANDS))] for bits in signatures.bits
        ]
        self._kept: dict[tuple[int, bytes], list[int]] = {}

    def near(self, frame: int) -> list[int]:
        """Kept frames among which are all that differ in few bits."""
        return sorted({one for key in self._keys[frame] for one in self._kept.get(key, ())})

    def add(self, frame: int) -> None:
        """A frame is kept."""
        for key in self._keys[frame]:
            self._kept.setdefault(key, []).append(frame)


class _Blocks:
    """Kept frames compared with BLOCK frames at a time.

    Args:
        signatures: of all frames, which are asked for in order.
        rule: what alike means.
    """

    def __init__(self, signatures: Signatures, rule: Rule) -> None:
        self._signatures, self._rule = signatures, rule
        self._kept: list[int] = []
        self._start = self._before = -BLOCK

    def near(self, frame: int) -> list[int]:
        """Kept frames among which are all that are alike."""
        if frame >= self._start + BLOCK:
            self._start, self._before = frame, len(self._kept)
            block = self._signatures.take(range(frame, min(frame + BLOCK, len(self._signatures))))
            self._old = block.candidates(self._signatures.take(self._kept), self._rule)
            self._new = block.candidates(block, self._rule)
        row = frame - self._start
        old = [self._kept[k] for k in self._old[row].nonzero()[:, 0].tolist()]
        return old + [one for one in self._kept[self._before :] if self._new[row, one - self._start]]

    def add(self, frame: int) -> None:
        """A frame is kept."""
        self._kept.append(frame)


def _bands_or_blocks(signatures: Signatures, rule: Rule) -> _Bands | _Blocks:
    return _Bands(signatures) if banded(rule) else _Blocks(signatures, rule)


def banded(rule: Rule) -> bool:
    """Whether frames that are alike are found without comparing each with each."""
    return rule.bits is not None and rule.bits < BANDS


class Leak(NamedTuple):
    """A frame that another split has too.

    Attributes:
        frame: position in the first split.
        other: position of the nearest like it in the second.
        distance: between them.
    """

    frame: int
    other: int
    distance: float


def leaks(ours: Signatures, theirs: Signatures, rule: Rule) -> Iterator[Leak | None]:
    """Of each frame of one split the nearest that is like it in another; None where none is.

    Args:
        ours: N frames.
        theirs: M frames.
        rule: what alike means.
    """
    for start in range(0, len(ours), BLOCK):
        rows = range(start, min(start + BLOCK, len(ours)))
        candidates = ours.take(rows).candidates(theirs, rule)
        for frame in rows:
            others = candidates[frame - start].nonzero()[:, 0].tolist()
            alike = [(ours.alike(frame, theirs, other, rule), other) for other in others]
            near = min(((distance, other) for distance, other in alike if distance is not None), default=None)
            yield None if near is None else Leak(frame, near[1], float(near[0]))


def adjacent(signatures: Signatures, sequences: Sequence[Hashable]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Distances of each frame to the one before it in its sequence.

    Args:
        signatures: N frames in order.
        sequences: N.

    Returns:
        (K,) positions of the later frames, (K,) differing bits, (K,) distances; None for what there is not.
    """
    places = [k for k in range(1, len(sequences)) if sequences[k] == sequences[k - 1]]
    later, before = torch.tensor(places, dtype=torch.int64), torch.tensor(places, dtype=torch.int64) - 1
    bits = distance = None
    if signatures.bits is not None:
        bits = (signatures.bits[later] != signatures.bits[before]).sum(1)
    if signatures.vectors is not None:
        distance = (signatures.vectors[later] - signatures.vectors[before]).square().mean(1) / 2
    return later, bits, distance


# --- the label guard -------------------------------------------------------------------------------------------------


def same_labels(
    boxes: Tensor, labels: Tensor, other_boxes: Tensor, other_labels: Tensor, least_iou: float = 0.8
) -> bool:
    """Whether two frames hold the same objects in about the same places; true for two frames without any.

    Boxes are matched class by class, the pair with the largest IoU first.

    Args:
        boxes: (N, 4) xyxy.
        labels: (N,) int64.
        other_boxes: (M, 4).
        other_labels: (M,).
        least_iou: of each matched pair.
    """
    if not torch.equal(labels.sort().values, other_labels.sort().values):
        return False
    if not len(labels):
        return True
    iou = pairwise_iou(boxes, other_boxes)
    iou[labels[:, None] != other_labels] = -1
    for _ in range(len(labels)):
        best = int(iou.argmax())
        row, column = divmod(best, iou.shape[1])
        if iou[row, column] < least_iou:
            return False
        iou[row], iou[:, column] = -2, -2
    return True


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(N, M) intersection over union of (N, 4) and (M, 4) boxes xyxy; 0 for boxes without an area."""
    low = torch.maximum(boxes[:, None, :2], others[:, :2])
    high = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(part[:, 2:] - part[:, :2]).clamp(min=0).prod(1) for part in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1] - shared).clamp(min=1e-12)


# --- the threshold for a share ---------------------------------------------------------------------------------------

BISECTIONS = 20


def smallest_bits(share_at: Callable[[int], float], keep: float, most: int) -> int | None:
    """The smallest number of differing bits at which no more than a share of the frames is kept; None: none is.

    Args:
        share_at: kept share at a number.
        keep: wanted share.
        most: number of bits.
    """
    return next((bits for bits in range(most + 1) if share_at(bits) <= keep), None)


def smallest_distance(share_at: Callable[[float], float], keep: float, most: float) -> float | None:
    """The same for a distance from 0 to `most`, by bisection; None: not even at `most`."""
    if share_at(most) > keep:
        return None
    low, high = 0.0, most
    if share_at(low) <= keep:
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if share_at(middle) <= keep else (middle, high)
    return high
