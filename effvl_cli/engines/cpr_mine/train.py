"""Trains the encoder of one view, from RUN's encoders, those of --weights, or from scratch."""

from collections.abc import Callable, Mapping
from pathlib import Path

from effvl_cli.config.cpr_mine_train import TrainConfig
from effvl_cli.core.errors import ModelError
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.cpr_mine import job_preview, job_table
from effvl_cli.engines.cpr_mine.alternation import Result, take
from effvl_cli.engines.cpr_mine.cascades import Stages, short_name, stages_by_epoch
from effvl_cli.engines.cpr_mine.clip_data import open_clips
from effvl_cli.engines.cpr_mine.encoders import Start, encoder_of, keep, starts_of
from effvl_cli.engines.cpr_mine.listed_positives import read_positives
from effvl_cli.engines.cpr_mine.turns import Turn, epochs_of, no_stages
from effvl_cli.engines.cpr_mine.view_training import Trainer
from effvl_cli.models.clip_encoders import encoder_folders

table = job_table.training


def run(config: TrainConfig, run: Run) -> None:
    """Train and save."""
    own, *frozen = starts_for(config)
    source = open_clips(config, "train")
    trainer = Trainer(config, run, source)
    assert config.queue_size is not None
    stages: Callable[[int], Stages] = no_stages
    if frozen:
        epochs = epochs_of(config.epochs, config.steps, trainer.sampler.steps_per_epoch)
        views = [start.view for start in (*frozen, own)]
        stages = stages_by_epoch(config, views, config.queue_size, epochs, run, main=views[0])
    listed = read_positives(config.positives, source) if config.positives else None
    encoders = {start.view: encoder_of(config, run, start) for start in (own, *frozen)}
    partners = {start.view: encoders[start.view] for start in frozen}
    result = Result(dict(encoders))
    take(trainer, Turn("train", encoders[own.view], partners, stages, config.epochs, config.lr, listed), result)
    _report(config, run, result, own.view)
    trainer.note_failures()
    keep(run, result.encoders, own.view)


def preview(config: TrainConfig) -> list[Table]:
    """What it will do and cost."""
    own, *frozen = (start.view for start in starts_for(config))
    return job_preview.preview_training(config, own, frozen)


def starts_for(config: TrainConfig) -> list[Start]:
    """What the trained encoder begins with, and behind it the frozen ones: of --mine-with, else of all others of RUN.

    Raises:
        ModelError: there is none to mine with, or a frozen one without weights.
    """
    names = [name for name in config.mine_with if name != "none"]
    if not (config.mine_with or config.positives):
        assert config.run is not None
        names = [view for view in encoder_folders(Path(config.run)) if short_name(view) != short_name(config.view)]
        if not names:
            raise ModelError(
                f"{config.run} holds no encoder but that of {config.view} to mine with",
                "Give --mine-with VIEW --weights VIEW=RUN, or --mine-with none",
            )
    starts = starts_of(config, [config.view, *names], config.run)
    for name in names:
        if starts[name].weights is None:
            raise ModelError(
                f"there are no weights of the frozen encoder of {name}",
                f"Give --weights {name}=RUN, or a RUN that trained it",
            )
    return list(starts.values())


def _report(config: TrainConfig, run: Run, result: Result, view: str) -> None:
    run.report.data(open_clips(config, "train"))
    own = result.encoders[view]
    run.report.model(own.network.name, own.network.source, own.network.module)
    turn = result.turns[-1]
    last: Mapping[str, float] = turn["mined"][-1] if turn["mined"] else {}
    for name in ("mined_rows", "mined_precision"):
        if name in last:
            run.report.metric(name, last[name], split="train")
    run.report.metric("loss", turn["loss"], split="train", unit="nats", higher_is_better=False)
    run.report.technique.update(view=view, siblings=config.siblings, self_drop=config.self_drop, turns=result.turns)
