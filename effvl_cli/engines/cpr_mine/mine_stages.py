"""The cascade that the options of `cpr-mine mine` ask for, checked before an embedding is read."""

from collections.abc import Sequence

from effvl_cli.config.cpr_mine_mine import FIRST_OF_INDEX, MineConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.engines.cpr_mine.cascades import find_view, full_names
from effvl_cli.techniques.cpr_mine.stages import CascadeError, Stage, most_stages, official, parse, validate

STAGES = 7  # of the official code


def stages_of_options(config: MineConfig, views: Sequence[str], num_items: int) -> tuple[Stage, ...]:
    """Stages with sizes expanded.

    Args:
        config: options.
        views: that there are, in order.
        num_items: in the bank.

    Raises:
        UsageError: they make no cascade.
    """
    if config.pool and config.pool > num_items:
        raise UsageError(f"--pool is {config.pool}, and there are {num_items} items", "Give fewer, or leave it out")
    whole = config.pool or num_items
    try:
        if config.cascade:
            stages = parse(full_names(config.cascade, views), whole, views, config.top_k)
            if config.stage1_index and "." in config.cascade.split(",")[0].rpartition(":")[2]:
                raise UsageError(
                    f"--stage1-index finds a number of items, and --cascade begins with {config.cascade.split(',')[0]}",
                    f"Write the first size as a number, e.g. {stages[0].view}:{FIRST_OF_INDEX}",
                )
        else:
            stages = official(
                whole,
                _turn(config, views),
                num_stages=_count(config, whole),
                ratio=config.ratio,
                top_k=config.top_k,
                first=_first(config, whole),
            )
        validate(stages, views, whole if config.query_features else whole - 1)  # an item is no positive of itself
    except CascadeError as error:
        raise UsageError(f"{error.code}: {error.message}", error.hint) from error
    return stages


def _first(config: MineConfig, whole: int) -> int | None:
    """Size of the first of several stages, where it is not a share of the items."""
    if config.num_stages == 1:
        return None
    if config.first_stage is None and config.stage1_index:
        return min(FIRST_OF_INDEX, whole)
    return config.first_stage


def _count(config: MineConfig, whole: int) -> int:
    """--num-stages; else `STAGES`, or as many as keep at least --top-k items."""
    if config.num_stages is not None:
        return config.num_stages
    first = _first(config, whole)
    most = most_stages(whole if first is None else first / config.ratio, config.ratio, config.top_k)
    return STAGES if most is None else max(1, min(STAGES, most))


def _turn(config: MineConfig, views: Sequence[str]) -> list[str]:
    """The main view, then the others."""
    main = find_view(config.main, views, "--main") if config.main else views[-1]
    others = tuple(view for view in views if view != main)
    aux = tuple(find_view(name, views, "--aux") for name in config.aux) or others
    if main in aux:
        raise UsageError(f"--main and --aux both name {main}", "Name the others in --aux")
    return [main, *aux]
