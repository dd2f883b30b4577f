"""Trains the encoder of one view, from RUN's encoders, those of --weights, or from scratch."""

from collections.abc import Callable, Mapping

from effvl_cli.config.cpr_mine_train import TrainConfig
from effvl_cli.core.errors import ModelError
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.cpr_mine import job_preview, job_table
from effvl_cli.engines.cpr_mine.alternation import Result, take
from effvl_cli.engines.cpr_mine.cascades import Stages, stages_by_epoch
from effvl_cli.engines.cpr_mine.clip_data import open_clips
from effvl_cli.engines.cpr_mine.encoders import (
    Encoder,
    fresh_encoder,
    keep,
    loaded_encoder,
    sources_of,
    views_of_run,
)
from effvl_cli.engines.cpr_mine.listed_positives import read_positives
from effvl_cli.engines.cpr_mine.turns import Turn, epochs_of, no_stages
from effvl_cli.engines.cpr_mine.view_training import Trainer

table = job_table.training


def run(config: TrainConfig, run: Run) -> None:
    """Train and save."""
    partners = partners_of(config)
    source = open_clips(config, "train")
    trainer = Trainer(config, run, source)
    assert config.queue_size is not None
    stages: Callable[[int], Stages] = no_stages
    if partners:
        epochs = epochs_of(config.epochs, config.steps, trainer.sampler.steps_per_epoch)
        views = [*partners, config.view]
        stages = stages_by_epoch(config, views, config.queue_size, epochs, run, main=partners[0])
    listed = read_positives(config.positives, source) if config.positives else None
    encoders = _encoders(config, run, partners)
    frozen = {view: encoders[view] for view in partners}
    result = Result(dict(encoders))
    take(trainer, Turn("train", encoders[config.view], frozen, stages, config.epochs, config.lr, listed), result)
    _report(config, run, result)
    keep(run, result.encoders, config.view)


def preview(config: TrainConfig) -> list[Table]:
    """What it will do and cost."""
    return job_preview.preview_training(config, partners_of(config))


def partners_of(config: TrainConfig) -> list[str]:
    """Views of the frozen encoders: those of --mine-with, else all others of RUN."""
    if config.positives or "none" in config.mine_with:
        return []
    if config.mine_with:
        return list(config.mine_with)
    assert config.run is not None
    found = [view for view in views_of_run(config.run) if view != config.view]
    if not found:
        raise ModelError(
            f"{config.run} holds no encoder but that of {config.view} to mine with",
            "Give --weights VIEW=RUN and --mine-with VIEW, or --mine-with none",
        )
    return found


def _encoders(config: TrainConfig, run: Run, partners: list[str]) -> dict[str, Encoder]:
    """The encoder that is trained and those that stay frozen, which are never random.

    Raises:
        ModelError: a frozen encoder without weights.
    """
    views = [config.view, *partners]
    sources = sources_of(config, views, config.run)
    missing = [view for view in partners if view not in sources]
    if missing:
        raise ModelError(
            f"there are no weights of the frozen encoder of {missing[0]}",
            f"Give --weights {missing[0]}=RUN, or a RUN that trained it",
        )
    found = {view: loaded_encoder(config, run, view, weights) for view, weights in sources.items()}
    if config.view not in found:
        if config.run:
            run.log(f"{config.run} holds no encoder of {config.view}: it is trained from scratch")
        found[config.view] = fresh_encoder(config, config.view)
    return {view: found[view] for view in views}


def _report(config: TrainConfig, run: Run, result: Result) -> None:
    run.report.data(open_clips(config, "train"))
    own = result.encoders[config.view]
    run.report.model(own.network.name, own.network.source, own.network.module)
    turn = result.turns[-1]
    last: Mapping[str, float] = turn["mined"][-1] if turn["mined"] else {}
    for name in ("mined_rows", "mined_precision"):
        if name in last:
            run.report.metric(name, last[name], split="train")
    run.report.metric("loss", turn["loss"], split="train", unit="nats", higher_is_better=False)
    run.report.technique.update(
        view=config.view, siblings=config.siblings, self_drop=config.self_drop, turns=result.turns
    )
