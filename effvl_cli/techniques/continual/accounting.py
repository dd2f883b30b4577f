"""What a sequence of tasks achieved and what it costs: accuracies, forgetting, bytes, multiply-adds."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .bits import num_planes

Accuracies = Sequence[Sequence[float | None]]
"""R[i][j]: accuracy of task j after task i was learned; None where j > i."""
_BYTE, _FLOAT = 8, 4


# --- accuracies ------------------------------------------------------------------------------------------------------


def _at(table: Accuracies, row: int, column: int) -> float:
    value = table[row][column]
    if value is None:
        raise ValueError(f"the accuracy of task {column + 1} after task {row + 1} is missing")
    return value


def average_accuracy(table: Accuracies) -> float:
    """Mean over the tasks of the accuracy after the last one (Lopez-Paz and Ranzato, arXiv 1706.08840, eq. 2).

    Raises:
        ValueError: an accuracy at or below the diagonal is missing.
    """
    last = len(table) - 1
    return sum(_at(table, last, j) for j in range(len(table))) / len(table)


def backward_transfer(table: Accuracies) -> float | None:
    """Mean of R[T][j] - R[j][j] over the tasks before the last (arXiv 1706.08840, eq. 3); None for a single task.

    Raises:
        ValueError: an accuracy at or below the diagonal is missing.
    """
    last = len(table) - 1
    gains = [_at(table, last, j) - _at(table, j, j) for j in range(last)]
    return sum(gains) / len(gains) if gains else None


def forgetting(table: Accuracies) -> list[float]:
    """For each task, its best accuracy at any time less its last one (Chaudhry et al., arXiv 1801.10112, eq. 3).

    Raises:
        ValueError: an accuracy at or below the diagonal is missing.
    """
    last = len(table) - 1
    return [max(_at(table, i, j) for i in range(j, last + 1)) - _at(table, last, j) for j in range(len(table))]


def transfer(table: Accuracies, individual: Sequence[float]) -> float:
    """Mean of R[j][j] less the accuracy of an individual network of task j."""
    return sum(_at(table, j, j) - alone for j, alone in enumerate(individual)) / len(individual)


# --- bytes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Storage:
    """Bytes of a state on disk, file headers left out.

    Attributes:
        base: values of the shared weights.
        owner: bit planes of their owners.
        picks: bits of the old weights that the tasks use.
        tasks: norms, biases and tokens of all tasks.
        heads: their heads.
    """

    base: int
    owner: int
    picks: int
    tasks: int = 0
    heads: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.owner + self.picks + self.tasks + self.heads

    def to_dict(self) -> dict[str, int]:
        """For a report."""
        return {**asdict(self), "total": self.total}


def packed_bytes(count: int) -> int:
    """Bytes of `count` bits."""
    return -(-count // _BYTE)


def storage(
    sizes: Mapping[str, int],
    old: Sequence[Mapping[str, int]],
    task_bytes: Sequence[int] = (),
    head_bytes: Sequence[int] = (),
) -> Storage:
    """4 N + sum_l B ceil(n_l / 8) + sum_t sum_l ceil(n_old / 8) + what each task has for itself.

    Args:
        sizes: elements of each shared tensor at the newest geometry.
        old: for each task, elements of each tensor at its geometry that earlier tasks own; zeros for the first.
        task_bytes: norms, biases and tokens of each task.
        head_bytes: head of each task.
    """
    planes = num_planes(len(old))
    return Storage(
        base=_FLOAT * sum(sizes.values()),
        owner=sum(planes * packed_bytes(count) for count in sizes.values()),
        picks=sum(packed_bytes(count) for task in old for count in task.values()),
        tasks=sum(task_bytes),
        heads=sum(head_bytes),
    )


def most_storage(sizes: Mapping[str, int], num_tasks: int, task_bytes: int = 0, head_bytes: int = 0) -> Storage:
    """Upper bound before anything is trained: every task but the first could pick from all weights.

    Args:
        sizes: elements of each shared tensor at the largest geometry.
        num_tasks: T.
        task_bytes: norms, biases and tokens of one task.
        head_bytes: head of one task.
    """
    nothing = dict.fromkeys(sizes, 0)
    old = [nothing, *[dict(sizes)] * (num_tasks - 1)]
    return storage(sizes, old, [task_bytes] * num_tasks, [head_bytes] * num_tasks)


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(value.numel() * value.element_size() for value in tensors.values())


# --- capacity --------------------------------------------------------------------------------------------------------


def expansion_factor(shared: int, shared_at_one: int) -> float:
    """Shared weights now over those at width 1."""
    return shared / shared_at_one


def redundancy(free: int, shared_at_one: int) -> float:
    """Unused weights as a share of the original network: the paper's Red., free / N * m with the true m."""
    return free / shared_at_one


def picked_fraction(picks: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> float | None:
    """Share of the old weights that a task uses; None where there are none."""
    available = sum(int(mask.sum()) for mask in old.values())
    return sum(int(mask.sum()) for mask in picks.values()) / available if available else None


def sparsity(weights: Mapping[str, Tensor]) -> float:
    """Share of zeros."""
    total = sum(value.numel() for value in weights.values())
    return 1 - sum(int(value.count_nonzero()) for value in weights.values()) / total


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds of the weights for one image; products of activations, as in attention, are left out.

    Attributes:
        dense: all of them.
        nonzero: those with a weight that is not zero: a potential, since dense kernels do not skip zeros.
    """

    dense: int
    nonzero: int


def multiply_adds(module: nn.Module, image: Tensor) -> MultiplyAdds:
    """Multiply-adds of convolutions and linear layers.

    Args:
        module: a plain network; its mode and buffers do not change if it is in evaluation mode.
        image: (1, 3, H, W).
    """
    found = [0, 0]

    def count(weight: Tensor, positions: int) -> None:
        found[0] += positions * weight.numel()
        found[1] += positions * int(weight.count_nonzero())

    def hook(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        if isinstance(part, nn.MultiheadAttention):
            positions = inputs[0].numel() // inputs[0].shape[-1]
            for weight in (part.in_proj_weight, part.out_proj.weight):
                count(weight, positions)
        elif isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d) and isinstance(output, Tensor):
            count(part.weight, output[0, 0].numel())
        elif isinstance(part, nn.Linear) and isinstance(output, Tensor):
            count(part.weight, output.numel() // output.shape[-1])

    with _hooked(module, hook), torch.no_grad():
        module(image)
    return MultiplyAdds(*found)


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: object) -> Iterator[None]:
    """Run the body with a forward hook on every part, with attention computed as its parts and not fused."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    handles = [part.register_forward_hook(hook) for part in module.modules()]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        torch.backends.mha.set_fastpath_enabled(fused)
