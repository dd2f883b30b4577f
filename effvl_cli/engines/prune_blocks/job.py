"""The whole job: original network, scores, removals, fine-tuning, measurement, pictures."""

from typing import Any

from safetensors.torch import load_file

from effvl_cli.config.prune_blocks import EMBEDDED, PruneBlocksConfig
from effvl_cli.core import distributed, seeds
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Table
from effvl_cli.engines.prune_blocks import (
    baseline,
    importance,
    measurements,
    pictures,
    result,
    sharing,
    surgery,
    tables,
    training,
)
from effvl_cli.engines.prune_blocks.context import Context, build_context, note_leaks
from effvl_cli.engines.prune_blocks.preview import preview_job
from effvl_cli.engines.prune_blocks.pruning import Pruning
from effvl_cli.engines.prune_blocks.removal_step import figures
from effvl_cli.engines.prune_blocks.removals import scores_file
from effvl_cli.models import network as networks
from effvl_cli.techniques.prune_blocks.stability import ranking_stability

table = tables.steps
REPORTED = 500  # images of whose rankings the correlation is a metric


def run(config: PruneBlocksConfig, run: Run) -> None:
    """Remove the least important blocks, and measure on the test split."""
    context = _open(config, run)
    state = surgery.start(context)
    phases = Phases.of(run)
    pruning = Pruning(context, phases, state)
    pruning.check()
    training.check(context, baseline=baseline.wanted(config))
    if baseline.wanted(config):
        baseline.prepare(context, phases)
    note_leaks(context)
    found = pruning.run()
    final = phases.once("final", lambda: figures(context, found.state.module))
    run.report.technique.update(steps=[row.to_dict() for row in found.steps], stopped=found.stopped)
    measurements.record(context, pruning.baseline, final, found.steps, pruning.original, pruning.size)
    _compare_scoring(context, pruning, phases)
    result.write_table(context, found.steps)
    rows = measurements.time(context, state, found.state, phases)
    if found.steps:
        gone = found.steps[0].names
        pictures.importance(run, found.steps[0].importance or (), config.criterion, [*gone, "+".join(gone)])
    measurements.draw(context, pruning.baseline, final, found.steps, pruning.original, rows)
    result.save(context, found.state)


def preview(config: PruneBlocksConfig) -> list[Table]:
    """What `--dry-run` shows besides the options: the units, and what the job costs."""
    return preview_job(_open(config, unopened("prune-blocks", config)))


def _open(config: PruneBlocksConfig, run: Run) -> Context[PruneBlocksConfig]:
    importance.check_criterion(config.criterion)
    weights = "none" if config.weights is None else config.weights
    data = config.data or networks.manifest_of(weights).get("data") or EMBEDDED
    return build_context(config, run, weights=weights, model=config.model, data=data, new_head=config.new_head)


def _compare_scoring(context: Context[PruneBlocksConfig], pruning: Pruning, phases: Phases) -> None:
    """Time shared against naive scoring of the original network; not measured for proxies."""
    found: dict[str, Any] = {"speedup": None, "bit_equal": None}
    if context.config.criterion == "direct":
        found = phases.timed("sharing", lambda: sharing.compare(context, pruning.start.module, pruning.candidates))
    report, equal = context.run.report, found["bit_equal"]
    report.metric("scoring_speedup", found["speedup"], unit="ratio")
    report.metric("scoring_mac_ratio", pruning.first_cost, unit="ratio")
    report.metric("scoring_bit_equal", None if equal is None else int(equal), unit="boolean")
    report.technique["sharing"] = found
    rows = _stability(context)
    report.technique["stability"] = rows
    for row in rows:
        if row["images"] == REPORTED:
            report.metric("tau_top1", row["tau_top1"], unit="correlation")
            report.metric("tau_loss", row["tau_loss"], unit="correlation")


def _stability(context: Context[PruneBlocksConfig]) -> list[dict[str, float]]:
    """Of the ranking of the first step; empty after a race, a proxy, or with a single unit."""
    path = scores_file(context, 1)
    if context.config.race != "none" or not distributed.is_main() or not path.is_file():
        return []
    known = load_file(path)
    if not bool(known["loss"].isfinite().all()):
        return []
    generator = seeds.generator(context.config.seed, "stability")
    return ranking_stability(known["correct"].bool(), known["loss"], generator)
