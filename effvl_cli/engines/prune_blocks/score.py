"""Importance of every block, without removing any."""

from effvl_cli.config.prune_blocks import ScoreConfig
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Table
from effvl_cli.engines.prune_blocks import candidates, importance, load_run, pictures, surgery, tables
from effvl_cli.engines.prune_blocks.context import note_leaks
from effvl_cli.engines.prune_blocks.preview import preview_score
from effvl_cli.techniques.prune_blocks.choices import describe

table = tables.scores


def preview(config: ScoreConfig) -> list[Table]:
    """What `--dry-run` shows besides the options: the units, and what scoring them costs."""
    importance.check_criterion(config.criterion)
    return preview_score(load_run.open_network(config, unopened("prune-blocks score", config)))


def run(config: ScoreConfig, run: Run) -> None:
    """Score the network of RUN, or of --weights."""
    importance.check_criterion(config.criterion)
    context = load_run.open_network(config, run)
    note_leaks(context)
    state = surgery.start(context)
    _, found = candidates.survey(context, state.origins)
    candidates.refuse_none(context, found)
    technique = run.report.technique
    technique.update(describe(found), criterion=config.criterion, metric=config.metric)
    before = context.accuracy(state.module, context.scoring)
    context.refuse_chance(before["top1"])
    run.report.metric("top1_score", before["top1"], split=context.scoring.source.split, n=len(context.scoring))
    scored = importance.measure(context, state.module, found, 1)
    technique.update(
        importance=scored["rows"],
        order=scored["order"],
        sharing=scored["sharing"],
        score_bn=config.score_bn if config.criterion == "direct" else None,
        score_seconds=scored["seconds"],
        score_images=scored["images"],
    )
    pictures.importance(run, scored["rows"], config.criterion, [])
