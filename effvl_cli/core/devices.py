"""The device that a command computes on."""

import torch

from effvl_cli.core import distributed
from effvl_cli.core.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu()
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device is {name!r}", "Give cpu, cuda, cuda:N, mps or auto") from error
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing or device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"--device is {name!r}, which this machine does not have", "Give --device cpu or auto")
    if device.type == "cuda" and device.index is None:
        return _own_gpu()
    return device


def slow_precision(device: torch.device, precision: str) -> str:
    """Why a precision costs time instead of saving it on this device, or "" where it does not.

    A processor without instructions for a type converts every number: convolutions then take tens of times as long.
    """
    if device.type != "cpu" or precision == "fp32":
        return ""
    known = getattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: True)
    return "" if known() else f"--precision {precision} is slower than fp32 here: this processor has no {precision}"


def _own_gpu() -> torch.device:
    """This process's GPU: the only one that it sees (`srun --gpus-per-task=1`), else the one of its local rank."""
    return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else distributed.world().local_rank)
