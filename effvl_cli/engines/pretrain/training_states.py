"""Training states that a schedule search measures or goes on from, by the share of the training before them."""

from pathlib import Path

from torch import nn

from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.core.checkpoint import Step, StepFolders
from effvl_cli.core.errors import DataError, ModelError
from effvl_cli.core.optim import Optimizers
from effvl_cli.engines.common.plans import optimizers_of
from effvl_cli.techniques.pretrain.schedule import APART

ROUNDING = 1e-6  # of t


class TrainingStates:
    """Checkpoints of one training.

    Args:
        folder: of its phase.

    Attributes:
        shares: t of each step that is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folders = StepFolders(folder)
        self.shares: dict[int, float] = {
            step: self.folders.load(step).state["task"]["t"] for step in self.folders.steps()
        }

    def first(self, t: float) -> int:
        """The first step at which a share t is spent, or the last one."""
        return next((step for step, share in self.shares.items() if share >= t - ROUNDING), max(self.shares))

    def at(self, t: float, count: int) -> list[Step]:
        """The state at a share t, and `count` - 1 before it, as `Clock.neighbours` lays them out; the latest first.

        Raises:
            DataError: some were not kept.
        """
        found = [self.first(t)]
        while len(found) < count and found[-1] > 0:
            aim = t - len(found) * APART - ROUNDING
            near = (step for step, share in self.shares.items() if step < found[-1] and share >= aim)
            before = next(near, found[-1] - 1)
            if before not in self.shares:
                raise DataError(
                    f"{self.folders.folder} keeps {len(found)} of the {count} training states before t = {t:g}",
                    f"Train that run with --keep-neighbours {count}, or leave RUN out",
                )
            found.append(before)
        return [self.folders.load(step) for step in found]


def load_state(method: nn.Module, step: Step, config: SearchConfig) -> None:
    """Put a state's weights into a method's networks.

    Raises:
        ModelError: they are of other networks.
    """
    try:
        method.load_state_dict(step.model)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        hint = "Leave out --model, --image-size and head options"
        raise ModelError(f"the checkpoints of {config.run} do not fit: {reason}", hint) from error


def optimizers_at(config: SearchConfig, method: nn.Module, step: Step, *, instead: str) -> Optimizers:
    """The optimizers of a state.

    Args:
        config: options.
        method: whose parameters they move.
        step: the state.
        instead: option that does without them.

    Raises:
        ModelError: they are of another --optimizer.
    """
    optimizers = optimizers_of(config, method)
    try:
        optimizers.load_state_dict(step.state["optimizer"])
    except ValueError as error:
        hint = f"Give the --optimizer of that run, or {instead}"
        raise ModelError(f"the optimizer state of {config.run} does not fit: {error}", hint) from error
    return optimizers
