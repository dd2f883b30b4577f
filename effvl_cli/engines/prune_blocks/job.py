"""The whole job: original network, scores, removals, fine-tuning, measurement, pictures."""

from typing import Any

from effvl_cli.config.prune_blocks import PruneBlocksConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Table
from effvl_cli.engines.prune_blocks import (
    baseline,
    candidates,
    importance,
    latency,
    pictures,
    result,
    setup,
    sharing,
    stability,
    summary,
    surgery,
)
from effvl_cli.engines.prune_blocks.pruning import Pruning, Result, figures, size_of
from effvl_cli.engines.prune_blocks.setup import Setup
from effvl_cli.engines.prune_blocks.stages import Stages
from effvl_cli.engines.prune_blocks.surgery import State

table = summary.steps


def run(config: PruneBlocksConfig, run: Run) -> None:
    """Remove what hurts least, and measure on the test split."""
    here = _open(config, run)
    if baseline.wanted(config):
        baseline.prepare(here)
    setup.note_leaks(here)
    state = surgery.start(here)
    stages = Stages(run)
    pruning = Pruning(here, stages, state)
    found = pruning.run()
    final = stages.once("final", lambda: figures(here, found.state.module))
    run.report.technique.update(steps=found.steps, stopped=found.stopped)
    _record(here, pruning, final, found)
    _compare_scoring(here, pruning, stages)
    result.write_table(here, found.steps)
    rows = _time(here, state, found.state, stages)
    _draw(here, pruning, found.steps, rows)
    result.save(here, found.state)


def preview(config: PruneBlocksConfig) -> Table:
    """What `--dry-run` shows beside the options: the units and what scoring them costs."""
    here = _open(config, unopened("prune-blocks", config))
    state = surgery.start(here)
    found = candidates.find(here, state.module, state.origins, candidates.permitted(here, state.origins))
    candidates.refuse_none(here, found)
    return summary.units(here.network.name, candidates.describe(found))


def _open(config: PruneBlocksConfig, run: Run) -> Setup:
    check_options(config)
    weights = "none" if config.weights is None else config.weights
    return setup.build(config, run, weights=weights, model=config.model, data=config.data)


def _record(here: Setup, pruning: Pruning, final: dict[str, dict[str, float]], found: Result) -> None:
    """Figures of the network before and after, on the test split."""
    report, before = here.run.report, pruning.baseline["test"]
    n = len(here.test)
    for name in ("top1", "top5", "loss"):
        about = {"split": "test", "n": n} | ({"unit": "nats", "higher_is_better": False} if name == "loss" else {})
        report.metric(f"{name}_baseline", before[name], **about)
        report.metric(f"{name}_pruned", final["test"][name], **about)
    kept = [step for step in found.steps if not step.get("rejected")]
    for key in ("before_ft", "after_ft"):
        values = [step[f"top1_test_{key}"] for step in kept]
        report.metric(f"top1_{key}", values[-1] if values else None, split="test", n=n)
        report.metric(f"top1_{key}_mean", sum(values) / len(values) if values else None, split="test", n=n)
    now = size_of(here, found.state.module)
    report.metric("params_pruned", now.params, unit="parameters", higher_is_better=False)
    report.metric("params_removed", 1 - now.params / pruning.original.params)
    report.metric("macs_pruned", now.macs, unit="macs", higher_is_better=False)
    report.metric("macs_removed", 1 - now.macs / pruning.original.macs)


def _compare_scoring(here: Setup, pruning: Pruning, stages: Stages) -> None:
    """Shared beside naive scoring of the original network; not measured for proxies."""
    found: dict[str, Any] = {"speedup": None, "bit_equal": None}
    if here.config.criterion == "direct":
        found = stages.once("sharing", lambda: sharing.compare(here, pruning.start.module, pruning.candidates))
    report, equal = here.run.report, found["bit_equal"]
    report.metric("scoring_speedup", found["speedup"], unit="ratio")
    report.metric("scoring_mac_ratio", report.technique["cost_model"]["ratio"], unit="ratio")
    report.metric("scoring_bit_equal", None if equal is None else int(equal), unit="boolean")
    report.technique["sharing"] = found
    report.technique["stability"] = stability.measure(here)
    for row in report.technique["stability"]:
        if row["images"] == stability.REPORTED:
            report.metric("tau_top1", row["tau_top1"], unit="correlation")
            report.metric("tau_loss", row["tau_loss"], unit="correlation")


def _time(here: Setup, start: State, state: State, stages: Stages) -> list[dict[str, Any]]:
    """Latency of the network after each step, at batch 1; of the first and the last one, also at another batch."""
    networks = latency.along_steps(here.module, state.removals[len(start.removals) :])
    last = list(networks)[-1]
    ends = {name: networks[name] for name in (latency.ORIGINAL, last)}

    def timed() -> list[dict[str, Any]]:
        batch = here.config.latency_batch_size
        return [*latency.measure(here, networks, [1]), *(latency.measure(here, ends, [batch]) if batch != 1 else [])]

    rows: list[dict[str, Any]] = stages.once("latency", timed)
    here.run.report.technique["bench"] = rows
    final = next((row for row in rows if row["network"] == last and row["batch"] == 1), None)
    here.run.report.metric("latency_ratio", final["ratio"] if final else None, unit="ratio", higher_is_better=False)
    return rows


def _draw(here: Setup, pruning: Pruning, steps: list[dict[str, Any]], bench: list[dict[str, Any]]) -> None:
    if steps:
        gone = [removal["original_path"] for removal in steps[0]["removed"]]
        pictures.importance(here.run, steps[0]["importance"], here.config.criterion, gone)
    pictures.along_steps(here.run, steps, pruning.baseline)
    original = {"params": pruning.original.params, "macs": pruning.original.macs}
    here.run.report.technique["pareto"] = pictures.pareto_points(steps, pruning.baseline, original, bench)
    pictures.pareto(here.run, here.run.report.technique["pareto"])


def check_options(config: Any) -> None:
    """Refuse what the types of the options let pass.

    Raises:
        UsageError: an unknown criterion, or test images that choose without the flag.
    """
    importance.check_criterion(config.criterion)
    if config.score_split == "test" and not config.allow_test_leak:
        raise UsageError(
            "--score-split is test, and the test images must not choose what is removed",
            "Give --score-split holdout; or --allow-test-leak, which marks every figure",
        )
    if config.race != "none" and config.criterion != "direct":
        raise UsageError(f"--race {config.race} needs --criterion direct", "Leave --race out")
