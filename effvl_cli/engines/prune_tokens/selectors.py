"""The selectors by name: what each needs, what it costs, and the tower that it makes. A new one is a row of SELECTORS.

Its name also stands in `config/prune_tokens.py`, whose lists help prints without loading torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from effvl_cli.config.prune_tokens import BenchConfig, EvalConfig, VizConfig
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.engines.prune_tokens.context import AnyContext, Context, Selecting
from effvl_cli.techniques.prune_tokens.evit import EvitSelector
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.selectors import (
    CenterSelector,
    ClsAttentionSelector,
    GridSelector,
    NormSelector,
    RandomSelector,
    TaylorSelector,
)
from effvl_cli.techniques.prune_tokens.taylor import PROBES
from effvl_cli.techniques.prune_tokens.tome import MergedVision, equal_keep, merge_schedule
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, Selector, WrappedTower, num_keep


def _nothing(context: AnyContext) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class SelectorSpec:
    """What the engine knows of a selector.

    Attributes:
        make: the selector, from the run and its predictor; None for `golden`, which is made where images are searched,
            and for what merges tokens.
        macs: multiply-adds of the selector for an image.
        rows: tokens that it adds behind the kept patches.
        merges: tokens that it merges in each block from p on, at a keep rate, in place of dropping any.
        needs_cls: reads the attention of CLS.
        needs_pooled_prefix: reads gradients, which reach no patch where the pooling does.
        oracle: knows what no deployed selector can.
        offline: costs more than it saves.
        note: for the table, where its rows mean something else than the others'.
    """

    make: Callable[[Selecting, Selector | None], Selector | None] | None = None
    macs: Callable[[AnyContext], int] = _nothing
    rows: int = 0
    merges: Callable[[AnyContext, float], tuple[int, ...]] | None = None
    needs_cls: bool = False
    needs_pooled_prefix: bool = False
    oracle: bool = False
    offline: bool = False
    note: str = ""

    @property
    def deployable(self) -> bool:
        """Whether it can serve."""
        return not (self.oracle or self.offline)


def merges(context: AnyContext, keep: float) -> tuple[int, ...]:
    """Tokens that `tome` merges in each block from p on."""
    kept = num_keep(keep, context.shape.num_patches)
    return merge_schedule(context.shape, context.tower.num_heads, kept, context.layer)


def _previous(context: Selecting) -> bool:
    return context.config.cls_block == "prev"


SELECTORS: dict[str, SelectorSpec] = {
    "predictor": SelectorSpec(
        make=lambda context, predictor: predictor,
        macs=lambda context: context.predictor.macs(context.shape.num_patches) if context.predictor else 0,
    ),
    "golden": SelectorSpec(oracle=True),
    "cls-attn": SelectorSpec(
        make=lambda context, _: ClsAttentionSelector(previous=_previous(context)),
        macs=lambda context: context.shape.cls_attention(),
        needs_cls=True,
    ),
    "evit": SelectorSpec(
        make=lambda context, _: EvitSelector(previous=_previous(context)),
        macs=lambda context: context.shape.evit(),
        rows=1,
        needs_cls=True,
    ),
    "tome": SelectorSpec(
        merges=merges,
        note="tome merges tokens in every block, at the multiply-adds that dropping to so many patches costs",
    ),
    "random": SelectorSpec(make=lambda context, _: RandomSelector(context.config.seed)),
    "grid": SelectorSpec(make=lambda context, _: GridSelector()),
    "center": SelectorSpec(make=lambda context, _: CenterSelector()),
    "norm": SelectorSpec(
        make=lambda context, _: NormSelector(),
        macs=lambda context: context.shape.num_patches * context.shape.width,
    ),
    "taylor": SelectorSpec(
        make=lambda context, _: TaylorSelector(),
        macs=lambda context: context.shape.taylor(context.layer, min(PROBES, context.shape.embed_dim)),
        needs_pooled_prefix=True,
        offline=True,
        note="taylor's forward and backward passes cost more than the dense tower: a reference, not a saving",
    ),
}


@dataclass(frozen=True)
class Arm:
    """A pruned tower that is compared with others."""

    selector: str
    keep: float
    vision: WrappedTower

    @property
    def name(self) -> str:
        """In the rows of a comparison."""
        return f"{self.selector}, keep {self.keep:g}"

    def metric(self, batch: int, *, alone: bool) -> str:
        """Of its speed-up; selector and keep rate are in the name only where there are several."""
        stem = "" if alone else f"{self.selector.replace('-', '_')}_keep{self.keep:g}_"
        return f"speedup_{stem}b{batch}"


def spec_of(name: str) -> SelectorSpec:
    """The row of a selector; "predictor+tuned" is the predictor with prompts in the tower."""
    return SELECTORS[name.removesuffix("+tuned")]


def selector_of(name: str, context: Selecting, predictor: Selector | None) -> Selector:
    """A selector by its name.

    Raises:
        ModelError: the tower cannot have it.
    """
    refuse_missing(name, context, predictor)
    make = spec_of(name).make
    selector = make(context, predictor) if make else None
    assert selector is not None, f"{name} is not made here"
    return selector


def possible(context: AnyContext, names: Sequence[str]) -> list[str]:
    """Those selectors that the tower can have: without a CLS token there is no attention of it."""
    return [name for name in dict.fromkeys(names) if context.shape.num_prefix or not spec_of(name).needs_cls]


def asked_for(context: Context[EvalConfig | VizConfig | BenchConfig]) -> list[str]:
    """The selectors of --selector, each once; of its default, those that the tower can have."""
    names = context.config.selector
    return possible(context, names) if names == type(context.config).selector else list(dict.fromkeys(names))


def refuse_missing(name: str, context: Selecting, predictor: Selector | None) -> None:
    """Check that the tower has what a selector reads.

    Raises:
        ModelError: it has not.
        UsageError: --cls-block prev, and no block runs before the pruning.
    """
    spec = spec_of(name)
    if name == "predictor" and predictor is None:
        raise ModelError("selector predictor has no predictor", "Train one: effvl prune-tokens predict")
    if spec.needs_cls and context.shape.num_prefix == 0:
        raise ModelError(f"selector {name}: {context.network.name} has no CLS token", "Use --selector predictor")
    if spec.needs_cls and _previous(context) and context.layer == 0:
        raise UsageError("--cls-block is prev, and --layer 0 has no block before it", "Give --layer 1 or more")
    if spec.needs_pooled_prefix and not context.tower.pools_prefix_only:
        raise ModelError(
            f"selector {name}: {context.network.name} reads its embedding off patches", "Use --selector predictor"
        )


def prune(context: AnyContext, selector: Selector, keep: float, prompts: Prompts | None = None) -> PrunedVision:
    """The tower with that share of its patches kept, and visual prompts in it."""
    kept = num_keep(keep, context.shape.num_patches)
    visual = prompts.visual if prompts else None
    return PrunedVision(context.tower, layer=context.layer, num_keep=kept, selector=selector, prompts=visual).eval()


def tower_with(context: Selecting, name: str, keep: float, predictor: Selector | None) -> WrappedTower:
    """The tower that a selector's name stands for: patches dropped, or merged at the same cost."""
    merged = spec_of(name).merges
    if merged is None:
        return prune(context, selector_of(name, context, predictor), keep)
    return MergedVision(context.tower, layer=context.layer, schedule=merged(context, keep)).eval()


