"""A network as an ONNX file, and onnxruntime on the CPU; needs the extra `onnx`.

B images, H and W their sides, C classes. The graph maps `images` (B, 3, H, W), normalised, to `logits` (B, C).
"""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.core.errors import CheckError, MissingPackageError
from effvl_cli.core.files import write_bytes
from effvl_cli.core.measure import unfused_attention
from effvl_cli.models.program import INPUT, OUTPUT, noise, on_cpu, trace

OPSET = 18
TOLERANCE = 1e-4  # of a logit, relative where it is larger than 1
NUM_IMAGES = 64


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"{' and '.join(missing)} is not installed", "pip install 'effvl[onnx]'")


def export_onnx(module: nn.Module, image_size: tuple[int, int], path: Path, images: Tensor | None = None) -> str:
    """Write the network as ONNX, once onnxruntime gives the network's logits.

    Args:
        module: a classifier; it stays as it is.
        image_size: H and W.
        path: of the file; replaced only by a graph that passes.
        images: (N, 3, H, W) normalised, those of the comparison; 64 of noise when there are none.

    Returns:
        Why the graph takes one image at a time; empty when it takes any number.

    Raises:
        MissingPackageError: the extra `onnx` is not installed.
        ModelError: torch.export cannot trace the network.
        CheckError: the logits differ.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    module = on_cpu(module)
    program, reason = trace(module, image_size)
    data = _convert(program)
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "model.onnx"
        candidate.write_bytes(data)
        parity(candidate, module, noise(NUM_IMAGES, image_size) if images is None else images)
    write_bytes(path, data)
    return reason


def _convert(program: torch.export.ExportedProgram) -> bytes:
    converted = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    assert converted is not None
    return converted.model_proto.SerializeToString()


def session(path: Path, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU, one operator after the other.

    Args:
        path: of the ONNX file.
        threads: of one operator; None: as many as torch has.

    Raises:
        MissingPackageError: onnxruntime is not installed.
    """
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def parity(path: Path, module: nn.Module, images: Tensor) -> float:
    """Compare an ONNX file with the network.

    Args:
        path: of the ONNX file.
        module: the network on the CPU in evaluation mode.
        images: (N, 3, H, W), normalised.

    Returns:
        The largest |difference| / max(1, |logit|).

    Raises:
        CheckError: it is above 1e-4, or the class of an image differs.
    """
    runtime = session(path)
    batch = runtime.get_inputs()[0].shape[0]  # a name where it is free
    parts = images.split(batch) if isinstance(batch, int) else [images]
    with torch.no_grad(), unfused_attention():
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


def _run(runtime: Any, images: Tensor) -> Tensor:
    return torch.from_numpy(runtime.run([OUTPUT], {INPUT: images.numpy()})[0])
