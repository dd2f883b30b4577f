"""The selectors by name: what each needs, what it costs, and how it is made. A new one is a row of SELECTORS.

Each names its source where it is defined; the rows are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .dropped import Choice, Dropped
from .evit import EvitSelector
from .macs import TowerShape
from .predictor import Predictor
from .prompts import Prompts
from .selectors import (
    CenterSelector,
    ClsAttentionSelector,
    GridSelector,
    NormSelector,
    RandomSelector,
    TaylorSelector,
)
from .taylor import PROBES
from .tome import equal_keep, merge_schedule
from .tower import Selector, WrappedTower, num_keep


@dataclass(frozen=True)
class Place:
    """Where a tower is pruned, and with which predictor.

    Attributes:
        shape: sizes of the tower.
        num_heads: attention heads of a block.
        layer: p, the blocks before the pruning.
        predictor: None where there is none.
        choice: what is done with the scored patches.
    """

    shape: TowerShape
    num_heads: int
    layer: int
    predictor: Predictor | None = None
    choice: Choice = field(default_factory=Choice)


Make = Callable[[Selector | None, int, bool], Selector | None]


def _nothing(place: Place) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class SelectorSpec:
    """Description of a selector.

    Attributes:
        make: the selector, from the predictor, a seed, and whether it reads the block before; None for `golden`, which
            is made where images are searched, and for what merges tokens.
        macs: multiply-adds of the selector for an image.
        dropped: what becomes of the patches that it does not keep, if it says that itself.
        merges: tokens that it merges in each block from p on, at a keep rate, in place of dropping any.
        needs_cls: whether it reads the attention of CLS.
        needs_pooled_prefix: whether it reads gradients, which do not reach all patches if the pooling reads patches.
        oracle: whether it uses information that is not available in deployment.
        offline: whether it costs more than it saves.
        note: for the table, where its rows mean something different.
    """

    make: Make | None = None
    macs: Callable[[Place], int] = _nothing
    dropped: Dropped | None = None
    merges: Callable[[Place, float], tuple[int, ...]] | None = None
    needs_cls: bool = False
    needs_pooled_prefix: bool = False
    oracle: bool = False
    offline: bool = False
    note: str = ""

    @property
    def deployable(self) -> bool:
        """Whether it can be deployed."""
        return not (self.oracle or self.offline)


def merges(place: Place, keep: float) -> tuple[int, ...]:
    """Tokens that `tome` merges in each block from p on."""
    kept = num_keep(keep, place.shape.num_patches)
    return merge_schedule(place.shape, place.num_heads, kept, place.layer)


SELECTORS: dict[str, SelectorSpec] = {
    "predictor": SelectorSpec(
        make=lambda predictor, seed, previous: predictor,
        macs=lambda place: place.predictor.macs(place.shape.num_patches) if place.predictor else 0,
    ),
    "golden": SelectorSpec(oracle=True),
    "cls-attn": SelectorSpec(
        make=lambda predictor, seed, previous: ClsAttentionSelector(previous=previous),
        macs=lambda place: place.shape.cls_attention(),
        needs_cls=True,
    ),
    "evit": SelectorSpec(
        make=lambda predictor, seed, previous: EvitSelector(previous=previous),
        macs=lambda place: place.shape.cls_attention(),
        dropped=EvitSelector.dropped,
        needs_cls=True,
    ),
    "tome": SelectorSpec(
        merges=merges,
        note="tome merges tokens in every block, at the same multiply-adds as dropping to that many patches",
    ),
    "random": SelectorSpec(make=lambda predictor, seed, previous: RandomSelector(seed)),
    "grid": SelectorSpec(make=lambda predictor, seed, previous: GridSelector()),
    "center": SelectorSpec(make=lambda predictor, seed, previous: CenterSelector()),
    "norm": SelectorSpec(
        make=lambda predictor, seed, previous: NormSelector(),
        macs=lambda place: place.shape.num_patches * place.shape.width,
    ),
    "taylor": SelectorSpec(
        make=lambda predictor, seed, previous: TaylorSelector(),
        macs=lambda place: place.shape.taylor(place.layer, min(PROBES, place.shape.embed_dim)),
        needs_pooled_prefix=True,
        offline=True,
        note="taylor's forward and backward passes cost more than the dense tower: a reference, not a saving",
    ),
}


@dataclass(frozen=True)
class Arm:
    """A pruned tower in a comparison."""

    selector: str
    keep: float
    vision: WrappedTower

    @property
    def name(self) -> str:
        """In the rows of a comparison."""
        return f"{self.selector}, keep {self.keep:g}"

    def metric(self, batch: int, *, alone: bool) -> str:
        """Name of its speed-up; selector and keep rate are in it only where there are several."""
        stem = "" if alone else f"{self.selector.replace('-', '_')}_keep{self.keep:g}_"
        return f"speedup_{stem}b{batch}"


def spec_of(name: str) -> SelectorSpec:
    """The row of a selector; "predictor+tuned" is the predictor with prompts in the tower."""
    return SELECTORS[name.removesuffix("+tuned")]


def macs_of(place: Place, name: str, keep: float, prompts: Prompts | None = None) -> int:
    """Multiply-adds of an image through the pruned tower, its selector included; none runs where all are kept."""
    shape = place.shape
    kept = num_keep(keep, shape.num_patches)
    rows, start = (prompts.num_rows, prompts.start) if prompts else (0, None)
    if name == "dense" or kept == shape.num_patches:
        return shape.pruned(shape.num_patches, place.layer, rows, start)
    spec = spec_of(name)
    if spec.merges:
        return shape.merged(spec.merges(place, keep), place.layer, place.num_heads)
    dropped = spec.dropped or place.choice.dropped
    passed = shape.pruned(kept, place.layer, rows + (dropped == "fuse"), start)
    compared = shape.compared(kept) if place.choice.diversity else 0
    return passed + spec.macs(place) + compared + shape.kept_of_dropped(kept, dropped)


def reachable(place: Place, name: str, keeps: Sequence[float]) -> tuple[list[float], list[float]]:
    """The keep rates at which a selector runs, each once: the requested ones, or the nearest that merging can reach.

    A block merges at most half of its patches. Below that cost all rates of `tome` would be the same tower under
    several names, so it runs once, labelled with the rate whose dropping costs as much.

    Returns:
        These rates, and those of `keeps` that are out of reach.
    """
    if spec_of(name).merges is None:
        return list(dict.fromkeys(keeps)), []
    found, beyond = [], []
    for keep in keeps:
        kept = num_keep(keep, place.shape.num_patches)
        reached = equal_keep(place.shape, place.num_heads, kept, place.layer)
        found.append(keep if reached is None else reached / place.shape.num_patches)
        if reached is not None:
            beyond.append(keep)
    return list(dict.fromkeys(found)), beyond
