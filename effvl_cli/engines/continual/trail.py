"""Phases of one network of which each starts where the one before ended."""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import StepFolders
from effvl_cli.core.loop import FitResult
from effvl_cli.core.phases import Phases

Figures = dict[str, Any]


class Trail:
    """Trains phase after phase; a resumed run loads weights only where it has to go on from them.

    Args:
        phases: results of the run's phases.
        module: makes the network as it is before the first phase, when it is first needed.
        load: restores a state dict of it.
    """

    def __init__(
        self,
        phases: Phases,
        module: Callable[[], nn.Module],
        load: Callable[[Mapping[str, Tensor]], Any],
    ) -> None:
        self.phases, self._module, self._load = phases, module, load
        self.last: str | None = None
        self._held: str | None = None

    def known(self, name: str) -> Figures | None:
        """Figures of a phase that is finished."""
        found: Figures | None = self.phases.values.get(_key(name))
        return found

    def follow(
        self,
        name: str,
        fit: Callable[[], FitResult],
        measure: Callable[[FitResult], Mapping[str, Any]],
        *,
        prepare: Callable[[], None] = lambda: None,
    ) -> Figures:
        """Train a phase from where the last one ended, unless it is finished, and measure it.

        Args:
            name: of the phase, as in the plan of `fit`.
            fit: trains the network in place.
            measure: JSON values of the network as the phase leaves it.
            prepare: changes the network before the phase.
        """
        if self.known(name) is None:
            self.hold(self.last)
            prepare()
            result = self.phases.train(name, self._module(), fit)
            self._held = name
            found: Figures = self.phases.once(_key(name), lambda: dict(measure(result)))
        else:
            found = self.phases.once(_key(name), dict)
            self.phases.run.resumed(name, int(self.phases.values[f"{name} trained"]["steps"]))
        self.last = name
        return found

    def hold(self, name: str | None) -> None:
        """Give the network the weights that a finished phase ended with.

        Raises:
            ModelError: they are damaged.
        """
        if name is None or name == self._held:
            return
        step = self.phases.values[f"{name} trained"]["step"]
        self._load(StepFolders(self.phases.folder / name).load(step).model)
        self._held = name

    def back_to(self, name: str | None) -> None:
        """Continue from the end of an earlier phase."""
        self.last = name

    def forget(self, *names: str) -> None:
        """Delete the weights of phases that nothing starts from any more; their figures stay."""
        if distributed.is_main():
            for name in names:
                shutil.rmtree(self.phases.folder / name, ignore_errors=True)


def forget_all(phases: Phases, prefix: str) -> None:
    """Delete the weights of all phases of a task; their figures stay."""
    if distributed.is_main():
        for folder in phases.folder.glob(f"{prefix}-*"):
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)


def _key(name: str) -> str:
    return f"{name} figures"
