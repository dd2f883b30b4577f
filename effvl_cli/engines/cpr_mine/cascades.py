"""Cascades that the options ask for, for each epoch of a training."""

import re
from collections.abc import Callable, Sequence

from effvl_cli.config.cpr_mine_train import CascadeOptions, pieces
from effvl_cli.core.errors import UsageError
from effvl_cli.core.run import Run
from effvl_cli.techniques.cpr_mine.stages import CascadeError, Stage, described, most_stages, official, parse

Stages = tuple[Stage, ...]


def short_name(view: str) -> str:
    """A view in names of figures, files and stages: "rgb", and "flow" for every kind of optical flow."""
    kind = view.partition(":")[0]
    return "flow" if kind in ("flow", "gradflow") else kind


def named(views: Sequence[str]) -> dict[str, str]:
    """A name for each view: the short one, where no other view has the same."""
    shorts = [short_name(view) for view in views]
    return {
        view: short if shorts.count(short) == 1 else _in_files(view) for view, short in zip(views, shorts, strict=True)
    }


def keys_of(views: Sequence[str]) -> dict[str, str]:
    """The same for figures, whose names are words of letters, digits and underscores."""
    return {view: re.sub(r"\W", "_", name) for view, name in named(views).items()}


def find_view(name: str, views: Sequence[str], option: str) -> str:
    """The view that a user means by its name, by that of its file, or by its short name.

    Raises:
        UsageError: none, or several.
    """
    short = named(views)
    for called in (lambda view: view, _in_files, lambda view: short[view]):
        found = [view for view in views if called(view) == name]
        if len(found) == 1:
            return found[0]
    raise UsageError(f"{option} names the view {name!r}", f"The views are {', '.join(views)}")


def _in_files(view: str) -> str:
    return view.replace(":", "-").replace("/", "-")


def stages_of(
    config: CascadeOptions,
    views: Sequence[str],
    num_items: int,
    top_k: int,
    *,
    main: str,
    num_stages: int | None = None,
) -> Stages:
    """The cascade of the options.

    Args:
        config: options.
        views: that there are embeddings of, the frozen ones first.
        num_items: N, clips in the bank.
        top_k: k.
        main: view of the odd stages and the last, unless --main says otherwise.
        num_stages: in place of --num-stages.

    Raises:
        UsageError: stages that make no cascade.
    """
    try:
        if config.cascade and num_stages is None:
            return parse(full_names(config.cascade, views), num_items, views, top_k)
        first = find_view(config.main, views, "--main") if config.main and num_stages is None else main
        turn = [first, *(view for view in views if view != first)]
        asked = num_stages or config.num_stages
        most = most_stages(num_items, config.ratio, top_k)
        return official(
            num_items, turn, num_stages=asked if most is None else min(asked, most), ratio=config.ratio, top_k=top_k
        )
    except CascadeError as error:
        raise UsageError(f"{error.code}: {error.message}", error.hint) from error


def full_names(cascade: str, views: Sequence[str]) -> str:
    """Views in a cascade by their full names; what is not one is left to the parser."""
    others = [(name, view) for view, short in named(views).items() for name in (short, _in_files(view))]
    full = {name: view for name, view in others if name not in views}

    def whole(item: str) -> str:
        view, colon, size = item.rpartition(":")
        if item in views or item in full or not colon:  # without a size; names may hold colons
            return full.get(item, item)
        return f"{full.get(view, view)}:{size}"

    return ",".join(whole(item.strip()) for item in cascade.split(","))


def stages_by_epoch(
    config: CascadeOptions,
    views: Sequence[str],
    num_items: int,
    epochs: int,
    run: Run,
    *,
    main: str,
    single: bool = False,
) -> Callable[[int], Stages]:
    """The cascade of each epoch: k grows as --progressive or --top-k-schedule say. What it is comes into the log.

    Args:
        config: options.
        views: that there are embeddings of, the frozen ones first.
        num_items: N, clips in the queues.
        epochs: of the training.
        run: log and warnings.
        main: see `stages_of`.
        single: one stage, in the view `main`, in place of the options' cascade.

    Raises:
        UsageError: stages that make no cascade, in any epoch.
    """
    count = 1 if single else None
    found = [
        (first, stages_of(config, views, num_items, k, main=main, num_stages=count))
        for first, k in pieces(config, epochs)
    ]
    for first, stages in found:
        since = f" from epoch {first} on" if len(found) > 1 else ""
        run.log(f"cascade{since}: {described(stages)}")
        if not config.cascade and not single and len(stages) < config.num_stages:
            run.warn(
                f"--num-stages is {config.num_stages}; with {num_items} clips, --ratio {config.ratio:g} and "
                f"{stages[-1].n} positives the largest valid number is {len(stages)}, which is used"
            )
    return lambda epoch: [stages for first, stages in found if first <= epoch][-1]
