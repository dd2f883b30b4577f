"""The whole job: original network, scores, removals, fine-tuning, measurement, pictures."""

from typing import Any

from effvl_cli.config.prune_blocks import EMBEDDED, PruneBlocksConfig
from effvl_cli.core.errors import UsageError
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
    stability,
    surgery,
    tables,
    training,
)
from effvl_cli.engines.prune_blocks.context import Context, build_context, note_leaks
from effvl_cli.engines.prune_blocks.preview import preview_job
from effvl_cli.engines.prune_blocks.pruning import Pruning
from effvl_cli.engines.prune_blocks.removal_step import figures
from effvl_cli.models import network as networks

table = tables.steps


def run(config: PruneBlocksConfig, run: Run) -> None:
    """Remove what hurts least, and measure on the test split."""
    context = _open(config, run)
    state = surgery.start(context)
    phases = Phases(run)
    pruning = Pruning(context, phases, state)
    pruning.check()
    training.check(context, baseline=baseline.wanted(config))
    if baseline.wanted(config):
        baseline.prepare(context, phases)
    note_leaks(context)
    found = pruning.run()
    final = phases.once("final", lambda: figures(context, found.state.module))
    run.report.technique.update(steps=found.steps, stopped=found.stopped)
    sizes = measurements.sizes(context, found.state)
    measurements.record(context, pruning.baseline, final, found.steps, *sizes)
    _compare_scoring(context, pruning, phases)
    result.write_table(context, found.steps)
    rows = measurements.time(context, state, found.state, phases)
    if found.steps:
        gone = [removal["original_path"] for removal in found.steps[0]["removed"]]
        pictures.importance(run, found.steps[0]["importance"], config.criterion, [*gone, "+".join(gone)])
    measurements.draw(context, pruning.baseline, final, found.steps, sizes[0], rows)
    result.save(context, found.state)


def preview(config: PruneBlocksConfig) -> list[Table]:
    """What `--dry-run` shows beside the options: the units, and what the job costs."""
    return preview_job(_open(config, unopened("prune-blocks", config)))


def _open(config: PruneBlocksConfig, run: Run) -> Context:
    check_options(config)
    weights = "none" if config.weights is None else config.weights
    data = config.data or networks.manifest_of(weights).get("data") or EMBEDDED
    return build_context(config, run, weights=weights, model=config.model, data=data)


def _compare_scoring(context: Context, pruning: Pruning, phases: Phases) -> None:
    """Shared beside naive scoring of the original network; not measured for proxies."""
    found: dict[str, Any] = {"speedup": None, "bit_equal": None}
    if context.config.criterion == "direct":
        found = phases.timed("sharing", lambda: sharing.compare(context, pruning.start.module, pruning.candidates))
    report, equal = context.run.report, found["bit_equal"]
    report.metric("scoring_speedup", found["speedup"], unit="ratio")
    report.metric("scoring_mac_ratio", report.technique["cost_model"]["ratio"], unit="ratio")
    report.metric("scoring_bit_equal", None if equal is None else int(equal), unit="boolean")
    report.technique["sharing"] = found
    report.technique["stability"] = stability.measure(context)
    for row in report.technique["stability"]:
        if row["images"] == stability.REPORTED:
            report.metric("tau_top1", row["tau_top1"], unit="correlation")
            report.metric("tau_loss", row["tau_loss"], unit="correlation")


def check_options(config: Any) -> None:
    """Refuse what the types of the options let pass.

    Raises:
        UsageError: an unknown criterion, or test images that choose without the flag.
    """
    importance.check_criterion(config.criterion)
    check_split(config)
    if config.criterion != "direct":
        _refuse_unused(config)
    if config.race != "none" and config.normalise != "none":
        raise UsageError(
            f"--race {config.race} with --normalise {config.normalise}: a race drops by impact alone", "Leave one out"
        )
    if config.tie == "loss-ci" and config.metric == "loss":
        raise UsageError("--tie loss-ci with --metric loss", "It breaks ties of --metric top1: give --tie exact")
    if config.score_bn == "recal" and not config.bn_recal:
        raise UsageError("--score-bn recal without --bn-recal", "Say how many training images: --bn-recal 512")
    _check_passes(config)
    search, together = getattr(config, "search", "single"), getattr(config, "blocks_per_step", 1)
    if search != "single" and (config.criterion != "direct" or config.rescore == "once"):
        raise UsageError(f"--search {search} needs --criterion direct and --rescore every", "Leave --search out")
    if (search == "pairs" and together != 2) or (search == "beam" and together < 2):
        wanted = "2" if search == "pairs" else "2 or more"
        raise UsageError(f"--search {search} with --blocks-per-step {together}", f"Give --blocks-per-step {wanted}")


def _refuse_unused(config: Any) -> None:
    """Options of direct scoring that another criterion would pass over."""
    for name, usual in (("race", "none"), ("score_bn", "keep"), ("score_stack", 1), ("tie", "exact")):
        if getattr(config, name) != usual:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {getattr(config, name)} needs --criterion direct", f"Give {option} {usual}")


def _check_passes(config: Any) -> None:
    """Refuse ways of scoring that exclude each other."""
    search = getattr(config, "search", "single")
    if config.score_bn == "recal" and search != "single":
        raise UsageError(f"--score-bn recal with --search {search}", "Give --search single or --score-bn keep")
    if config.score_stack > 1:
        others = {"--search": search != "single", "--score-bn": config.score_bn != "keep"}
        clash = next((name for name, given in others.items() if given), None)
        if clash:
            raise UsageError(f"--score-stack {config.score_stack} with {clash}", "Give --score-stack 1")
        if config.sharing in ("replay", "off"):
            raise UsageError(
                f"--score-stack {config.score_stack} with --sharing {config.sharing}", "Give --sharing auto or chain"
            )


def check_split(config: Any) -> None:
    """Refuse test images that choose without the flag.

    Raises:
        UsageError: names it.
    """
    if config.score_split == "test" and not config.allow_test_leak:
        raise UsageError(
            "--score-split is test, and the test images must not choose what is removed",
            "Give --score-split holdout; or --allow-test-leak, which marks every figure",
        )
