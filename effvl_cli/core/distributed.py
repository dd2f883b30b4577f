"""Processes of one run: discovery, joining, and the few collectives that the engines need."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from effvl_cli.core.errors import DistributedError


@dataclass(frozen=True)
class World:
    """The place of this process among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    launcher: str = "single"


_solo = False
_patient: Any = None  # a group whose members may wait for one another for days


@contextmanager
def solo() -> Iterator[None]:
    """Let this process work alone for a while: it counts as the only one, and takes part in no collective.

    Files written meanwhile must have names that no other process writes.
    """
    global _solo
    before, _solo = _solo, True
    try:
        yield
    finally:
        _solo = before


def _joined() -> bool:
    return dist.is_initialized() and not _solo


def world() -> World:
    """Read torchrun's variables, else those of srun with more than one task, else a single process."""
    env = os.environ
    if _solo:
        return World()
    if "RANK" in env and "WORLD_SIZE" in env:
        return World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)), "torchrun")
    if int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env:
        return World(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", 0)), "srun")
    return World()


def is_main() -> bool:
    """True on the one process that writes."""
    return world().rank == 0


def start(device: torch.device) -> None:
    """Join the process group; nothing to do for a single process.

    Raises:
        DistributedError: the other processes did not join.
    """
    global _patient
    process = world()
    if process.size == 1 or dist.is_initialized():
        return
    if process.launcher == "srun":
        _slurm_rendezvous()
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=process.rank,
            world_size=process.size,
            timeout=timedelta(minutes=30),
        )
        _patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DistributedError(
            f"process {process.rank} of {process.size} cannot join the others: {reason}",
            "Check MASTER_ADDR and MASTER_PORT, and that every process was started",
        ) from error


def _slurm_rendezvous() -> None:
    """MASTER_ADDR and MASTER_PORT from the job, unless the user set them."""
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_JOB_NODELIST", "localhost")
        command = ["scontrol", "show", "hostnames", nodes]
        hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        os.environ["MASTER_ADDR"] = hosts[0]
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000))


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _collective_device() -> torch.device:
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def barrier() -> None:
    """Wait for every process."""
    if _joined():
        all_reduce_max(0)  # a reduction: works alike on gloo and nccl


def all_reduce_max(value: int) -> int:
    """The largest `value` over the processes."""
    if not _joined():
        return value
    flag = torch.tensor([value], device=_collective_device())
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)


def barrier_max(value: int) -> int:
    """The largest `value` over the processes, with patience for those that still work on their own part."""
    if not _joined():
        return value
    flag = torch.tensor([value])
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=_patient)
    return int(flag)


def broadcast_json(value: Any, source: int = 0) -> Any:
    """One rank's value on every rank; plain JSON, so that nothing is unpickled."""
    if not _joined():
        return value
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=_collective_device())
    length = torch.tensor([len(data)], device=data.device)
    dist.broadcast(length, source)
    if world().rank != source:
        data = torch.empty(int(length), dtype=torch.uint8, device=length.device)
    dist.broadcast(data, source)
    return json.loads(bytes(data.cpu().tolist()).decode())


def shard(total: int) -> range:
    """This process's contiguous share of `total` samples; the shares differ by at most one."""
    process = world()
    return range(process.rank * total // process.size, (process.rank + 1) * total // process.size)


def own_rows(rows: "torch.Tensor") -> "torch.Tensor":
    """This process's equal part of rows (n, ...) that were drawn for all processes."""
    return rows.chunk(world().size)[world().rank]


def gather_rows(local: torch.Tensor, total: int) -> torch.Tensor:
    """Join the rows of every process's `shard(total)`, in order, on every process.

    Args:
        local: (len(shard(total)), ...) this process's rows.
        total: number of rows over all processes.
    """
    if not _joined():
        return local
    process = world()
    sizes = [(r + 1) * total // process.size - r * total // process.size for r in range(process.size)]
    device = _collective_device()
    padded = torch.zeros(max(sizes), *local.shape[1:], dtype=local.dtype, device=device)
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(local.device)


class _Gather(torch.autograd.Function):
    """all_gather whose backward adds up every process's gradient of this process's rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.count
        return gradient[first : first + ctx.count]


def gather_with_gradient(rows: torch.Tensor) -> torch.Tensor:
    """Join the rows of all processes (as many on each), in rank order, keeping the gradient.

    When every process computes the same loss of the joined rows, DDP's mean of parameter gradients then equals the
    gradient of that loss on one process.

    Args:
        rows: (B, D) on this process.

    Returns:
        (world size * B, D).
    """
    if not _joined():
        return rows
    found: torch.Tensor = _Gather.apply(rows)
    return found


def share_buffers(module: torch.nn.Module) -> None:
    """Copy the first process's buffers, e.g. the running statistics of batch norm, to every process."""
    for buffer in module.buffers():
        broadcast(buffer)


def broadcast(tensor: torch.Tensor) -> None:
    """Copy the first process's values of a tensor to every process, in place."""
    if _joined():
        held = tensor.detach().to(_collective_device())
        dist.broadcast(held, 0)
        tensor.copy_(held)


def all_reduce_sum(rows: torch.Tensor) -> torch.Tensor:
    """Elementwise sum over the processes, on every process; exact where all but one hold zero.

    Args:
        rows: of one shape on every process.
    """
    if not _joined():
        return rows
    total = rows.detach().to(_collective_device(), copy=True)
    dist.all_reduce(total)
    return total.to(rows.device)
