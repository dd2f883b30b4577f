"""A network as an ONNX file, and onnxruntime on the CPU; needs the extra `onnx`.

B images, H and W their sides, C classes. The graph maps `images` (B, 3, H, W), normalised, to `logits` (B, C), unless
it is told other outputs.
"""

import importlib.util
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.core.errors import CheckError, MissingPackageError, ModelError
from effvl_cli.core.files import write_bytes
from effvl_cli.core.measure import unfused_attention
from effvl_cli.core.modes import as_found
from effvl_cli.models.program import INPUT, OUTPUT, Compare, Traced, noise

OPSET = 18
TOLERANCE = 1e-4  # of a logit, relative where it is larger than 1
NUM_IMAGES = 64


def need(*packages: str) -> None:
    """Refuse to go on without packages of the extra `onnx`.

    Raises:
        MissingPackageError: names those that are not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"{' and '.join(missing)} is not installed", "pip install 'effvl[onnx]'")


def need_exporter() -> None:
    """Refuse to go on without what `export_onnx` needs.

    Raises:
        MissingPackageError: names what is not installed.
    """
    need("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    traced: Traced,
    path: Path,
    images: Tensor | None = None,
    *,
    outputs: Sequence[str] = (OUTPUT,),
    compare: Compare | None = None,
) -> str:
    """Write the network as ONNX, once onnxruntime gives what the network gives.

    Args:
        traced: a classifier, or a network that `compare` is made for.
        path: of the file; replaced only by a graph that passes.
        images: (N, 3, H, W) normalised, those of the comparison; 64 of noise when there are none.
        outputs: names of what the network gives.
        compare: its judgement; without one that of `parity`.

    Returns:
        Why the graph takes one image at a time; empty when it takes any number.

    Raises:
        MissingPackageError: the extra `onnx` is not installed.
        ModelError: torch.onnx cannot write the network.
        CheckError: the outputs differ.
    """
    need_exporter()
    data = _convert(traced.program, outputs)
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "model.onnx"
        candidate.write_bytes(data)
        images = noise(NUM_IMAGES, traced.image_size) if images is None else images
        if compare is None:
            parity(candidate, traced.module, images)
        else:
            compare(traced.module, load_onnx(candidate), images, path.name)
    write_bytes(path, data)
    return traced.reason


def _convert(program: torch.export.ExportedProgram, outputs: Sequence[str]) -> bytes:
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
            verbose=False,
        )
    except Exception as error:  # the exporter raises half a dozen kinds
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise ModelError(f"torch.onnx cannot write the network: {reason}", "Use its torch.export program") from error
    assert converted is not None
    proto = converted.model_proto
    _name_batch(proto.graph)
    found: bytes = proto.SerializeToString()
    return found


def _name_batch(graph: Any) -> None:
    """Call the free axis `batch`, as the program does, and not by the symbol that torch drew for it, `s34` say."""
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if symbol:
        own = re.compile(rf"\b{re.escape(symbol)}\b")
        for value in (*graph.input, *graph.output, *graph.value_info):
            for axis in value.type.tensor_type.shape.dim:
                if axis.dim_param:
                    axis.dim_param = own.sub("batch", axis.dim_param)


def _stable_sort(rows: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """`aten.sort.stable`, which the exporter lacks: of equal elements TopK puts the one with the lower index first."""
    from onnxscript import opset18

    ops: Any = opset18
    count = ops.Gather(ops.Shape(rows), ops.Constant(value_ints=[dim]))
    return ops.TopK(rows, count, axis=dim, largest=int(descending), sorted=1)


def session(path: Path, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, one operator after the other.

    Args:
        path: of the ONNX file.
        threads: of one operator; None: as many as torch has.

    Raises:
        MissingPackageError: onnxruntime is not installed.
    """
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_onnx(path: Path) -> Callable[[Tensor], Any]:
    """The file as a function on the CPU: images (N, 3, H, W) to its output, or to a tuple of them."""
    runtime = session(path)

    def function(images: Tensor) -> Any:
        parts = [_run(runtime, part) for part in _parts(runtime, images)]
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(rows) for rows in zip(*parts, strict=True))
        return torch.cat(parts)

    return function


def _parts(runtime: Any, images: Tensor) -> Sequence[Tensor]:
    """As many images at a time as the graph takes."""
    batch = runtime.get_inputs()[0].shape[0]  # a name where it is free
    return images.split(batch) if isinstance(batch, int) else [images]


def parity(path: Path, module: nn.Module, images: Tensor) -> float:
    """Compare an ONNX file with the network.

    Args:
        path: of the ONNX file.
        module: the network on the CPU; run in evaluation mode, and not changed.
        images: (N, 3, H, W), normalised.

    Returns:
        The largest |difference| / max(1, |logit|).

    Raises:
        CheckError: it is above 1e-4, or the class of an image differs.
    """
    runtime = session(path)
    parts = _parts(runtime, images)
    with as_found(module, training=False), torch.no_grad(), unfused_attention():
        expected = torch.cat([module(part) for part in parts])
    found = torch.cat([_run(runtime, part) for part in parts])
    difference = float(((found - expected).abs() / expected.abs().clamp(min=1)).max())
    moved = int((found.argmax(1) != expected.argmax(1)).sum())
    if not difference <= TOLERANCE or moved:
        raise CheckError(
            f"the logits of {path.name} in onnxruntime differ from the network's by {difference:.1e} "
            f"(allowed: {TOLERANCE:.0e}), the class in {moved} of {len(images)} images",
            "Nothing is replaced",
        )
    return difference


def _run(runtime: Any, images: Tensor) -> Any:
    found = tuple(torch.from_numpy(array) for array in runtime.run(None, {INPUT: images.numpy()}))
    return found if len(found) > 1 else found[0]
