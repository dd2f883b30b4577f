"""A detector as an ONNX file that says of itself all that whoever runs it has to know; needs the extra `onnx`."""

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effvl_cli.core.errors import ModelError
from effvl_cli.models.detector import CascadeRCNN
from effvl_cli.models.detector_graph import FixedSize
from effvl_cli.models.normalise import STATISTICS
from effvl_cli.models.onnx import need

IMAGE = "image"
OUTPUTS: Mapping[str, Sequence[str]] = {
    "full": ("boxes", "scores", "labels", "conditions"),
    "raw": ("boxes", "scores", "conditions"),
}
PROPS = "effvl_detector"  # key of the metadata
ANCHORS = "anchors"  # tensor that is no weight


def properties(module: CascadeRCNN, classes: Sequence[str], size: tuple[int, int], graph: str) -> dict[str, Any]:
    """What a file says of itself."""
    spec, heads = module.spec, module.roi_heads
    mean, std = STATISTICS["imagenet"]
    return {
        "graph": graph,
        "classes": list(classes),
        "parents": heads.parents.tolist(),
        "conditions": list(spec.conditions),
        "merge": "max" if heads.merge == "gated" else heads.merge,
        "mean": list(mean),
        "std": list(std),
        "size": list(size),
        "min_size": spec.min_size[-1],
        "max_size": spec.max_size,
        "score_thresh": heads.score_thresh,
        "nms_thresh": heads.nms_thresh,
        "detections": heads.detections_per_img,
    }


def write_onnx(graph: FixedSize, path: Path, props: Mapping[str, Any], opset: int) -> None:
    """Write a detector.

    Args:
        graph: the detector at its size.
        path: of the file.
        props: what the file says of itself.
        opset: version of ONNX's operators.

    Raises:
        MissingPackageError: the extra `onnx` is not installed.
        ModelError: torch cannot write it.
    """
    need("onnx", "onnxruntime")
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "traced.onnx"
        _trace(graph, traced, opset)
        proto = onnx.load(str(traced))
    onnx.helper.set_model_props(proto, {PROPS: json.dumps(props)})
    path.write_bytes(proto.SerializeToString())


def _trace(graph: FixedSize, path: Path, opset: int) -> None:
    """Write the graph by torch's exporter of traces; that of torch.export cannot follow NMS (pytorch/vision#9462)."""
    names = OUTPUTS["full" if graph.full else "raw"]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # a page about constants that are meant
            torch.onnx.export(
                graph,
                (torch.rand(1, 3, *graph.size, generator=torch.Generator().manual_seed(0)),),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=[IMAGE],
                output_names=list(names),
            )
    except Exception as error:  # the exporter raises half a dozen kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"torch {torch.__version__} cannot write the detector as ONNX with its exporter of traces: {reason}",
            "Give another --opset, or use a torch that has torch.onnx.export(dynamo=False)",
        ) from error


def halve(path: Path) -> None:
    """Keep the weights of a file in half precision, each followed by a cast, which onnxruntime does once.

    Only the weights are rounded: what is computed stays in float32, boxes above all.
    """
    import onnx

    proto = onnx.load(str(path))
    casts = []
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.ndim < 2 or tensor.name == ANCHORS:
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    path.write_bytes(proto.SerializeToString())