def arms(context: Selecting, names: Sequence[str], keeps: Sequence[float], predictor: Selector | None) -> list[Arm]:
    """The towers of some selectors at some keep rates, or those nearest that they reach."""
    return [
        Arm(name, keep, tower_with(context, name, keep, predictor))
        for name in names
        for keep in rates(context, name, keeps)
    ]


def rates(context: AnyContext, name: str, keeps: Sequence[float]) -> list[float]:
    """The keep rates at which a selector runs, each once: those asked for, or the nearest that merging can reach.

    A block merges at most half of its patches. Below the cost of that, rates of `tome` would all be one tower under
    several names, so it runs once, as the rate whose dropping costs as much.
    """
    merged = spec_of(name).merges
    if merged is None:
        return list(dict.fromkeys(keeps))
    found, beyond = [], []
    for keep in keeps:
        kept = num_keep(keep, context.shape.num_patches)
        reached = equal_keep(context.shape, context.tower.num_heads, kept, context.layer)
        found.append(keep if reached is None else reached / context.shape.num_patches)
        if reached is not None:
            beyond.append(keep)
    if beyond:
        context.run.warn(
            f"{name} cannot merge down to keep {', '.join(f'{keep:g}' for keep in beyond)}: a block merges at most "
            f"half of its patches. It is run at the cost of dropping at keep {min(found):.3g}, and shown as that"
        )
    return list(dict.fromkeys(found))


def macs_of(context: AnyContext, name: str, keep: float, prompts: Prompts | None = None) -> int:
    """Multiply-adds of an image through the pruned tower, its selector included; none runs where all is kept."""
    shape = context.shape
    kept = num_keep(keep, shape.num_patches)
    rows, start = (prompts.num_rows, prompts.start) if prompts else (0, None)
    if name == "dense" or kept == shape.num_patches:
        return shape.pruned(shape.num_patches, context.layer, rows, start)
    spec = spec_of(name)
    if spec.merges:
        return shape.merged(spec.merges(context, keep), context.layer, context.tower.num_heads)
    return shape.pruned(kept, context.layer, rows + spec.rows, start) + spec.macs(context)
