"""A training that is measured as it goes: measure, choose the next stage, go on."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.core.checkpoint import STEPS, Step
from effvl_cli.core.errors import UsageError
from effvl_cli.engines.pretrain.arm_training import ArmTrainer, fit
from effvl_cli.engines.pretrain.costs import clock_of
from effvl_cli.engines.pretrain.schedules import MIXED, pilot_schedule
from effvl_cli.engines.pretrain.task import InvarianceTask
from effvl_cli.engines.pretrain.training_states import TrainingStates
from effvl_cli.engines.pretrain.trials import LookAhead
from effvl_cli.techniques.pretrain.compression_search import Estimates, Search, laid_out, overridden, spans_of
from effvl_cli.techniques.pretrain.schedule import Clock, Compression, Schedule, Stage
from effvl_cli.techniques.pretrain.stage_choice import next_stage

PHASE = "train"  # as a training under the resulting schedule calls it

States = Callable[[], Sequence[Step]]
Measure = Callable[[float, States], Estimates]


def accelerate(
    trainer: ArmTrainer,
    candidates: Mapping[str, Compression],
    budget: float,
    measured: Measure,
    look: LookAhead | None,
) -> tuple[Search, Clock]:
    """Train to the end of the budget; the method's networks are then those of the last step.

    Until the first share that is measured the training follows --pilot-schedule; each choice lasts until the next one.
    The schedule that comes out is that of the training, but where all candidates took turns it has the first choice.

    Args:
        trainer: what is trained, and how.
        candidates: compressions by name.
        budget: units of the training.
        measured: errors at a share, given what reads the states there.
        look: decides among nearly equal compressions; None: --ties does.

    Returns:
        The choices, and the clock of the training.
    """
    config = trainer.config
    assert isinstance(config, SearchConfig)
    shares, base = config.loop_shares, trainer.costs.shape.patch
    opening = _opening(config, trainer, candidates, budget)
    stages: dict[float, Estimates] = {}
    chosen: dict[float, str] = {}
    for t in shares:
        before = Schedule((*opening, *_stages(chosen, candidates, shares)))
        _train(trainer, before, budget, goes_on=t > shares[0])
        states = partial(_states, trainer, t)
        stages[t] = measured(t, states)
        chosen[t] = _choice(config, stages, chosen, None if look is None else partial(_ask, look, t, states))
    found = _stages(chosen, candidates, shares)
    clock = _train(trainer, laid_out([*opening, *found], config.final_full, base), budget, goes_on=True)
    mixed = config.pilot_schedule == MIXED
    schedule = laid_out(found if mixed else [*opening, *found], config.final_full, base)
    return Search(stages, candidates, chosen, overridden(stages, chosen, config.criterion), schedule), clock


def _opening(
    config: SearchConfig, trainer: ArmTrainer, candidates: Mapping[str, Compression], budget: float
) -> list[Stage]:
    """Stages until the first share that is measured."""
    end = config.loop_shares[0]
    schedule = pilot_schedule(config, trainer.costs, candidates, end * budget)
    if config.pilot_schedule != MIXED:
        if schedule.unit == "steps":
            raise UsageError(
                f"--pilot-schedule {config.pilot_schedule} counts steps, and --along accelerated shares of the budget",
                "Write shares, or give mixed, none or constant:..",
            )
        inside = [stage for stage in schedule.stages if stage.until < end]
        return [*inside, Stage(end, schedule.stages[len(inside)].compression)]
    clock = clock_of(config, trainer.costs, schedule, budget)  # one step each
    ends = [clock.spent(stage.first + stage.steps) / budget for stage in clock.stages]
    return [Stage(min(until, end), stage.compression) for until, stage in zip(ends, clock.stages, strict=True)]


def _stages(chosen: Mapping[float, str], candidates: Mapping[str, Compression], shares: Sequence[float]) -> list[Stage]:
    """Each choice until the share that is measured next, the last one until the end."""
    ends = [*shares[1:], 1.0]
    return [Stage(end, candidates[name]) for name, end in zip(chosen.values(), ends, strict=False)]


def _train(trainer: ArmTrainer, schedule: Schedule, budget: float, *, goes_on: bool) -> Clock:
    """Train to the end of a schedule, which may be before that of the budget."""
    clock = clock_of(trainer.config, trainer.costs, schedule, budget)
    task = InvarianceTask(trainer.costs.method, clock, trainer.maker, trainer.run, None)
    fit(trainer, task, phase=PHASE, goes_on=goes_on)
    return clock


def _states(trainer: ArmTrainer, t: float) -> list[Step]:
    assert isinstance(trainer.config, SearchConfig)
    return TrainingStates(trainer.run.path(STEPS) / PHASE).at(t, trainer.config.average)


def _ask(look: LookAhead, t: float, states: States, place: int, names: Sequence[str]) -> str:
    return look.pick(t, lambda: states()[0], names)


def _choice(
    config: SearchConfig,
    stages: Mapping[float, Estimates],
    chosen: Mapping[float, str],
    look: Callable[[int, Sequence[str]], str] | None,
) -> str:
    ends = [*config.loop_shares[1:], 1.0][: len(stages)]
    return next_stage(
        list(stages.values()),
        list(chosen.values()),
        criterion=config.criterion,
        order=config.order,
        ties=config.ties,
        look=look,
        spans=spans_of([config.loop_shares[0], *ends], config.final_full)[1:],
    )
