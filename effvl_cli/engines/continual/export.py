"""`effvl continual export`: the network of one task for use without effvl, each file compared with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from effvl_cli.config.continual_eval import ExportConfig
from effvl_cli.core.checkpoint import CHECKPOINT, digest
from effvl_cli.core.errors import CheckError, ModelError
from effvl_cli.core.files import write_bytes, write_json
from effvl_cli.core.measure import count_macs, count_parameters, unfused_attention
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.common.verified_files import ONNX, write_code, write_program, write_verified
from effvl_cli.engines.continual import sparse_file
from effvl_cli.engines.continual.materialised import PROBE_SIZE, Materialised, materialised, probe_images
from effvl_cli.engines.continual.open_state import open_state
from effvl_cli.engines.continual.state import State, TaskRecord
from effvl_cli.models import network as networks
from effvl_cli.models.edits import apply_edits
from effvl_cli.models.onnx import export_onnx, load_onnx, need_exporter
from effvl_cli.models.program import PROGRAM, save_program, trace
from effvl_cli.models.rebuild import REBUILD
from effvl_cli.techniques.continual.dead_channels import without_dead_channels

CARD, SPARSE = "card.json", "sparse.safetensors"
COMPACT, COMPACT_PROGRAM = "compact.safetensors", "compact.pt2"
NEAR = 1e-5  # of the largest logit, between the compact network and the whole one
CPU = torch.device("cpu")
HOW = {
    "dense": f"{REBUILD} builds the network and loads {CHECKPOINT}; or torch.export.load('{PROGRAM}').module()",
    "sparse": (
        "bitmap/NAME: a bit for each element in C order, the first in the lowest bit of the first byte; values/NAME: "
        "those whose bit is set; shape/NAME; dense/NAME: tensors as they are"
    ),
    "compact": f"torch.export.load('{COMPACT_PROGRAM}').module(); {COMPACT} holds its weights",
    "onnx": f"{ONNX}: images to logits",
}


def refuse_first(config: ExportConfig) -> None:
    """A missing package, before anything is loaded or traced."""
    if "onnx" in config.format:
        need_exporter()


def run(config: ExportConfig, run: Run) -> None:
    """Write the formats one by one; a failed comparison ends the run.

    Raises:
        CheckError: a file gives other logits than the task's network.
    """
    state = open_state(config)
    record = state.task(str(config.task))
    plain = materialised(state, record.id)
    network, report = plain.network, run.report
    report.model(network.name, network.source, network.module)
    writers: dict[str, Callable[[Run, Materialised, TaskRecord], dict[str, Any]]] = {
        **{"dense": _dense, "sparse": _sparse, "compact": _compact, "onnx": _onnx},
    }
    rows = [writers[name](run, plain, record) for name in config.format]
    run.write(CARD, write_json, card_of(state, record, plain, config.format))
    report.technique["export"] = rows
    report.metric("max_abs_diff", max(row["difference"] for row in rows), unit="logit", higher_is_better=False)


def card_of(state: State, record: TaskRecord, plain: Materialised, formats: tuple[str, ...]) -> dict[str, Any]:
    """What whoever uses the files has to know."""
    geometry = state.geometries[record.geometry]
    return {
        "task": record.name,
        "model": geometry.model,
        "width": geometry.width,
        "classes": list(record.classes),
        "preprocess": plain.network.preprocess.to_dict(),
        "input": "(B, 3, H, W) float32 in 0..1, less the mean and over the deviation of red, green and blue",
        "tensor_digest": plain.digest,
        "logits": {
            "digest": record.probe_digest,
            "of": f"numpy.random.Generator(PCG64(0)).standard_normal(({PROBE_SIZE}, 3, H, W)), float32, at once",
            "environment": dict(record.environment),
        },
        "files": {name: HOW[name] for name in formats},
    }


# --- the formats ------------------------------------------------------------------------------------------------------


def _dense(run: Run, plain: Materialised, record: TaskRecord) -> dict[str, Any]:
    """`checkpoint.safetensors`, `rebuild.py` and `model.pt2`."""
    network = plain.network
    run.save_model(network.module.state_dict(), {**network.describe(), "classes": list(record.classes)})
    found = networks.load(None, str(run.folder), default="", kind="classifier")
    row = _row(run, plain, "dense", CHECKPOINT, Materialised(_evaluated(found), CPU).probe, tolerance=0)
    write_code(run, network)
    write_program(run, plain.traced)
    return row


def _evaluated(network: networks.Network) -> networks.Network:
    network.module.eval()
    return network


def _sparse(run: Run, plain: Materialised, record: TaskRecord) -> dict[str, Any]:
    """`sparse.safetensors`."""

    def write(path: Path) -> dict[str, Tensor]:
        data = safetensors.torch.save(sparse_file.packed(plain.module.state_dict()))
        found = sparse_file.unpacked(safetensors.torch.load(data))
        if digest(found) != plain.digest:
            raise CheckError(f"{path.name} does not give back the tensors of the network", "Nothing is written")
        write_bytes(path, data)
        return found

    found = run.write(SPARSE, write)
    assert found is not None  # one process
    network = networks.build(plain.network.name, seed=0, num_classes=len(record.classes))
    apply_edits(network.module, plain.network.edits)
    network.module.load_state_dict(found)
    network.preprocess = plain.network.preprocess
    return _row(run, plain, "sparse", SPARSE, Materialised(_evaluated(network), CPU).probe, tolerance=0)


def _compact(run: Run, plain: Materialised, record: TaskRecord) -> dict[str, Any]:
    """`compact.safetensors` and `compact.pt2`."""
    try:
        smaller, removed = without_dead_channels(plain.module)
    except ValueError as error:
        raise ModelError(
            f"{plain.network.name} cannot be made compact: torch.fx cannot trace it ({error})", "Leave compact out"
        ) from error
    images = probe_images(plain.network.preprocess, CPU)
    with torch.no_grad(), unfused_attention():
        logits = smaller(images)
    _check("compact", COMPACT, plain.probe, logits, NEAR)
    run.write(COMPACT, lambda path: write_bytes(path, safetensors.torch.save(_contiguous(smaller.state_dict()))))
    size = plain.network.preprocess.size
    write_verified(run, COMPACT_PROGRAM, lambda path: save_program(trace(smaller, size), path))
    run.report.technique["compact"] = {
        "removed_channels": removed,
        "params": count_parameters(smaller),
        "params_before": count_parameters(plain.module),
        "macs": count_macs(smaller, images[:1]),
        "macs_before": count_macs(plain.module, images[:1]),
    }
    return _row(run, plain, "compact", COMPACT, logits, tolerance=NEAR)


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in state.items()}


def _onnx(run: Run, plain: Materialised, record: TaskRecord) -> dict[str, Any]:
    """`model.onnx`."""
    images = probe_images(plain.network.preprocess, CPU)
    write_verified(run, ONNX, lambda path: export_onnx(plain.traced(), path, images))
    return _row(run, plain, "onnx", ONNX, load_onnx(run.path(ONNX))(images), tolerance=None)


def _row(
    run: Run, plain: Materialised, name: str, file: str, logits: Tensor, *, tolerance: float | None
) -> dict[str, Any]:
    """What the report says of a file, once its logits are those of the network."""
    difference = _check(name, file, plain.probe, logits, tolerance)
    return {"format": name, "file": file, "bytes": run.path(file).stat().st_size, "difference": difference}


def _check(name: str, file: str, expected: Tensor, found: Tensor, tolerance: float | None) -> float:
    """The largest difference of logits.

    Args:
        name: of the format.
        file: its main file.
        expected: logits of the network on the probe.
        found: those of the file.
        tolerance: of the largest logit; 0: not a bit; None: judged elsewhere.

    Raises:
        CheckError: it is larger.
    """
    difference = float((expected - found).abs().max())
    exact = tolerance == 0 and not torch.equal(expected, found)
    if exact or (tolerance and not difference <= tolerance * float(expected.abs().max())):
        raise CheckError(f"{file} ({name}) gives other logits than the task's network: {difference:.1e}", "Repeat it")
    return difference


def table(report: Report) -> Table:
    """A row for each format, and its companions."""
    rows = tuple(
        (row["format"], row["file"], f"{row['bytes'] / 1e3:,.1f}", f"{row['difference']:.1e}")
        for row in report.technique["export"]
    )
    more = [
        file.path for file in report.artifacts if file.path not in {row["file"] for row in report.technique["export"]}
    ]
    notes = [f"also written: {', '.join(more)}", *report.warnings]
    if small := report.technique.get("compact"):
        notes.insert(0, _saved(small))
    return Table(report.command, ("format", "file", "kB", "largest difference of logits"), rows, tuple(notes))


def _saved(small: dict[str, int]) -> str:
    parameters = f"{small['params']:,} of {small['params_before']:,} parameters"
    multiplied = f"{small['macs']:,} of {small['macs_before']:,} multiply-adds"
    return f"compact: {small['removed_channels']} channels less, {parameters}, {multiplied}"
