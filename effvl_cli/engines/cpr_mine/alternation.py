"""The trainings of one arm: views in turn, each with the newest encoders of the others (arXiv 2010.09709, sec. 3.2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from effvl_cli.config.cpr_mine_train import Arm, CprMineConfig
from effvl_cli.core.run import Run
from effvl_cli.engines.cpr_mine.cascades import Stages, find_view, named, stages_by_epoch
from effvl_cli.engines.cpr_mine.encoders import Encoder
from effvl_cli.engines.cpr_mine.turns import Turn, epochs_of, no_stages
from effvl_cli.engines.cpr_mine.view_training import Trainer
from effvl_cli.techniques.cpr_mine.stages import described


@dataclass
class Result:
    """What an arm ended as.

    Attributes:
        encoders: of every view.
        turns: what the report says of each training.
    """

    encoders: dict[str, Encoder]
    turns: list[dict[str, Any]] = field(default_factory=list)


def order_of(config: CprMineConfig) -> list[str]:
    """Views that an arm trains, in turn.

    Raises:
        UsageError: --order names a view that there is not.
    """
    return [find_view(name, config.views, "--order") for name in config.order] or [config.views[0]]


def pretrain(trainer: Trainer, config: CprMineConfig, fresh: Mapping[str, Encoder]) -> Result:
    """InfoNCE of every view by itself."""
    assert config.pretrain_lr is not None
    result, names = Result({}), named(list(fresh))
    for view, encoder in fresh.items():
        turn = Turn(f"pretrain-{names[view]}", encoder, {}, no_stages, config.pretrain_epochs, config.pretrain_lr)
        take(trainer, turn, result)
    return result


def alternate(trainer: Trainer, config: CprMineConfig, arm: Arm, start: Mapping[str, Encoder]) -> Result:
    """Train the views of --order with positives that an arm finds, --num-cycles times; the rate starts anew each time.

    Args:
        trainer: on the training videos.
        config: options.
        arm: "infonce" mines nothing, "coclr" by the first other view alone, "cpr" by the cascade.
        start: encoders that all arms begin with; they stay as they are.
    """
    result, names, order = Result(dict(start)), named(list(start)), order_of(config)
    for cycle in range(config.num_cycles):
        for view in order:
            others = [other for other in start if other != view]
            number = f"-{cycle + 1}" if config.num_cycles > 1 else ""
            phase = f"{arm}-{names[view]}{number}"
            partners = _partners(arm, others, result)
            epochs = epochs_of(config.epochs, config.steps, trainer.sampler.steps_per_epoch)
            stages = stages_for(config, trainer.run, arm, view, others, epochs)
            take(trainer, Turn(phase, result.encoders[view], partners, stages, config.epochs, config.lr), result)
    return result


def _partners(arm: Arm, others: Sequence[str], result: Result) -> dict[str, Encoder]:
    """The encoders that an arm mines with."""
    used = {"infonce": [], "coclr": others[:1], "cpr": others}[arm]
    return {view: result.encoders[view] for view in used}


def stages_for(
    config: CprMineConfig, run: Run, arm: Arm, view: str, others: Sequence[str], epochs: int
) -> Callable[[int], Stages]:
    """The cascade of an arm's epochs.

    Raises:
        UsageError: stages that make no cascade.
    """
    assert config.queue_size is not None
    if arm == "infonce":
        return no_stages
    single = arm == "coclr"
    views = [*(others[:1] if single else others), view]
    return stages_by_epoch(config, views, config.queue_size, epochs, run, main=others[0], single=single)


def take(trainer: Trainer, turn: Turn, result: Result) -> None:
    """Train a turn and put its encoder in the place of the one that it began with."""
    trained = trainer.train(turn)
    result.encoders[turn.start.view] = trained.encoder
    epochs = epochs_of(turn.epochs, trainer.config.steps, trainer.sampler.steps_per_epoch)
    last = turn.stages_of(epochs - 1)
    about = {"phase": turn.phase, "view": turn.start.view, "mined_with": list(turn.partners)}
    result.turns.append({**about, "stages": described(last) if last else "", **trained.about})
