"""What stages of a run have come to, kept in its folder so that a resumed run does not make it again."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import StepFolders
from effvl_cli.core.errors import DistributedError, Interrupted, Preempted
from effvl_cli.core.files import write_json
from effvl_cli.core.loop import FitResult
from effvl_cli.core.run import Run


class Stages:
    """Names of stages and their JSON values, in `checkpoints/stages.json`.

    Records of work that a killed attempt began and this one repeats are taken out of metrics.jsonl: the file knows how
    long that was when the newest value was stored, and a phase of training when its newest checkpoint was.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.folder / "checkpoints"
        self.path = self.folder / "stages.json"
        found = json.loads(self.path.read_text()) if distributed.is_main() and self.path.is_file() else {}
        found = distributed.broadcast_json(found)
        self.values: dict[str, Any] = found.get("values", {})
        run.settle_records(int(found.get("records") or 0))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of a stage; made, and stored, if no attempt has done so."""
        if name not in self.values:
            self.values[name] = distributed.broadcast_json(make())
            if distributed.is_main():
                write_json(self.path, {"values": self.values, "records": self.run.record_offset()})
        return self.values[name]

    def side_by_side(self, names: Sequence[str], make: Callable[[int], Mapping[str, float]]) -> list[dict[str, float]]:
        """Numbers of several stages, which the processes share among them, each for itself.

        Args:
            names: of the stages, each with a folder of its own below `folder` for what it keeps on its way.
            make: gets the place of a stage in `names`, on one process, which is then `solo`.
        """
        size, rank = distributed.world().size, distributed.world().rank
        for start in range(0, len(names), size):
            together = [name for name in names[start : start + size]]
            if not all(name in self.values for name in together):
                self._make(together, start, rank, make)
        return [self.values[name] for name in names]

    def _make(self, together: Sequence[str], start: int, rank: int, make: Callable[[int], Mapping[str, float]]) -> None:
        """One stage on each of the first processes; then all tell the others, also that they failed or have to stop."""
        found: dict[str, float] = {}
        failure: Exception | None = None
        if rank < len(together):
            with distributed.solo():
                try:
                    found = dict(make(start + rank))
                except Exception as error:
                    failure = error
        stop = self.run.stop_signal() if isinstance(failure, Interrupted | Preempted) else 0
        worst = distributed.barrier_max(int(failure is not None) + stop)
        if failure is not None:
            raise failure
        if worst > 1:
            self.run.stop(worst - 1)
        if worst:
            raise DistributedError("another process failed", "Its own message says why")
        for place, name in enumerate(together):
            self.once(name, partial(distributed.broadcast_json, found, place))

    def phase(self, name: str, module: nn.Module, train: Callable[[], FitResult]) -> float:
        """Train a module in place, unless an attempt has finished that: then its weights are loaded.

        Returns:
            Seconds that the training took.
        """
        folders = StepFolders(self.folder / name)
        done = self.values.get(f"{name} trained")
        if done:
            module.load_state_dict(folders.load(done["step"]).model)
            module.eval().requires_grad_(False)
            self.run.resumed(name, done["steps"])
            return float(done["seconds"])
        began = time.monotonic()
        fitted = train()
        step = fitted.steps if fitted.best_step is None else fitted.best_step
        known = {"step": step, "steps": fitted.steps, "seconds": time.monotonic() - began}
        return float(self.once(f"{name} trained", lambda: known)["seconds"])
