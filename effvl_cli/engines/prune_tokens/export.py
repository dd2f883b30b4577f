"""`effvl prune-tokens export`: writes RUN's pruned tower to files, each read back and compared."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from effvl_cli.config.prune_tokens import ExportConfig
from effvl_cli.core.checkpoint import save_model
from effvl_cli.core.errors import ModelError
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.common.verified_files import ONNX, write_verified
from effvl_cli.engines.prune_tokens import artefact
from effvl_cli.engines.prune_tokens.context import Context, build_context, tower_summary
from effvl_cli.engines.prune_tokens.preview import preview_export
from effvl_cli.engines.prune_tokens.selectors import prune
from effvl_cli.models.network import CHECKPOINT
from effvl_cli.models.onnx import export_onnx, need_exporter
from effvl_cli.models.program import PROGRAM, Traced, noise, on_cpu, save_program, trace
from effvl_cli.models.token_parity import Embedder, Parity
from effvl_cli.models.token_pruned_clip import Artefact, load_pruned

NUM_IMAGES = 8
preview = preview_export


def refuse_first(config: ExportConfig) -> None:
    """A missing package, before anything is loaded or traced."""
    if "onnx" in config.format:
        need_exporter()


def run(config: ExportConfig, run: Run) -> None:
    """Write the formats one by one; a failed comparison ends the run and leaves the existing file."""
    context = build_context(config, run)
    run.report.technique["tower"] = tower_summary(context)
    saved = artefact.load(context, Path(str(config.run)))
    if saved.predictor is None:
        raise ModelError(f"{config.run} holds no predictor", f"Train one: effvl prune-tokens predict {config.run}")
    context, saved = artefact.as_saved(context, saved), _at_keep(context, saved)
    traced = cache(lambda: trace(_embedder(context, saved), _size(context)))
    writers: dict[str, tuple[str, Callable[[Path, Parity], str]]] = {
        "state": (CHECKPOINT, lambda path, parity: _state(context, saved, path, parity)),
        "pt2": (PROGRAM, lambda path, parity: save_program(traced(), path, parity)),
        "onnx": (ONNX, lambda path, parity: _onnx(traced(), path, parity)),
    }
    for name in config.format:
        file, write = writers[name]
        parity = Parity()
        reason = write_verified(run, file, write, parity)
        if reason is not None:
            _record(run, name, run.path(file), parity, any_batch=not reason)


def _at_keep(context: Context[ExportConfig], saved: Artefact) -> Artefact:
    """Without the prompts where they were tuned for another keep rate."""
    if saved.prompts is None or saved.tuned_for([context.config.keep]):
        return saved
    context.run.warn(
        f"prompts left out: they were tuned at keep {saved.manifest['keep']:g}, not {context.config.keep:g}"
    )
    return Artefact(saved.predictor, None, saved.manifest)


def _embedder(context: Context[ExportConfig], saved: Artefact) -> Embedder:
    assert saved.predictor is not None
    return Embedder(prune(context, saved.predictor, context.config.keep, saved.prompts))


def _size(context: Context[ExportConfig]) -> tuple[int, int]:
    return context.network.preprocess.size


def _onnx(traced: Traced, path: Path, parity: Parity) -> str:
    images = noise(NUM_IMAGES, traced.image_size)
    return export_onnx(traced, path, images, outputs=Embedder.OUTPUTS, compare=parity)


def _state(context: Context[ExportConfig], saved: Artefact, path: Path, parity: Parity) -> str:
    """Predictor, prompts and what they belong to; the model's own weights stay where they are."""

    state, manifest = artefact.contents(context, saved, saved.any_keep, saved.manifest["ranking"])
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / CHECKPOINT, state, manifest)
        visual: Any = load_pruned(folder, download=context.config.download).visual
        ours: Any = on_cpu(_embedder(context, saved))
        parity(ours, Embedder(visual), noise(NUM_IMAGES, _size(context)), path.name)
    context.run.save_model(state, manifest)
    return ""


def _record(run: Run, name: str, path: Path, parity: Parity, *, any_batch: bool) -> None:
    run.report.metric(f"cosine_{name}", parity.cosine, unit="cosine", n=parity.images)
    row = {
        "format": name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "any_batch": any_batch,
        "images": parity.images,
        "cosine": parity.cosine,
        "ties": parity.ties,
    }
    run.report.technique.setdefault("export", []).append(row)


def table(report: Report) -> Table:
    """A row for each file."""
    rows = tuple(
        (
            row["format"],
            row["file"],
            f"{row['bytes'] / 1e6:.1f}",
            "any" if row["any_batch"] else "1",
            f"{row['cosine']:.6f}",
            row["images"] - row["ties"],
            row["images"],
        )
        for row in report.technique["export"]
    )
    columns = ("format", "file", "MB", "batch", "lowest cosine", "same patches asked of", "images")
    return Table(report.command, columns, rows, ("compared with the pruned tower after reading back",))
