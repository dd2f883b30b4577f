"""Proof that a task's network is the one that was committed."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from effvl_cli.core.errors import CheckError
from effvl_cli.engines.continual.materialised import Materialised, environment_of, materialised
from effvl_cli.engines.continual.state import State, TaskRecord


@dataclass(frozen=True)
class Proof:
    """What was compared; what differs is an error instead.

    Attributes:
        task: its name.
        num_tensors: of its network.
        logits_equal: None where they cannot be compared, on other software or another device.
    """

    task: str
    num_tensors: int
    logits_equal: bool | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Sameness:
    """Whether a task is what it was when it was committed.

    Attributes:
        tensors: of its network.
        logits: on the probe batch; None where they cannot be compared, on other software or another device.
    """

    tensors: bool
    logits: bool | None


def compared(plain: Materialised, task: TaskRecord) -> Sameness:
    """A task's network beside what was written down at its commit."""
    known = environment_of(plain.device) == task.environment
    return Sameness(plain.digest == task.tensor_digest, plain.probe_digest == task.probe_digest if known else None)


def figures(found: Iterable[Sameness]) -> dict[str, float | None]:
    """`tensor_digest_equal` and `logits_equal` of some tasks; None where no logits were compared."""
    rows = list(found)
    logits = [row.logits for row in rows if row.logits is not None]
    return {
        "tensor_digest_equal": float(all(row.tensors for row in rows)),
        "logits_equal": float(all(logits)) if logits else None,
    }


def prove(state: State, task: TaskRecord, device: torch.device) -> Proof:
    """Compare a task's tensors, and its logits on the probe batch, with their digests at the commit.

    Raises:
        CheckError: one differs; the message names it.
    """
    plain = materialised(state, task.id, device)
    same = compared(plain, task)
    if not same.tensors:
        found = plain.tensors
        differing = sorted(key for key in {*found, *task.tensors} if found.get(key) != task.tensors.get(key))
        named = f"tensor {differing[0]} is" if differing else "its tensors are"
        raise CheckError(
            f"task {task.name}: {named} not what was committed ({len(differing)} of {len(found)} differ)",
            "The state is damaged, or this version of effvl reads it otherwise",
        )
    num_tensors = len(plain.module.state_dict())
    if same.logits is False:
        raise CheckError(
            f"task {task.name}: its tensors are those that were committed, and its logits on the probe are not",
            "Give the same command on the machine that committed it; repeat it with --device cpu",
        )
    return Proof(task.name, num_tensors, same.logits)
