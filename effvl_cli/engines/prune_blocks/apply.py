"""Removal of named blocks, without scoring."""

from collections.abc import Sequence

from effvl_cli.config.prune_blocks import ApplyConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.core.phases import Phases
from effvl_cli.core.registry import nearest
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Table
from effvl_cli.engines.prune_blocks import candidates, load_run, measurements, result, surgery, tables, training
from effvl_cli.engines.prune_blocks.context import note_leaks
from effvl_cli.engines.prune_blocks.preview import preview_apply
from effvl_cli.engines.prune_blocks.removal_step import figures, finetune, original_figures, settle, size_of
from effvl_cli.engines.prune_blocks.training import Recipe
from effvl_cli.techniques.prune_blocks.choices import Candidate, Found, describe
from effvl_cli.techniques.prune_blocks.targets import Size

table = tables.steps


def preview(config: ApplyConfig) -> list[Table]:
    """What `--dry-run` shows besides the options: what fine-tuning and measuring cost."""
    return preview_apply(load_run.open_network(config, unopened("prune-blocks apply", config)))


def run(config: ApplyConfig, run: Run) -> None:
    """Remove units from the network of RUN, or of --weights, in one step; fine-tune and measure."""
    context = load_run.open_network(config, run)
    note_leaks(context)
    start = surgery.start(context)
    _, found = candidates.survey(context, start.origins)
    candidates.refuse_none(context, found)
    run.report.technique.update(describe(found))
    picked = _picked(config.units, found)
    training.check(context, baseline=False)
    phases, original = Phases.of(run), size_of(context, start.module)
    before = original_figures(context, phases)
    number = 1 + max((removal.step for removal in start.removals), default=0)
    state = surgery.cut(context, start, picked, step=number)
    steps = [settle(context, phases, state, k=1, count=len(picked), original=original)]
    finetune(
        context, phases, state.module, "final", Recipe(config.final_epochs, config.final_lr, config.finetune_batch_size)
    )
    final = phases.once("final", lambda: figures(context, state.module))
    run.report.technique.update(steps=[row.to_dict() for row in steps], stopped="target_reached")
    now = Size(steps[0].params, steps[0].macs)
    measurements.record(context, before, final, steps, original, now)
    result.write_table(context, steps)
    measurements.draw(context, before, final, steps, original, measurements.time(context, start, state, phases))
    result.save(context, state)


def _picked(names: Sequence[str], found: Found) -> list[Candidate]:
    """The candidates with these indices or original paths.

    Raises:
        UsageError: none, one that is not a candidate, one twice, or more than can be removed from a stage.
    """
    if not names:
        raise UsageError("--units names no block", "Give indices or paths of `effvl prune-blocks score`, e.g. 3,5")
    places = {candidate.original: index for index, candidate in enumerate(found.candidates)}
    picked: list[int] = []
    for name in names:
        place = places.get(name, int(name) if name.isdecimal() else -1)
        if not 0 <= place < len(found.candidates):
            hint = nearest(name, places) or f"Give 0 to {len(found.candidates) - 1}, or one of {', '.join(places)}"
            raise UsageError(f"--units names {name!r}, which is not a removable block", hint)
        if place in picked:
            raise UsageError(f"--units names {name!r} a second time", "Remove one")
        picked.append(place)
    chosen = [found.candidates[place] for place in picked]
    for stage, room in found.room.items():
        count = sum(candidate.unit.stage == stage for candidate in chosen)
        if count > room:
            raise UsageError(
                f"--units takes {count} blocks of {stage}, which can lose {room}", "Name fewer, or see --min-per-stage"
            )
    return chosen
