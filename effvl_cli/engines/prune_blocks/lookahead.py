"""Candidates that are fine-tuned for a while before one of them is chosen: an immediate drop need not last.

Each candidate is trained by one process alone, so the result does not depend on the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from effvl_cli.config.prune_blocks import Lookahead, PruneBlocksConfig
from effvl_cli.core.checkpoint import StepFolders
from effvl_cli.core.phases import Phases
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.engines.prune_blocks import training
from effvl_cli.engines.prune_blocks.context import Context
from effvl_cli.engines.prune_blocks.removal_step import teacher_of
from effvl_cli.engines.prune_blocks.surgery import cut
from effvl_cli.engines.prune_blocks.training import Recipe
from effvl_cli.models.pruned_network import State
from effvl_cli.techniques.prune_blocks.choices import Candidate
from effvl_cli.techniques.prune_blocks.recalibrate import recalibrate


@dataclass(frozen=True)
class Trial:
    """A candidate, the place of the network fine-tuned without it, and its figures on the scoring images.

    Attributes:
        candidate: what was removed.
        weights: folder and step of its checkpoint.
        figures: `top1`, `top5`, `loss`.
        metric: the deciding figure.
    """

    candidate: Candidate
    weights: tuple[Path, int]
    figures: dict[str, float]
    metric: str

    @property
    def rank(self) -> tuple[float, float]:
        """Lower is better."""
        wrong, loss = 1 - self.figures["top1"], self.figures["loss"]
        return (wrong, loss) if self.metric == "top1" else (loss, wrong)

    def load(self) -> dict[str, Tensor]:
        """The weights."""
        folder, step = self.weights
        return dict(StepFolders(folder).load(step).model)

    def row(self) -> dict[str, Any]:
        """For the report."""
        return {"path_original": self.candidate.original, **self.figures}


def try_out(
    context: Context[PruneBlocksConfig],
    phases: Phases,
    state: State,
    shortlist: Sequence[Candidate],
    plan: Lookahead,
    k: int,
    number: int,
) -> list[Trial]:
    """Fine-tune the network without each candidate, on the same data in the same order.

    Args:
        context: data and options.
        phases: results of earlier attempts.
        state: the network.
        shortlist: the candidates.
        plan: how long to train.
        k: number of the step in this run.
        number: of the step, for removals.
    """
    config = context.config
    sampler = EpochSampler(len(context.train), config.finetune_batch_size, config.seed)
    steps = max(1, round(plan.epochs * sampler.steps_per_epoch))
    recipe = Recipe(0, config.finetune_lr, config.finetune_batch_size, steps=steps)
    names = [f"step-{k}-without-{candidate.original}" for candidate in shortlist]

    def tried(place: int) -> dict[str, float]:
        module = cut(context, state, [shortlist[place]], step=number).module
        if config.bn_recal:
            recalibrate(module, context.recalibration)
        fitted = training.train(context, module, recipe, names[place], teacher=teacher_of(context))
        last = fitted.steps if fitted.best_step is None else fitted.best_step
        return {**context.accuracy(module, context.scoring), "step": last}

    trials = []
    for candidate, name, found in zip(shortlist, names, phases.side_by_side(names, tried), strict=True):
        figures = {key: found[key] for key in ("top1", "top5", "loss")}
        trials.append(Trial(candidate, (phases.folder / name, int(found["step"])), figures, config.metric))
    return trials
