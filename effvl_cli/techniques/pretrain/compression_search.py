"""Candidates of a schedule search, the choice among them for each stage of the training, and its gain.

The search is that of arXiv 2410.22364; grid and pictures are ours.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from .gradient_error import Estimate
from .method import Method
from .schedule import Compression, Schedule, Stage
from .stage_choice import Criterion, Order, Ties, choose, free
from .step_cost import Costs
from .tokens import count_kept
from .view_sizes import Sizes

SCALES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)  # multiples of the base patch size
FULL = "full"

Estimates = dict[str, Estimate]
LookAt = Callable[[float, Sequence[str]], str]


def patch_sizes(base: int, sizes: Sizes) -> list[int]:
    """Sides of the patches (px) that the views allow, up to three times that without compression, `base`."""
    patches = [int(scale * base) for scale in SCALES if scale * base == int(scale * base)]
    return [patch for patch in dict.fromkeys(patches) if sizes.allows(patch) and sizes.view(patch) >= patch]


def grid(patches: Sequence[int], keeps: Sequence[float], key_keep: Callable[[float], float]) -> list[Compression]:
    """All keep rates at all patch sizes.

    Args:
        patches: sides, px.
        keeps: keep rates of the query view.
        key_keep: keep rate of the key view, from that of the query view.
    """
    return [Compression(patch, keep, key_keep(keep)) for patch in patches for keep in keeps]


def named(found: list[Compression], base: int, sizes: Sizes) -> dict[str, Compression]:
    """Compressions by name, one for each sequence length; the uncompressed one is called `FULL`."""
    full = Compression(base)
    distinct = {_lengths(c, sizes): c for c in reversed([full, *found])}  # rounding may give two the same length
    return {FULL: full, **{_name(c): c for c in reversed(distinct.values()) if c != full}}


def _lengths(c: Compression, sizes: Sizes) -> tuple[int, int, int]:
    count = (sizes.view(c.patch) // c.patch) ** 2
    return c.patch, count_kept(count, c.keep_q), count_kept(count, c.keep_k)


def _name(c: Compression) -> str:
    keep = f"keep {c.keep_q:g}" if c.keep_k == c.keep_q else f"keep {c.keep_q:g}/{c.keep_k:g}"
    return f"patch {c.patch}, {keep}"


def scope(method: Method, name: str) -> list[nn.Parameter]:
    """The parameters whose gradients are compared: those that are trained."""
    modules: dict[str, nn.Module] = {
        "backbone": method.backbone,
        "all": method,
        "last-block": method.backbone.blocks[-1],
    }
    return [p for p in modules[name].parameters() if p.requires_grad]


def schedule_of(
    chosen: Mapping[float, str], candidates: Mapping[str, Compression], final_full: float, base_patch: int
) -> Schedule:
    """Stages that change midway between measured shares."""
    rows = [Stage(end, candidates[name]) for name, end in zip(chosen.values(), ends_between(list(chosen)), strict=True)]
    return laid_out(rows, final_full, base_patch)


def ends_between(measured: Sequence[float]) -> list[float]:
    """End of the stage of each measured share, midway to the next one."""
    return [(a + b) / 2 for a, b in itertools.pairwise(measured)] + [1.0]


def spans_of(ends: Sequence[float], final_full: float) -> list[float]:
    """Length of each stage, without the uncompressed end."""
    cut = [min(end, 1 - final_full) for end in (0.0, *ends)]
    return [b - a for a, b in itertools.pairwise(cut)]


def laid_out(rows: Sequence[Stage], final_full: float, base_patch: int) -> Schedule:
    """A schedule of stages that end at 1: equal neighbours are merged, and the end is uncompressed."""
    if final_full:
        last = round(1 - final_full, 6)
        before = [row for row in rows if row.until < last]
        cut = next(row.compression for row in rows if row.until >= last)
        rows = [*before, Stage(last, cut), Stage(1.0, Compression(base_patch))]
    merged: list[Stage] = []
    for row in rows:
        if merged and merged[-1].compression == row.compression:
            merged.pop()
        merged.append(row)
    return Schedule(tuple(merged))


@dataclass(frozen=True)
class Search:
    """Result of a search.

    Attributes:
        stages: errors of every strategy at each share of the training.
        candidates: the strategies by name.
        chosen: one for each share after the start.
        overridden: shares where the order, a tie or a look ahead overrode the best strategy.
        schedule: the resulting schedule.
    """

    stages: Mapping[float, Estimates]
    candidates: Mapping[str, Compression]
    chosen: Mapping[float, str]
    overridden: list[float]
    schedule: Schedule


def conclude(
    stages: Mapping[float, Estimates],
    candidates: Mapping[str, Compression],
    base: int,
    final_full: float,
    *,
    criterion: Criterion = "ca-mse",
    order: Order = "path",
    ties: Ties = "cheaper",
    look: LookAt | None = None,
) -> Search:
    """Choose at each share, and lay out the schedule.

    Args:
        stages: errors of every strategy at each share of the training.
        candidates: the strategies by name.
        base: side of the patches without compression, px.
        final_full: share of the budget at the end that is not compressed.
        criterion: what is to be small.
        order: whether costs may fall.
        ties: which of equally good strategies is taken.
        look: takes one of nearly equal strategies, given the share and their names; not asked where the end is
            uncompressed.

    The random network at t = 0 is measured, but not used: its mean gradient, and with it every bias, is large,
    and the training leaves that state within the warm-up.
    """
    used = {t: estimates for t, estimates in stages.items() if t > 0} or stages
    rows, shares = list(used.values()), list(used)

    def asked(place: int, names: Sequence[str]) -> str:
        t = shares[place]
        return look(t, names) if look is not None and t < 1 - final_full else names[0]

    found = choose(
        rows,
        criterion=criterion,
        order=order,
        ties=ties,
        look=asked if look is not None else None,
        spans=spans_of(ends_between(shares), final_full),
    )
    chosen = dict(zip(used, found, strict=True))
    schedule = schedule_of(chosen, candidates, final_full, base)
    return Search(stages, candidates, chosen, overridden(used, chosen, criterion), schedule)


def overridden(stages: Mapping[float, Estimates], chosen: Mapping[float, str], criterion: Criterion) -> list[float]:
    """Shares where another strategy than the best was chosen."""
    best = dict(zip(stages, free(list(stages.values()), criterion), strict=True))
    return [t for t, name in chosen.items() if best[t] != name]


def images_gained(schedule: Schedule, costs: Costs, budget: float) -> float:
    """Images that the budget pays for under the schedule, over those without compression."""
    start, images = 0.0, 0.0
    for stage in schedule.stages:
        images += (stage.until - start) * budget / costs.sample(stage.compression)
        start = stage.until
    return images / (budget / costs.full)


def compressed_share(stages: Mapping[float, Estimates]) -> float:
    """Share of the stages at which some compression has a smaller error than none."""
    least = [min(estimates, key=lambda name: estimates[name].ca_mse) for estimates in stages.values()]
    compressed = [name != FULL for name in least]
    return sum(compressed) / len(compressed)


def bias_growth(
    stages: Mapping[float, Estimates], candidates: Mapping[str, Compression], base: int
) -> dict[int, tuple[float, float]]:
    """Growth of the squared bias of larger patches, all kept, from t = 0.25 to 1, and its standard error, by patch."""
    if not {0.25, 1.0} <= set(stages):
        return {}
    found = {}
    for name, c in candidates.items():
        if c.patch >= 2 * base and c.keep_q == 1:
            early, late = stages[0.25][name], stages[1.0][name]
            found[c.patch] = (late.bias2 - early.bias2, (early.bias2_se**2 + late.bias2_se**2) ** 0.5)
    return found


def error_rows(stages: Mapping[float, Estimates], chosen: Mapping[float, str]) -> list[dict[str, Any]]:
    """A mapping for each strategy at each stage."""
    return [
        {"t": t, "strategy": name, "chosen": chosen.get(t) == name, **figures(estimate)}
        for t, estimates in stages.items()
        for name, estimate in estimates.items()
    ]


def figures(estimate: Estimate) -> dict[str, Any]:
    """An estimate as a mapping, without its jackknife rows."""
    return {key: value for key, value in dataclasses.asdict(estimate).items() if key != "left_out"}


def error_curves(stages: Mapping[float, Estimates]) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """The three errors over the training, for the best strategies and the uncompressed one: (t, value, error)."""
    names = list(next(iter(stages.values())))
    mean = {name: sum(estimates[name].ca_mse for estimates in stages.values()) for name in names}
    shown = [FULL, *sorted((n for n in names if n != FULL), key=lambda n: mean[n])[:6]]
    panels = {}
    for key, title in (("bias2", "squared bias"), ("ca_var", "cost-adjusted variance"), ("ca_mse", "CA-MSE")):
        error = {"bias2": "bias2_se", "ca_var": None, "ca_mse": "se"}[key]
        panels[title] = {
            name: [(t, getattr(e[name], key), getattr(e[name], error) if error else 0.0) for t, e in stages.items()]
            for name in shown
        }
    return panels
