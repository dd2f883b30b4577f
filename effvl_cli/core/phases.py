"""Results of a run's phases, kept in its folder so that a resumed run does not compute them again."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import STEPS, StepFolders, independent, read_state_dict, sha256
from effvl_cli.core.errors import DistributedError, Interrupted, ModelError, Preempted
from effvl_cli.core.files import write_bytes, write_text
from effvl_cli.core.loop import FitResult
from effvl_cli.core.run import Run

_NAME = re.compile(r"[^A-Za-z0-9.]+")


class Phases:
    """Names of phases and their results: JSON values in `checkpoints/phases.json`, tensors in files beside it.

    A phase is identified by its name and the options of its run; options that have grown since repeat every phase,
    trainings from their newest checkpoint. A phase that depends on more than these (the device, a path) says so in its
    name.

    Records of work that a killed attempt began and this one repeats are taken out of metrics.jsonl: the file knows how
    long that was when the newest value was stored, and a phase of training when its newest checkpoint was.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.path(STEPS)
        self.file = self.folder / "phases.json"
        found = distributed.broadcast_json(self._read() if distributed.is_main() else {})
        self.values: dict[str, Any] = found.get("values", {})
        self.warnings: dict[str, list[str]] = found.get("warnings", {})
        run.settle_records(int(found.get("records") or 0))

    @classmethod
    def of(cls, run: Run) -> "Phases":
        """Those of a run: one object, however many ask for it."""
        if run.phases is None:
            run.phases = cls(run)
        return run.phases

    def _read(self) -> dict[str, Any]:
        if not self.file.is_file():
            return {}
        try:
            found = json.loads(self.file.read_bytes())
            known = {"values": dict(found["values"]), "warnings": dict(found["warnings"]), "records": found["records"]}
            return known if self._fits(found) else {}
        except (ValueError, KeyError, TypeError):
            self.run.warn(f"{self.file} is damaged: finished phases are repeated")
            return {}

    def _fits(self, found: Mapping[str, Any]) -> bool:
        return bool(found["lengths"] == json.loads(json.dumps(dict(self.run.lengths))))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value of a phase; computed and stored if no attempt has done so.

        It is what reading it back gives (lists for tuples), in the first attempt too. Warnings that came up while it
        was made are repeated where it is not.
        """
        self._warn_again(name)
        if name not in self.values:
            said = len(self.run.report.warnings)
            value = distributed.broadcast_json(make())
            self._keep(name, value, said)
        return self.values[name]

    def _warn_again(self, name: str) -> None:
        for text in self.warnings.get(name, ()):
            self.run.warn(text)

    def _keep(self, name: str, value: Any, said: int) -> None:
        """Store a value, with the warnings that follow the first `said` ones."""
        self.values[name] = json.loads(json.dumps(value))
        self.warnings[name] = self.run.report.warnings[said:]
        self._store()

    def timed(self, name: str, make: Callable[[], Any]) -> Any:
        """`once` for measurements of time: repeated where the device or the number of threads has changed."""
        device = self.run.device
        model = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return self.once(f"{name} on {model}, threads: {torch.get_num_threads()}", make)

    def _store(self) -> None:
        if distributed.is_main():
            known = {"lengths": dict(self.run.lengths), "records": self.run.record_offset()}
            known |= {
                "values": self.values,
                "warnings": {name: texts for name, texts in self.warnings.items() if texts},
            }
            write_text(self.file, json.dumps(known, indent=1))  # NaN stays NaN

    def tensors(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a phase, on the CPU; computed on every process, and stored, if no attempt has done so."""
        short = hashlib.sha256(name.encode()).hexdigest()[:8]
        path = self.folder / f"{_NAME.sub('-', name)[:60]}-{short}.safetensors"
        digest, said = self.values.get(name), len(self.run.report.warnings)
        if digest is not None:
            self._warn_again(name)
            whole = path.is_file() and sha256(path) == digest
            if not distributed.all_reduce_max(int(not whole)):
                return read_state_dict(path)
            self.run.warn(f"{path} is damaged: computed again")
        made, _ = independent(make())
        data = save(made)
        if distributed.is_main():
            write_bytes(path, data)
        self._keep(name, hashlib.sha256(data).hexdigest(), said)
        return made

    def train(self, name: str, module: nn.Module, fit: Callable[[], FitResult]) -> FitResult:
        """Train a module in place, or load its weights where an earlier attempt has finished the training.

        Args:
            name: of the phase, as in the plan of `fit`.
            module: what is trained; afterwards it is in evaluation mode.
            fit: trains it, from the newest checkpoint of the phase.

        Returns:
            Result of the training; `seconds` are those of the attempt that finished it.
        """
        key = f"{name} trained"
        found = self._load(name, module) if key in self.values else None
        if found is None:
            began, said = time.monotonic(), len(self.run.report.warnings)
            fitted = fit()
            step = fitted.steps if fitted.best_step is None else fitted.best_step
            known = {"step": step, "steps": fitted.steps, "best_step": fitted.best_step, "figures": fitted.figures}
            self._keep(key, distributed.broadcast_json({**known, "seconds": time.monotonic() - began}), said)
            found, resumed_at = self.values[key], fitted.resumed_at
        else:
            resumed_at = int(found["steps"])
            self._warn_again(key)
            self.run.resumed(name, resumed_at)
        module.eval()
        return FitResult(found["steps"], resumed_at, found["best_step"], found["figures"], float(found["seconds"]))

    def _load(self, name: str, module: nn.Module) -> dict[str, Any] | None:
        """Load the weights of a finished training; None where they are damaged on a process's disk."""
        found: dict[str, Any] = self.values[f"{name} trained"]
        try:
            model, fault = StepFolders(self.folder / name).load(found["step"]).model, ""
        except ModelError as error:
            model, fault = {}, str(error)
        if distributed.all_reduce_max(int(bool(fault))):
            self.run.warn(f"{fault or 'a checkpoint'}; {name} is trained again from the checkpoint before it")
            return None
        module.load_state_dict(model)
        return found

    def side_by_side(self, names: Sequence[str], make: Callable[[int], Mapping[str, float]]) -> list[dict[str, float]]:
        """Numbers of several phases, distributed over the processes, each working alone.

        Args:
            names: of the phases; each has its own folder below `folder` for intermediate files.
            make: called with the index of a phase in `names`, on one process, which is then `solo`.
        """
        size, rank = distributed.world().size, distributed.world().rank
        for start in range(0, len(names), size):
            together = names[start : start + size]
            if not all(name in self.values for name in together):
                self._make(together, start, rank, make)
        return [self.values[name] for name in names]

    def _make(self, together: Sequence[str], start: int, rank: int, make: Callable[[int], Mapping[str, float]]) -> None:
        """Run one phase on each of the first processes; then all exchange results, failures and stop requests."""
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
            raise DistributedError("another process failed", "See its own message")
        for place, name in enumerate(together):
            self.once(name, partial(distributed.broadcast_json, found, place))
