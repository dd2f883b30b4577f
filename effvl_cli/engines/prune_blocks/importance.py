"""How much each candidate matters by the chosen criterion, and the order in which candidates go."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.config.prune_blocks import CRITERIA, PruneBlocksConfig
from effvl_cli.core import distributed, seeds
from effvl_cli.core.errors import DataError, ModelError, UsageError
from effvl_cli.core.loop import autocast
from effvl_cli.core.registry import nearest
from effvl_cli.engines.prune_blocks import network_latency
from effvl_cli.engines.prune_blocks.candidates import Candidate, Choice, Found
from effvl_cli.engines.prune_blocks.context import Scoring
from effvl_cli.engines.prune_blocks.removals import Outcomes, score_removals, scores_file
from effvl_cli.techniques.prune_blocks import criteria, statistics
from effvl_cli.techniques.prune_blocks.unit import Unit

FILE = "file:"
BEAM = 8  # sets that --search beam grows
LOOKING = frozenset({"block-influence", "cka", "sr-init"})  # proxies that look at the images
DRAWS = 5  # of new parameters, by --criterion sr-init


def check_criterion(criterion: str) -> None:
    """Refuse a name that is none.

    Raises:
        UsageError: says what is near.
    """
    if criterion in CRITERIA or (criterion.startswith(FILE) and criterion != FILE):
        return
    hint = nearest(criterion, [*CRITERIA, FILE]) or f"Give one of {', '.join(CRITERIA)}, or file:SCORES.json"
    raise UsageError(f"--criterion is {criterion!r}", hint)


def measure(context: Scoring, module: nn.Module, found: Found, step: int, count: int = 1) -> dict[str, Any]:
    """Importance of every candidate, or of every set of `count` of them where --search asks for sets.

    Returns:
        `rows`: a mapping for each candidate or set, as in the report; `sets`: the candidates of each. `order`: indices
        of these, the first to go first. Then `seconds`, `images`, and `sharing` with its `reason`, of direct scoring.

    Raises:
        ModelError: a criterion that does not suit the units.
        NumericalError: the network gives NaN, or does not fit into the memory.
    """
    started = time.monotonic()
    config, candidates = context.config, found.candidates
    choices = [Choice.of(candidates, (index,)) for index in range(len(candidates))]
    if config.criterion == "direct":
        search = config.search if isinstance(config, PruneBlocksConfig) else "single"
        if search == "pairs" and count == 2:
            choices = pairs(found)
        scored = _direct(context, module, candidates, choices, step)
        if search == "beam":
            for _ in range(1, count):
                choices = grow(found, [choices[index] for index in scored["order"][:BEAM]])
                before = scored["seconds_before"]
                scored = _direct(context, module, candidates, choices, step)
                scored["seconds_before"] += before
    else:
        try:
            with autocast(context.run.device, config.precision):
                values = _proxy(context, module, candidates, step)
        except ValueError as error:
            raise ModelError(f"--criterion {config.criterion}: {error}", "Choose another criterion") from error
        scored = _by_value(context, module, candidates, choices, values)
    sets = [list(choice.members) for choice in choices]
    cost = found.cost(sets) if config.criterion == "direct" else None
    seconds = time.monotonic() - started + scored.pop("seconds_before", 0.0)
    return {**scored, "sets": sets, "cost_model": cost, "seconds": seconds}


def pairs(found: Found) -> list[Choice]:
    """Every two candidates that may go together."""
    return grow(found, [Choice.of(found.candidates, (index,)) for index in range(len(found.candidates))])


def grow(found: Found, choices: Sequence[Choice]) -> list[Choice]:
    """Every set of candidates that has one more than a given one and leaves each stage what it has to keep; as they
    are, where there is none."""
    candidates = found.candidates
    sets = {tuple(sorted({*choice.members, index})) for choice in choices for index in range(len(candidates))}
    larger = [members for members in sorted(sets) if len(members) > len(choices[0].members)]
    fitting = [members for members in larger if _fits(found, members)]
    return [Choice.of(candidates, members) for members in fitting] or list(choices)


def _fits(found: Found, members: Sequence[int]) -> bool:
    stages = [found.candidates[index].unit.stage for index in members]
    return all(stages.count(stage) <= found.room[stage] for stage in stages)


# --- direct ----------------------------------------------------------------------------------------------------------


def _direct(
    context: Scoring, module: nn.Module, candidates: Sequence[Candidate], choices: Sequence[Choice], step: int
) -> dict[str, Any]:
    sets = [choice.members for choice in choices]
    picks = context.config.blocks_per_step if isinstance(context.config, PruneBlocksConfig) else 1
    units = [candidate.unit for candidate in candidates]
    outcomes = score_removals(context, module, units, scores_file(context, step, len(sets[0])), sets, picks=picks)
    by_accuracy, by_loss = _impacts(outcomes)
    finite = [not bool(nan) for nan in outcomes.nan[1:]]
    full = [k for k in range(len(choices)) if outcomes.used[1 + k] == len(outcomes.order)]
    dropped = [k for k in range(len(choices)) if k not in full]
    by_metric = by_accuracy if context.config.metric == "top1" else by_loss
    order = [
        *_rank(context, choices, by_accuracy, by_loss, full, outcomes, _savings(context, module, candidates, choices)),
        *sorted(dropped, key=lambda k: (-int(outcomes.used[1 + k]), by_metric[k])),
    ]
    tied = statistics.tied_with_best(outcomes.correct[1:].bool(), order[0])
    rows = []
    for k, choice in enumerate(choices):
        used = int(outcomes.used[1 + k])
        own, whole, best = (outcomes.correct[row, :used].bool() for row in (1 + k, 0, 1 + order[0]))
        losses = statistics.loss_interval(outcomes.loss[1 + k, :used], outcomes.loss[0, :used]) if used > 1 else None
        rows.append(
            _row(choice)
            | {
                "importance": _known(by_metric[k]),
                "impact_acc": by_accuracy[k],
                "impact_loss": _known(by_loss[k]),
                "ci95": list(statistics.accuracy_interval(whole, own)),
                "ci95_loss": list(losses) if losses and finite[k] else None,
                "ci95_to_chosen": list(statistics.accuracy_interval(best, own)),
                "tied_with_best": tied[k] and k in full,
                "n_used": used,
                "eliminated_at": None if k in full else used,
                "nan": int(not finite[k]),
            }
        )
    return {
        "rows": rows,
        "order": order,
        "images": int(outcomes.used[0]),
        "images_needed": _images_needed(outcomes.correct[1:].bool(), [k for k in order if k in full]),
        "sharing": outcomes.sharing,
        "reason": outcomes.reason,
        "seconds_before": outcomes.seconds_before,
    }


def _known(value: float) -> float | None:
    """None for NaN and infinities, which JSON has not."""
    return value if math.isfinite(value) else None


def _images_needed(correct: Tensor, order: Sequence[int]) -> dict[str, int | None] | None:
    """Images that would tell the chosen candidate from the next one, and that give their gap to half a point."""
    if len(order) < 2:
        return None
    chosen, other = (correct[k] for k in order[:2])
    gap = float(chosen.float().mean() - other.float().mean())
    discordant = float((chosen != other).float().mean())
    return {
        "to_separate": statistics.images_for_power(discordant, gap) if gap else None,
        "to_half_a_point": statistics.images_for_half_width(discordant, 0.005),
    }


def _impacts(outcomes: Outcomes) -> tuple[list[float], list[float]]:
    """Of each candidate, on the images that it has seen."""
    pairs = []
    for row in range(1, len(outcomes.used)):
        rows, used = torch.tensor([0, row]), int(outcomes.used[row])
        by_accuracy, by_loss = statistics.impacts(outcomes.correct[rows, :used].bool(), outcomes.loss[rows, :used])
        pairs.append((by_accuracy[0], by_loss[0]))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _rank(
    context: Scoring,
    choices: Sequence[Choice],
    by_accuracy: Sequence[float],
    by_loss: Sequence[float],
    chosen: Sequence[int],
    outcomes: Outcomes,
    savings: Sequence[float] | None,
) -> list[int]:
    """The candidates that have seen all images, the first to go first."""
    config = context.config
    accuracy, loss = [by_accuracy[k] for k in chosen], [by_loss[k] for k in chosen]
    impact, other = (accuracy, loss) if config.metric == "top1" else (loss, accuracy)
    macs, params = [choices[k].macs for k in chosen], [choices[k].params for k in chosen]
    saved = None if savings is None else [savings[k] for k in chosen]
    order = statistics.rank(impact, other, macs, params, saved)
    if config.tie == "loss-ci":
        correct = outcomes.correct[torch.tensor([1 + k for k in chosen])].bool()
        order = statistics.break_ties_by_loss(order, statistics.tied_with_best(correct, order[0]), loss)
    return [chosen[k] for k in order]


def _savings(
    context: Scoring, module: nn.Module, candidates: Sequence[Candidate], choices: Sequence[Choice]
) -> list[float] | None:
    """What --impact-per divides by; the latency is of one image, and a set saves what its members save."""
    match context.config.impact_per:
        case "macs":
            return [float(choice.macs) for choice in choices]
        case "params":
            return [float(choice.params) for choice in choices]
        case "latency":
            saved = network_latency.saved(context, module, [candidate.unit for candidate in candidates])
            return [sum(saved[index] for index in choice.members) for choice in choices]
    return None


# --- proxies ---------------------------------------------------------------------------------------------------------


def _proxy(context: Scoring, module: nn.Module, candidates: Sequence[Candidate], step: int) -> list[float]:
    """One number for each candidate, the lowest to go first."""
    config = context.config
    units = [candidate.unit for candidate in candidates]
    if config.criterion.startswith(FILE):
        return _from_file(Path(config.criterion.removeprefix(FILE)), candidates)
    generator = seeds.generator(config.seed, config.criterion, step)
    named: dict[str, Callable[[], list[float]]] = {
        "random": lambda: criteria.random(len(units), generator),
        "l1": lambda: criteria.l1(module, units),
        "bn-scale": lambda: criteria.bn_scale(module, units),
        "block-influence": lambda: criteria.block_influence(module, units, _images(context)),
        "cka": lambda: criteria.cka(module, units, _images(context)),
        "sr-init": lambda: _sr_init(context, module, units, generator),
    }
    return named[config.criterion]()


def _images(context: Scoring) -> Iterator[Tensor]:
    """The scoring images, normalised, in batches; each process takes all, so that all find the same."""
    for _, pixels in context.scoring.batches(context.config.score_batch_size):
        yield context.network.preprocess.normalise(pixels.to(context.run.device))


def _sr_init(context: Scoring, module: nn.Module, units: Sequence[Unit], generator: torch.Generator) -> list[float]:
    """Mean fall of accuracy; batches are shared among the processes, and their counts are whole numbers."""
    split, size = context.scoring, context.config.score_batch_size

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(size * distributed.world().rank, len(split), size * distributed.world().size):
            pixels, labels = (rows[start : start + size].to(context.run.device) for rows in (split, split.labels))
            yield context.network.preprocess.normalise(pixels), labels

    right = distributed.all_reduce_sum(criteria.sr_init(module, units, batches, generator, draws=DRAWS))
    return ((right[0] - right[1:]) / (DRAWS * len(split))).tolist()


def _from_file(path: Path, candidates: Sequence[Candidate]) -> list[float]:
    """Numbers of a JSON object, path in the original network to importance.

    Raises:
        DataError: no such file, or not such an object.
    """
    try:
        found = json.loads(path.read_text())
        values = [float(found[candidate.original]) for candidate in candidates]
        if not all(map(math.isfinite, values)):
            raise ValueError("a value is not finite")
        return values
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise DataError(
            f"--criterion file:{path} cannot be read: {error}", 'Write {"layer1.1": 0.02, ...}, lower goes first'
        ) from error
    except KeyError as error:
        raise DataError(f"--criterion file:{path} has no value for {error}", "Give one for each unit") from error


def _by_value(
    context: Scoring,
    module: nn.Module,
    candidates: Sequence[Candidate],
    choices: Sequence[Choice],
    values: Sequence[float],
) -> dict[str, Any]:
    macs, params = [c.macs for c in choices], [c.params for c in choices]
    savings = _savings(context, module, candidates, choices)
    order = statistics.rank(values, [0.0] * len(values), macs, params, savings)
    unknown = dict.fromkeys(
        (
            *("impact_acc", "impact_loss", "ci95", "ci95_loss", "ci95_to_chosen"),
            *("tied_with_best", "n_used", "eliminated_at", "nan"),
        )
    )
    rows = [_row(c) | {"importance": _known(value)} | unknown for c, value in zip(choices, values, strict=True)]
    images = len(context.scoring) if context.config.criterion in LOOKING else None
    return {"rows": rows, "order": order, "images": images, "images_needed": None, "sharing": None, "reason": ""}


def _row(choice: Choice) -> dict[str, Any]:
    return {"path_original": choice.original, "path": choice.path, "stage": choice.stage}
