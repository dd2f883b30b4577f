"""The towers that the selectors' names stand for; the names also stand in `config/prune_tokens.py`, for help."""

from collections.abc import Sequence

from effvl_cli.config.prune_tokens import BenchConfig, EvalConfig, VizConfig
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.engines.prune_tokens.context import AnyContext, Context, Selecting
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.selector_table import Arm, reachable, spec_of
from effvl_cli.techniques.prune_tokens.tome import MergedVision
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, Selector, WrappedTower, num_keep


def selector_of(name: str, context: Selecting, predictor: Selector | None) -> Selector:
    """A selector by its name.

    Raises:
        ModelError: the tower does not allow it.
    """
    refuse_missing(name, context, predictor)
    make = spec_of(name).make
    selector = make(predictor, context.config.seed, _previous(context)) if make else None
    assert selector is not None, f"{name} is not made here"
    return selector


def possible(context: AnyContext, names: Sequence[str]) -> list[str]:
    """The selectors that the tower allows: CLS attention needs a CLS token."""
    return [name for name in dict.fromkeys(names) if context.shape.num_prefix or not spec_of(name).needs_cls]


def asked_for(context: Context[EvalConfig | VizConfig | BenchConfig]) -> list[str]:
    """The selectors of --selector, each once; of its default, those that the tower allows."""
    names = context.config.selector
    return possible(context, names) if names == type(context.config).selector else list(dict.fromkeys(names))


def _previous(context: Selecting) -> bool:
    return context.config.cls_block == "prev"


def refuse_missing(name: str, context: Selecting, predictor: Selector | None) -> None:
    """Check that the tower has what a selector reads.

    Raises:
        ModelError: it does not.
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
            f"selector {name}: {context.network.name} reads its embedding from patches", "Use --selector predictor"
        )


def prune(context: AnyContext, selector: Selector, keep: float, prompts: Prompts | None = None) -> PrunedVision:
    """The tower with that share of its patches kept, and visual prompts in it."""
    kept = num_keep(keep, context.shape.num_patches)
    visual = prompts.visual if prompts else None
    return PrunedVision(
        context.tower,
        layer=context.layer,
        num_keep=kept,
        selector=selector,
        prompts=visual,
        dropped=context.choice.dropped,
        diversity=context.choice.diversity,
    ).eval()


def tower_with(context: Selecting, name: str, keep: float, predictor: Selector | None) -> WrappedTower:
    """The pruned tower for a selector's name: patches dropped, or merged at the same cost."""
    merged = spec_of(name).merges
    if merged is None:
        return prune(context, selector_of(name, context, predictor), keep)
    return MergedVision(context.tower, layer=context.layer, schedule=merged(context.place, keep)).eval()


def arms(context: Selecting, names: Sequence[str], keeps: Sequence[float], predictor: Selector | None) -> list[Arm]:
    """The towers of some selectors at some keep rates, or at the nearest rates that they reach."""
    return [
        Arm(name, keep, tower_with(context, name, keep, predictor))
        for name in names
        for keep in rates(context, name, keeps)
    ]


def rates(context: AnyContext, name: str, keeps: Sequence[float]) -> list[float]:
    """The keep rates at which a selector runs, see `reachable`; a warning names those that it cannot."""
    found, beyond = reachable(context.place, name, keeps)
    if beyond:
        context.run.warn(
            f"{name} cannot merge down to keep {', '.join(f'{keep:g}' for keep in beyond)}: a block merges at most "
            f"half of its patches. It runs at the cost of dropping at keep {min(found):.3g}, and is shown as that"
        )
    return found
