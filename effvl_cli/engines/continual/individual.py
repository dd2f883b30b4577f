"""Networks of one task alone: the goal of a task, and what its result is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.core import distributed, seeds
from effvl_cli.core.cache import Entry
from effvl_cli.core.loop import FitResult
from effvl_cli.engines.continual import phase_training, rates
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.heads import fresh_head, put_head
from effvl_cli.engines.continual.phase_training import Course
from effvl_cli.engines.continual.plain import new_head, optimizers, plain_network

FORMAT = 1  # of the cached content: raised when the training changes
FIGURES = ("val", "test", "train")


@dataclass(frozen=True)
class Individual:
    """Accuracies of a network that learned one task alone, and how long it learned."""

    val: float
    test: float
    train: float
    epochs: int


@dataclass(frozen=True)
class Origin:
    """What a network begins with where that is another task's individual network, and its rate."""

    job: Job
    repeat: int
    lr: float


class Individuals:
    """Trains individual networks, unless this run or another one with the same options and data has done so."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def of(self, job: Job, *, epochs: int | None = None, origin: Origin | None = None) -> Individual:
        """Accuracies of the network of a task.

        Args:
            job: the task.
            epochs: length of its training; None: that of learning.
            origin: another task's network that it begins as.
        """
        context, length = self.context, epochs or job.length
        phase = self._phase(job, length, origin)
        found = context.phases.once(f"{phase} figures", lambda: self._figures(job, phase, length, origin))
        return Individual(**found, epochs=length)

    def weights(self, job: Job) -> Mapping[str, Tensor]:
        """State dict of the network of a task, from the cache."""
        entry = self._entry(job, job.length, None)
        known = entry.load("weights", self.context.run.warn)
        if known is None:
            known = self._trained(job, f"{self._phase(job, job.length, None)}-again", job.length, None).state_dict()
            self._save(entry, "weights", known)
        return known

    def _entry(self, job: Job, epochs: int, origin: Origin | None) -> Entry:
        return self.context.run.cache.entry("continual-individual", self._key(job, epochs, origin))

    def _figures(self, job: Job, phase: str, epochs: int, origin: Origin | None) -> dict[str, float]:
        context, entry = self.context, self._entry(job, epochs, origin)
        begun = (context.phases.folder / phase).is_dir()  # in this run: its records continue too
        known = None if distributed.all_reduce_max(int(begun)) else entry.load("figures", context.run.warn)
        if known is not None:
            context.run.log(f"{phase} was trained before with these options: taken from the cache")
            return {name: float(known[name]) for name in FIGURES}
        module = self._trained(job, phase, epochs, origin)
        figures = context.measure(module, job)
        self._save(entry, "figures", {name: torch.tensor(figures[name], dtype=torch.float64) for name in FIGURES})
        if context.keeps_individuals and origin is None:
            self._save(entry, "weights", module.state_dict())
        return figures

    def _save(self, entry: Entry, name: str, tensors: Mapping[str, Tensor]) -> None:
        if distributed.is_main():
            entry.save(name, {key: value.cpu() for key, value in tensors.items()})
        distributed.barrier()

    def _trained(self, job: Job, phase: str, epochs: int, origin: Origin | None) -> nn.Module:
        context, config = self.context, job.config
        module = plain_network(context, job)
        if origin is not None:
            put_head(module, fresh_head(module, len(origin.job.data.classes), 0, ""))
            module.load_state_dict(self.weights(origin.job))
            new_head(context, module, job)
        stream: tuple[str | int, ...] = (job.task.name, "learn", 0)
        if origin is not None:
            stream = (job.task.name, "goal", origin.repeat)
        course = Course(phase, stream, epochs, rates.learning(config), **context.plateau(config))
        parts = optimizers(context, module, config, origin.lr if origin else None)

        def fit() -> FitResult:
            return phase_training.fit(config, context.run, context.accuracy, job.data, module, parts, course)

        context.phases.train(phase, module, fit)
        return module

    def _phase(self, job: Job, epochs: int, origin: Origin | None) -> str:
        suffix = "" if epochs == job.length else f"-{epochs}"
        return f"{job.prefix}-individual{suffix}" + (f"-from-{origin.repeat}" if origin else "")

    def _key(self, job: Job, epochs: int, origin: Origin | None) -> dict[str, Any]:
        context, config = self.context, job.config
        return {
            "format": FORMAT,
            "network": context.identity,
            "task": job.task.name,
            "data": [split.source.fingerprint() for split in (job.data.train_images, job.data.val, job.data.test)],
            "preprocess": job.data.preprocess.to_dict(),
            "learn": [epochs, config.batch_size, config.lr, config.schedule, config.milestones, config.gamma],
            "optimizer": [config.momentum, config.weight_decay, config.warmup, config.clip_grad, config.plateau],
            "augment": config.augment,
            "precision": config.precision,
            "device": context.run.device.type,
            "processes": distributed.world().size,
            "seed": config.seed,
            "origin": None if origin is None else [self._key(origin.job, origin.job.length, None), origin.lr],
            "repeat": None if origin is None else origin.repeat,
        }


def drawn_origins(context: Context, job: Job, earlier: list[Job]) -> list[Origin]:
    """Which earlier tasks' networks the repeats of a finetune goal begin as: drawn by the seed."""
    config, origins = job.config, []
    for repeat in range(config.num_goal_repeats):
        generator = seeds.generator(config.seed, job.task.name, "goal-origin", repeat)
        place = int(torch.randint(len(earlier), (), generator=generator))
        assert config.lr is not None  # filled in by the options
        origins.append(Origin(earlier[place], repeat, config.goal_lr or config.lr))
    return origins
