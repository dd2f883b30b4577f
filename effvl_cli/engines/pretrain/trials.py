"""Short trials of nearly equal compressions from one training state, judged by k-NN on validation pictures."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from effvl_cli.config.methods import METHODS
from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.core import loop
from effvl_cli.core.checkpoint import STEPS, Step
from effvl_cli.core.errors import UsageError
from effvl_cli.core.optim import Optimizers
from effvl_cli.core.phases import Phases
from effvl_cli.engines.common.plans import plan_of
from effvl_cli.engines.pretrain.arm_training import ArmTrainer
from effvl_cli.engines.pretrain.images import open_split
from effvl_cli.engines.pretrain.probes import Probe, decode
from effvl_cli.engines.pretrain.task import InvarianceTask
from effvl_cli.engines.pretrain.training_states import load_state, optimizers_at
from effvl_cli.techniques.pretrain.halving import halve, length, tried
from effvl_cli.techniques.pretrain.schedule import Clock, Compression, Schedule, Stage

TAIL = 0.25  # length of the uncompressed tail, over that of the round's trial
FIRST_VIEW = 2_000_000  # views of trials are drawn as those of steps that neither a training nor its measurement has


def share_of(config: SearchConfig, number: int) -> float:
    """Share of the budget that one compression gets in a round, its tail included."""
    return config.lookahead_share * (1 + TAIL) * (1 << number)


def most_units(config: SearchConfig, budget: float, stages: int, pictures: int) -> float:
    """What all trials and their k-NN cost at most."""
    rounds = enumerate(tried(config.lookahead))
    return stages * sum(count * (share_of(config, number) * budget + pictures) for number, count in rounds)


def probe_of(trainer: ArmTrainer) -> Probe:
    """Validation pictures and the labelled bank.

    Raises:
        UsageError: the data has none.
    """
    config, run = trainer.config, trainer.run
    assert isinstance(config, SearchConfig)
    source, preprocess = trainer.images.source, trainer.network.preprocess
    if len(source.classes) < 2 or not len(open_split(config, "val")):
        raise UsageError(
            f"--lookahead is {config.lookahead}, and {config.data} has no classes or validation pictures to judge by",
            "Leave it out, or give --data with classes",
        )
    bank = decode(config, run, source, preprocess, config.num_bank)
    return Probe.open(config, run, preprocess, "val", bank=bank)


class LookAhead:
    """Successive halving among compressions.

    Every compression gets the same units in a round: the cheaper one takes more steps. From where its trial ends, an
    uncompressed tail over which the learning rate falls to 0 makes the network ready for the judge; the next round goes
    on from before the tail. All trials see the same pictures in the same order.

    Attributes:
        rounds: accuracies of the rounds, by share of the training.
        units: cost so far, that of the judge's forward passes included.
    """

    def __init__(self, trainer: ArmTrainer, candidates: Mapping[str, Compression], budget: float) -> None:
        config = trainer.config
        assert isinstance(config, SearchConfig)
        self.config, self.trainer, self.candidates, self.budget = config, trainer, candidates, budget
        self.probe = probe_of(trainer)
        self.run = trainer.run.unrecorded()
        self.rounds: dict[float, list[dict[str, float]]] = {}
        self.units = 0.0
        self.begun: set[str] = set()

    def pick(self, t: float, state: Callable[[], Step], names: Sequence[str]) -> str:
        """The best of a few compressions at a share of the training.

        Args:
            t: the share.
            state: reads the training state there; not called where an earlier attempt has tried everything.
            names: the compressions, the best by the criterion first; more than --lookahead are left out.
        """
        cheap_first = sorted(names[: self.config.lookahead], key=lambda name: self._cost(self.candidates[name]))
        winner, self.rounds[t] = halve(cheap_first, partial(self._score, t, state))
        for name in cheap_first:
            for phase in self._phases(t, name):
                shutil.rmtree(self.run.path(STEPS) / phase, ignore_errors=True)
        shown = ", ".join(f"{name} {value:.3f}" for row in self.rounds[t][-1:] for name, value in row.items())
        self.run.log(f"look-ahead at t = {t:g}: {winner} ({shown})")
        return winner

    def _cost(self, compression: Compression) -> float:
        return self.trainer.costs.sample(compression)

    def _phases(self, t: float, name: str) -> list[str]:
        """Names of the trial and of its tails."""
        trial = f"look-ahead-{t:g}-{list(self.candidates).index(name)}"
        return [trial, *(f"{trial}-tail{number}" for number in range(len(tried(self.config.lookahead))))]

    def _score(self, t: float, state: Callable[[], Step], name: str, number: int) -> float:
        """Accuracy of 20-NN after a round."""

        def judged() -> dict[str, float]:
            return self._try(t, state(), name, number)

        found = Phases.of(self.trainer.run).once(f"look-ahead at t = {t:g}: {name}, round {number}", judged)
        self.units += found["units"]
        return float(found["knn20"])

    def _try(self, t: float, state: Step, name: str, number: int) -> dict[str, float]:
        """Train the trial to the end of a round, then the tail, and judge."""
        trial, *tails = self._phases(t, name)
        method, budget, step = self.trainer.costs.method, self.budget, self.config.lookahead_share
        before, body = (self._clock(self.candidates[name], t, step * length(round_)) for round_ in (number - 1, number))
        load_state(method, state, self.config)
        optimizers = optimizers_at(self.config, method, state, instead="--lookahead 0")
        self._fit(trial, body, optimizers)
        end = body.units / budget
        tail = self._clock(Compression(self.trainer.costs.shape.patch), end, TAIL * step * (1 << number))
        self._fit(tails[number], tail, optimizers, skipped=body.steps)
        pictures = len(self.probe.bank.labels) + len(self.probe.asked.labels)
        return {"knn20": self.probe.knn20(method.result), "units": tail.units - before.units + pictures}

    def _clock(self, compression: Compression, start: float, share: float) -> Clock:
        """Steps with one compression from a share of the training on, for another share of it."""
        units = self.config.batch_size * self._cost(compression)
        return Clock(Schedule((Stage(start + share, compression),)), [units], self.budget, start=start)

    def _fit(self, phase: str, clock: Clock, optimizers: Optimizers, *, skipped: int | None = None) -> None:
        """Train from the newest checkpoint of the phase, else as things are.

        Args:
            phase: name.
            clock: of the trial, or of its tail.
            optimizers: go on from where they are.
            skipped: steps before a tail, over which the learning rate falls to 0; None: not a tail.
        """
        config, run, first = self.config, self.run, skipped or 0
        task = InvarianceTask(self.trainer.costs.method, clock, self.trainer.maker, run, None, first=FIRST_VIEW + first)
        hint = f", or {METHODS[config.method].hint}, or use --precision fp32"
        known: dict[str, Any] = {"phase": phase, "work": clock.spent, "hint": hint, "goes_on": phase in self.begun}
        plan = plan_of(config, clock.steps, t=clock.t, precision=config.precision, **known)
        if skipped is not None:
            rate = plan.rate
            plan = dataclasses.replace(plan, rate=lambda step: rate(step) * (1 - step / clock.steps))
        self.begun.add(phase)
        crops = self.trainer.maker.worker_crops(clock.stages[0].compression.patch)
        stream = self.trainer.images.batches(config, run, config.batch_size, lambda _: crops, seed=config.seed + 2)
        loop.fit(task, optimizers, lambda start: stream(first + start), run, plan)
