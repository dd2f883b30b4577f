"""A network as a `torch.export` program, which loads without the code of any model class.

B images, H and W their sides, C classes. Inputs are normalised images (B, 3, H, W) in float32; a classifier's output is
(B, C) logits.
"""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from effvl_cli.core.errors import CheckError, ModelError
from effvl_cli.core.files import write_bytes
from effvl_cli.core.measure import unfused_attention
from effvl_cli.core.modes import as_found

PROGRAM = "model.pt2"
INPUT, OUTPUT = "images", "logits"
_BATCHES = (2, 1, 5)  # 2 is traced; 1 is the size that tracing tends to treat as special

Compare = Callable[[Any, Callable[[Tensor], Any], Tensor, str], None]
"""(network, what was read back, images, name of the file); raises CheckError where the two differ too much."""


def on_cpu(module: nn.Module) -> nn.Module:
    """A copy of the network on the CPU in evaluation mode."""
    return copy.deepcopy(module).cpu().eval()


def noise(batch: int, image_size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) of the standard normal distribution, the same each time."""
    return torch.randn(batch, 3, *image_size, generator=torch.Generator().manual_seed(batch))


@dataclass(frozen=True)
class Traced:
    """A network and its program; tracing takes seconds, and writers of several formats share one.

    Attributes:
        module: a copy on the CPU in evaluation mode.
        image_size: H and W.
        program: for any batch size, or for one image where the network allows no other size.
        reason: why its batch size is 1; empty when it is free.
    """

    module: nn.Module
    image_size: tuple[int, int]
    program: ExportedProgram
    reason: str = ""


def trace(module: nn.Module, image_size: tuple[int, int]) -> Traced:
    """Trace a network in evaluation mode.

    Args:
        module: takes normalised images; not changed.
        image_size: H and W.

    Raises:
        ModelError: torch.export cannot trace the network at all.
    """
    module = on_cpu(module)
    try:
        program = _export(module, noise(_BATCHES[0], image_size), ({0: Dim("batch", min=1)},))
        return Traced(module, image_size, program)
    except Exception as error:  # torch.export raises a dozen kinds
        reason = _first_line(error)
    try:
        return Traced(module, image_size, _export(module, noise(1, image_size), None), reason)
    except Exception as error:
        raise ModelError(
            f"torch.export cannot trace {type(module).__name__}: {_first_line(error)}", "Use its checkpoint instead"
        ) from error


def _export(module: nn.Module, images: Tensor, dynamic: Any) -> ExportedProgram:
    with as_found(module, training=False), torch.no_grad(), unfused_attention():
        return torch.export.export(module, (images,), dynamic_shapes=dynamic)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def same_bits(module: nn.Module, program: Callable[[Tensor], Any], images: Tensor, name: str) -> None:
    """A `Compare` for logits in evaluation mode.

    torch's fused attention, which rounds otherwise and cannot be exported, is off in both.

    Raises:
        CheckError: a bit differs.
    """
    with as_found(module, training=False), torch.no_grad(), unfused_attention():
        ours, theirs = module(images), program(images)
    if not torch.equal(ours, theirs):
        raise CheckError(
            f"the exported program's logits differ from the network's by {float((ours - theirs).abs().max()):.1e}",
            f"{name} is not written",
        )


def save_program(traced: Traced, path: Path, compare: Compare = same_bits) -> str:
    """Write the program of a network, after checking that the file computes what the network computes.

    Args:
        traced: a classifier, or a network that `compare` is made for.
        path: of the file, usually `model.pt2`; replaced only by a program that passes.
        compare: called for some batches, eight images of noise in all.

    Returns:
        Why the program takes one image at a time; empty when it takes any number.

    Raises:
        CheckError: the program computes something else.
    """
    buffer = io.BytesIO()
    torch.export.save(traced.program, buffer)
    buffer.seek(0)
    function = torch.export.load(buffer).module()
    for batch in (1,) if traced.reason else _BATCHES:
        compare(traced.module, function, noise(batch, traced.image_size), path.name)
    write_bytes(path, buffer.getvalue())
    return traced.reason


def load_program(path: Path) -> Callable[[Tensor], Any]:
    """The function that `save_program` wrote: images (B, 3, H, W) to the network's output.

    torch unpickles parts of such a file: read only those whose origin you trust.

    Raises:
        ModelError: missing or damaged.
    """
    if not path.is_file():
        raise ModelError(f"no program at {path}", "Give a model.pt2 that effvl has written")
    try:
        return torch.export.load(path).module()
    except Exception as error:  # a damaged archive raises half a dozen kinds
        raise ModelError(f"{path} is not a complete program: {_first_line(error)}", "Write it again") from error
