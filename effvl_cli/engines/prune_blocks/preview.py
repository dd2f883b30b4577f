"""What scoring and removing blocks will cost, for `--dry-run`."""

from collections.abc import Sequence
from dataclasses import replace

from effvl_cli.config.options import RunOptions
from effvl_cli.config.prune_blocks import ApplyConfig, BenchConfig, ExportConfig, PruneBlocksConfig
from effvl_cli.core import distributed
from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.core.run import unopened
from effvl_cli.core.table import Table
from effvl_cli.engines.common.cost_table import (
    TRAINING,
    Part,
    cost_table,
    part,
    speed_of,
    timings,
    training_memory,
    written,
)
from effvl_cli.engines.prune_blocks import baseline, candidates, surgery, tables
from effvl_cli.engines.prune_blocks.context import Context, NetworkContext, Scoring, Tuning
from effvl_cli.engines.prune_blocks.load_run import open_run_network
from effvl_cli.engines.prune_blocks.network_latency import PER_ARM_SECONDS
from effvl_cli.engines.prune_blocks.pruning import EMBEDDED_REMOVED
from effvl_cli.models.removed_blocks import removals_of
from effvl_cli.techniques.prune_blocks.choices import Found, describe, pairs

PROBED = 64  # images at a time
UNKNOWN = "removals continue until a target is met: one is counted here"


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
        part(name, f"{times} x {images:,} images", TRAINING * times * images * macs, speed)
        for name, (times, images) in trainings.items()
        if images
    ]
    parts[-1:-1] = _scoring(context, found, turns, speed)
    judged = (2 * turns + 2) * (context.count("score") + test)
    parts.append(part("evaluation", f"{judged:,} images", judged * macs, speed))
    return [units, _table(context, parts, _training_memory(context), () if known else (UNKNOWN,))]


def preview_apply(context: Context[ApplyConfig]) -> list[Table]:
    """Fine-tuning of one cut, and its evaluation."""
    config, speed, macs = context.config, _speed(context), count_macs(context.module, context.noise(1))
    tuned = config.finetune_steps * config.finetune_batch_size if config.finetune_steps else 0
    tuned = tuned or config.finetune_epochs * len(context.train)
    trainings = {"fine-tuning": tuned, "at the end": config.final_epochs * len(context.train)}
    parts = [part(k, f"{n:,} images", TRAINING * n * macs, speed) for k, n in trainings.items() if n]
    judged = 4 * (context.count("score") + context.count("test"))
    parts.append(part("evaluation", f"{judged:,} images", judged * macs, speed))
    return [_table(context, parts, _training_memory(context), ())]


def preview_bench(config: BenchConfig) -> list[Table]:
    """Latencies of the original network and the one after each step."""
    context = open_run_network(config, unopened("prune-blocks bench", config))
    steps = {removal.step for removal in removals_of(context.network.edits)}
    macs = [count_macs(context.module, context.noise(1))] * (1 + len(steps))
    latency = timings(macs, config.batch_size, _speed(context), PER_ARM_SECONDS)
    parts = [latency, *([replace(latency, name="in onnxruntime")] if config.onnx else [])]
    return [_table(context, parts, 4 * count_parameters(context.module), ("each network is taken for the pruned one",))]


def preview_export(config: ExportConfig) -> list[Table]:
    """The files."""
    context = open_run_network(config, unopened("prune-blocks export", config))
    parts = [written(config.format, count_macs(context.module, context.noise(1)), _speed(context))]
    return [_table(context, parts, 4 * count_parameters(context.module), ())]


def _units(context: Scoring, search: str) -> tuple[Found, Table]:
    state = surgery.start(context)
    _, found = candidates.survey(context, state.origins, look=False)
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
    return [part("scoring", work, macs, speed * distributed.world().size)]


def _speed(context: NetworkContext[RunOptions]) -> float:
    """Multiply-adds a second of the network."""
    images = context.noise(PROBED)
    macs = count_macs(context.module, images[:1])
    return speed_of(context.module, context.module, images, macs, context.config.precision)


def _training_memory(context: Tuning) -> int:
    module, size = context.module.requires_grad_(True), context.config.finetune_batch_size
    return training_memory(module, "sgd", lambda count: module(context.noise(count)), size)


def _table(context: NetworkContext[RunOptions], parts: Sequence[Part], memory: int, notes: Sequence[str]) -> Table:
    title = f"cost of {context.network.name}" + (f" on {context.data}" if isinstance(context, Context) else "")
    return cost_table(title, parts, context.run.device, memory=memory, notes=notes)
