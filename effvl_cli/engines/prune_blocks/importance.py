"""Importance of each candidate by the chosen criterion, and the order in which candidates are removed."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.config.prune_blocks import CRITERIA, PruneBlocksConfig
from effvl_cli.core import distributed, seeds
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.files import read_numbers
from effvl_cli.core.loop import PRECISIONS, autocast
from effvl_cli.core.registry import nearest
from effvl_cli.engines.prune_blocks import network_latency
from effvl_cli.engines.prune_blocks.context import Scoring
from effvl_cli.engines.prune_blocks.removals import score_removals, scores_file
from effvl_cli.techniques.prune_blocks import criteria
from effvl_cli.techniques.prune_blocks.choices import Candidate, Choice, Found, grow, pairs
from effvl_cli.techniques.prune_blocks.importance import estimated, measured
from effvl_cli.techniques.prune_blocks.unit import Unit

FILE = "file:"
BEAM = 8  # sets that --search beam grows
LOOKING = frozenset({"block-influence", "cka", "sr-init"})  # proxies that use the images
DRAWS = 5  # of new parameters, by --criterion sr-init


def check_criterion(criterion: str) -> None:
    """Refuse an unknown criterion.

    Raises:
        UsageError: unknown; it suggests near names.
    """
    if criterion in CRITERIA or (criterion.startswith(FILE) and criterion != FILE):
        return
    hint = nearest(criterion, [*CRITERIA, FILE]) or f"Give one of {', '.join(CRITERIA)}, or file:SCORES.json"
    raise UsageError(f"--criterion is {criterion!r}", hint)


def measure(context: Scoring, module: nn.Module, found: Found, step: int, count: int = 1) -> dict[str, Any]:
    """Importance of every candidate, or of every set of `count` of them where --search asks for sets.

    Returns:
        `rows`: a mapping for each candidate or set, as in the report; `sets`: the candidates of each; `order`: indices
        of these, least important first; for direct scoring also `seconds`, `images`, and `sharing` with its `reason`.

    Raises:
        ModelError: a criterion that does not suit the units.
        NumericalError: the network gives NaN, or does not fit in memory.
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
        scored = estimated(choices, values, _savings(context, module, candidates, choices))
        scored["images"] = len(context.scoring) if config.criterion in LOOKING else None
    sets = [list(choice.members) for choice in choices]
    cost = found.cost(sets) if config.criterion == "direct" else None
    seconds = time.monotonic() - started + scored.pop("seconds_before", 0.0)
    return {**scored, "sets": sets, "cost_model": cost, "seconds": seconds}


# --- direct ----------------------------------------------------------------------------------------------------------


def _direct(
    context: Scoring, module: nn.Module, candidates: Sequence[Candidate], choices: Sequence[Choice], step: int
) -> dict[str, Any]:
    config, sets = context.config, [choice.members for choice in choices]
    picks = config.blocks_per_step if isinstance(config, PruneBlocksConfig) else 1
    units = [candidate.unit for candidate in candidates]
    outcomes = score_removals(context, module, units, scores_file(context, step, len(sets[0])), sets, picks=picks)
    savings = _savings(context, module, candidates, choices)
    found = measured(choices, outcomes, config.metric, by_loss_ties=config.tie == "loss-ci", savings=savings)
    return {
        **found,
        "sharing": outcomes.sharing,
        "reason": outcomes.reason,
        "seconds_before": outcomes.seconds_before,
    }


def _savings(
    context: Scoring, module: nn.Module, candidates: Sequence[Candidate], choices: Sequence[Choice]
) -> list[float] | None:
    """What --impact-per divides by; latency is that of one image, and a set saves the sum over its members."""
    per = context.config.impact_per
    if per == "latency":
        saved = network_latency.saved(context, module, [candidate.unit for candidate in candidates])
        return [sum(saved[index] for index in choice.members) for choice in choices]
    return None if per == "none" else [float(getattr(choice, per)) for choice in choices]


# --- proxies ---------------------------------------------------------------------------------------------------------


def _proxy(context: Scoring, module: nn.Module, candidates: Sequence[Candidate], step: int) -> list[float]:
    """One number for each candidate; the lowest is removed first."""
    config = context.config
    units = [candidate.unit for candidate in candidates]
    if config.criterion.startswith(FILE):
        names = [candidate.original for candidate in candidates]
        path = Path(config.criterion.removeprefix(FILE))
        return read_numbers(path, names, f"--criterion file:{path}", '{"layer1.1": 0.02, ...}')
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
    """The scoring images, normalised, in batches; every process takes all, so that all get the same result."""
    for _, pixels in context.scoring.batches(context.config.score_batch_size):
        yield context.network.preprocess.normalise(pixels.to(context.run.device))


def _sr_init(context: Scoring, module: nn.Module, units: Sequence[Unit], generator: torch.Generator) -> list[float]:
    """Mean fall of accuracy; batches are shared among the processes, and their counts are whole numbers."""
    split, size = context.scoring, context.config.score_batch_size

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(size * distributed.world().rank, len(split), size * distributed.world().size):
            pixels, labels = (rows[start : start + size].to(context.run.device) for rows in (split, split.labels))
            yield context.network.preprocess.normalise(pixels), labels

    cast = PRECISIONS[context.config.precision]
    right = distributed.all_reduce_sum(criteria.sr_init(module, units, batches, generator, DRAWS, cast))
    return ((right[0] - right[1:]) / (DRAWS * len(split))).tolist()
