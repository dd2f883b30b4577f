"""Writes networks to files for use without effvl, each verified against the network before it is kept."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from effvl_cli.core.run import Run
from effvl_cli.models.constructors import NoConstructorError
from effvl_cli.models.network import Network
from effvl_cli.models.onnx import export_onnx
from effvl_cli.models.program import PROGRAM, Traced, save_program, trace
from effvl_cli.models.rebuild import REBUILD, write_rebuild

ONNX = "model.onnx"


def write_verified(run: Run, file: str, write: Callable[..., str], *args: Any) -> str | None:
    """Write a file of the run; warn if it takes one image at a time.

    Args:
        run: owner of the file.
        file: its name.
        write: from the path, and `args`, to why it takes one image at a time; empty when it takes any number.
        args: further arguments of `write`.

    Returns:
        What `write` returns; None on processes that do not write.
    """
    reason: str | None = run.write(file, write, *args)
    if reason:
        run.warn(f"{file} takes one image at a time: {reason}")
    return reason


def traced_once(network: Network, module: nn.Module) -> Callable[[], Traced]:
    """A classifier's program for `write_program` and `write_onnx`: traced when one of them first asks."""
    return cache(lambda: trace(module, network.preprocess.size))


def write_program(run: Run, traced: Callable[[], Traced]) -> None:
    """`model.pt2` of a classifier, which is traced where the file is written.

    Raises:
        CheckError: it gives different logits.
    """
    write_verified(run, PROGRAM, lambda path: save_program(traced(), path))


def write_onnx(run: Run, traced: Callable[[], Traced]) -> None:
    """`model.onnx` of a classifier, which is traced where the file is written.

    Raises:
        CheckError: it gives different logits.
    """
    write_verified(run, ONNX, lambda path: export_onnx(traced(), path))


def write_code(run: Run, network: Network) -> None:
    """`rebuild.py`, where public code builds the network.

    Raises:
        CheckError: it builds another network.
    """

    def write(path: Path) -> None:
        write_rebuild(network, path.parent)

    try:
        run.write(REBUILD, write)
    except NoConstructorError as error:
        run.warn(f"no {REBUILD}: {error.message}")
