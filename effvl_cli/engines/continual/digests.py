"""Proof that a task's network is the one that was committed."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from effvl_cli.core.errors import CheckError
from effvl_cli.engines.continual.materialised import environment_of, materialised
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


def prove(state: State, task: TaskRecord, device: torch.device) -> Proof:
    """Compare a task's tensors, and its logits on the probe batch, with their digests at the commit.

    Raises:
        CheckError: one differs; the message names it.
    """
    plain = materialised(state, task.id, device)
    if plain.digest != task.tensor_digest:
        found = plain.tensors
        differing = sorted(key for key in {*found, *task.tensors} if found.get(key) != task.tensors.get(key))
        named = f"tensor {differing[0]} is" if differing else "its tensors are"
        raise CheckError(
            f"task {task.name}: {named} not what was committed ({len(differing)} of {len(found)} differ)",
            "The state is damaged, or this version of effvl reads it otherwise",
        )
    num_tensors = len(plain.module.state_dict())
    if environment_of(device) != task.environment:
        return Proof(task.name, num_tensors, None)
    if plain.probe_digest != task.probe_digest:
        raise CheckError(
            f"task {task.name}: its tensors are those that were committed, and its logits on the probe are not",
            "Give the same command on the machine that committed it; repeat it with --device cpu",
        )
    return Proof(task.name, num_tensors, logits_equal=True)
