"""What scoring and removing blocks will cost, for `--dry-run`."""

from collections.abc import Sequence
from typing import Any

from effvl_cli.config.prune_blocks import ApplyConfig, PruneBlocksConfig, ScoreConfig
from effvl_cli.core import distributed
from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.core.modes import as_found
from effvl_cli.core.probe import saved_bytes
from effvl_cli.core.table import Table
from effvl_cli.engines.common.cost_table import STATES, TRAINING, Part, cost_table, speed_of
from effvl_cli.engines.prune_blocks import baseline, candidates, surgery, tables
from effvl_cli.engines.prune_blocks.context import Context, Scoring, Tuning
from effvl_cli.engines.prune_blocks.pruning import EMBEDDED_REMOVED
from effvl_cli.techniques.prune_blocks.choices import Found, describe, pairs

PROBED = 64  # images at a time
UNKNOWN = "removals continue until a target is met: one is counted here"
AnyBlocks = Context[PruneBlocksConfig | ScoreConfig | ApplyConfig]


def preview_score(context: Scoring) -> list[Table]:
    """The units, and one scoring of them."""
    found, units = _units(context, "single")
    parts = _scoring(context, found, 1, _speed(context))
    return [units, _table(context, parts, 4 * count_parameters(context.module), ())]


def preview_job(context: Context[PruneBlocksConfig]) -> list[Table]:
    """The units, and every removal."""
    config: PruneBlocksConfig = context.config
    found, units = _units(context, config.search)
    speed, macs = _speed(context), count_macs(context.module, context.noise(1))
    train, test = len(context.train), context.count("test")
    targets = (config.target_params, config.target_macs, config.target_latency)
    known = config.remove or (EMBEDDED_REMOVED if all(goal is None for goal in targets) else None)
    turns = -(-known // config.blocks_per_step) if known else 1
    tuned = config.finetune_epochs * train
    if config.finetune_steps:
        tuned = config.finetune_steps * config.finetune_batch_size
    trainings = {"fine-tuning": (turns, tuned), "at the end": (1, config.final_epochs * train)}
    if baseline.wanted(config):
        trainings = {"original": (1, baseline.epochs_of(context) * train), **trainings}
    parts = [
        Part(
            name,
            f"{times} x {images:,} images",
            TRAINING * times * images * macs,
            TRAINING * times * images * macs / speed,
        )
        for name, (times, images) in trainings.items()
        if images
    ]
    parts[-1:-1] = _scoring(context, found, turns, speed)
    judged = (2 * turns + 2) * (context.count("score") + test)
    parts.append(Part("evaluation", f"{judged:,} images", judged * macs, judged * macs / speed))
    return [units, _table(context, parts, _training_memory(context), () if known else (UNKNOWN,))]


def preview_apply(context: Context[ApplyConfig]) -> list[Table]:
    """Fine-tuning of one cut, and its evaluation."""
    config, speed, macs = context.config, _speed(context), count_macs(context.module, context.noise(1))
    tuned = config.finetune_steps * config.finetune_batch_size if config.finetune_steps else 0
    tuned = tuned or config.finetune_epochs * len(context.train)
    parts = []
    for name, images in (("fine-tuning", tuned), ("at the end", config.final_epochs * len(context.train))):
        if images:
            parts.append(Part(name, f"{images:,} images", TRAINING * images * macs, TRAINING * images * macs / speed))
    judged = 4 * (context.count("score") + context.count("test"))
    parts.append(Part("evaluation", f"{judged:,} images", judged * macs, judged * macs / speed))
    return [_table(context, parts, _training_memory(context), ())]


def _units(context: Scoring, search: str) -> tuple[Found, Table]:
    state = surgery.start(context)
    allowed = candidates.permitted(context, state.origins)
    found = candidates.find(context, state.module, state.origins, allowed, look=False)
    candidates.refuse_none(context, found)
    described = describe(found)
    if search == "pairs":
        described["cost_of_pairs"] = found.cost([choice.members for choice in pairs(found)])
    return found, tables.units(context.network.name, described)


def _scoring(context: Scoring, found: Found, turns: int, speed: float) -> list[Part]:
    """Direct scoring before each removal, with sharing; proxies cost almost nothing."""
    config, cost = context.config, found.cost()
    if config.criterion != "direct" or cost is None:
        return []
    images = context.count("score")
    macs = turns * images * (cost["naive_macs"] if config.sharing == "off" else cost["cached_macs"])
    work = f"{turns} x {len(found.candidates)} units on {images:,} images"
    return [Part("scoring", work, macs, macs / speed / distributed.world().size)]


def _speed(context: AnyBlocks) -> float:
    """Multiply-adds a second of the network."""
    images = context.noise(PROBED)
    macs = count_macs(context.module, images[:1])
    return speed_of(context.module, context.module, images, macs, context.config.precision)


def _training_memory(context: Tuning) -> int:
    """Weights, gradients, momentum, and what the backward pass of a fine-tuning step needs."""
    images = context.noise(2)

    def forward() -> Any:
        with as_found(context.module, training=True):
            return context.module(images)

    context.module.requires_grad_(True)
    activations = saved_bytes(forward) * context.config.finetune_batch_size // len(images)
    return 4 * STATES["sgd"] * count_parameters(context.module) + activations


def _table(context: AnyBlocks, parts: Sequence[Part], memory: int, notes: Sequence[str]) -> Table:
    title = f"cost of {context.network.name} on {context.data}"
    return cost_table(title, parts, context.run.device, memory=memory, notes=notes)
