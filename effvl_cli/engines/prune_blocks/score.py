"""Importance of every block, without removing any."""

from effvl_cli.config.prune_blocks import ScoreConfig
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_blocks import baseline, candidates, importance, pictures, setup, source, summary, surgery
from effvl_cli.engines.prune_blocks.job import check_options

table = summary.scores


def run(config: ScoreConfig, run: Run) -> None:
    """Score the network of RUN, or of --weights."""
    check_options(config)
    here = source.open_network(config, run)
    setup.note_leaks(here)
    state = surgery.start(here)
    found = candidates.find(here, state.module, state.origins, candidates.permitted(here, state.origins))
    candidates.refuse_none(here, found)
    technique = run.report.technique
    technique.update(candidates.describe(found), criterion=config.criterion, metric=config.metric)
    before = here.accuracy(state.module, here.scoring)
    baseline.check_better_than_chance(here, before["top1"])
    run.report.metric("top1_score", before["top1"], split=here.scoring.source.split, n=len(here.scoring))
    scored = importance.measure(here, state.module, found, 1)
    technique.update(
        importance=scored["rows"],
        order=scored["order"],
        sharing=scored["sharing"],
        score_bn=config.score_bn if config.criterion == "direct" else None,
        score_seconds=scored["seconds"],
        score_images=scored["images"],
    )
    pictures.importance(run, scored["rows"], config.criterion, [])
