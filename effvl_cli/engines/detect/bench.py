"""`effvl detect bench`: how fast RUN's detector is on this machine, and where the time goes."""

import copy
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.config.detect_bench import BenchConfig
from effvl_cli.core import bench
from effvl_cli.core.find_run import find_run
from effvl_cli.core.loop import autocast
from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.core.plots import stacked_bars
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table
from effvl_cli.engines.detect.detectors import classes_of, open_detector
from effvl_cli.engines.detect.fixed_images import road_images, size_of
from effvl_cli.engines.detect.onnx_runner import OnnxDetector
from effvl_cli.models.detector import CascadeRCNN
from effvl_cli.models.detector_graph import FixedSize
from effvl_cli.models.detector_onnx import properties, write_onnx
from effvl_cli.models.network import Network

PARTS = ("resize", "backbone and pyramid", "proposals", "stages", "choice")
CPU = torch.device("cpu")


def run(config: BenchConfig, run: Run) -> None:
    """Time the detector beside its first stage, its parts, and onnxruntime."""
    network = open_detector(find_run("detect", config.run), run)
    module: CascadeRCNN = network.module.eval()
    size = size_of(config.size, module.spec)
    images = [image.to(run.device) for image in road_images(max(config.batch_size), size, config.seed)]
    run.report.model(network.name, network.source, module)
    cost = _cost(module, images[0])
    first = first_stage(module)
    share = count_macs(first, images[:1]) / cost["macs"]
    arms = [
        bench.Arm("first stage alone", _passes(first, images)),
        bench.Arm("all stages", _passes(module, images), 1 / share),
    ][module.spec.num_stages == 1 :]
    rows = bench.compare(arms, config.batch_size, run, precision=config.precision, seconds=config.seconds)
    parts = [_parts(config, run, module, images[:batch]) for batch in config.batch_size]
    if config.onnx:
        rows += _in_onnxruntime(config, run, network, size)
    bench.record(run, rows)
    run.report.technique.update(cost=cost, parts=parts)
    run.report.efficiency.update(params=cost["params"], macs=cost["macs"])
    _record(run, rows, parts)


def first_stage(module: CascadeRCNN) -> CascadeRCNN:
    """The same detector with the first of its stages alone; it shares the rest."""
    found = copy.copy(module)
    found._modules = dict(module._modules)
    heads = copy.copy(module.roi_heads)
    heads._modules = dict(heads._modules)
    heads.box_heads = nn.ModuleList(module.roi_heads.box_heads[:1])
    heads.box_predictors = nn.ModuleList(module.roi_heads.box_predictors[:1])
    found.roi_heads = heads
    return found


def _cost(module: CascadeRCNN, image: Tensor) -> dict[str, Any]:
    params = count_parameters(module)
    return {
        "params": params,
        "params_by_part": {
            name: count_parameters(part)
            for name, part in (("backbone", module.backbone), ("rpn", module.rpn), ("stages", module.roi_heads))
        },
        "bytes_fp32": 4 * params,
        "bytes_fp16": 2 * params,
        "macs": count_macs(module, [image]),
        "proposals": module.spec.post_nms[1],
        "size": list(image.shape[1:]),
    }


def _passes(module: CascadeRCNN, images: list[Tensor]) -> Any:
    return lambda batch: lambda: module(images[:batch])


def part_passes(module: CascadeRCNN, images: list[Tensor]) -> dict[str, bench.Pass]:
    """What a forward pass consists of, each part with what the ones before it give."""
    heads = module.roi_heads
    batch, _ = module.transform(images)
    features = module.backbone(batch.tensors)
    proposals, _ = module.rpn(batch, features)
    stages = heads.refine(features, proposals, batch.image_sizes)
    found: tuple[bench.Pass, ...] = (
        lambda: module.transform(images),
        lambda: module.backbone(batch.tensors),
        lambda: module.rpn(batch, features),
        lambda: heads.refine(features, proposals, batch.image_sizes),
        lambda: [heads.selected(*heads.candidates([stage[k] for stage in stages])) for k in range(len(images))],
    )
    return dict(zip(PARTS, found, strict=True))


def _parts(config: BenchConfig, run: Run, module: CascadeRCNN, images: list[Tensor]) -> dict[str, Any]:
    """Milliseconds of each part."""
    with torch.inference_mode(), autocast(run.device, config.precision):
        passes = part_passes(module, images)
        times = bench.timed(passes, run.device, seconds=config.seconds)
    return {"batch": len(images)} | {name: latency.median_ms for name, latency in times.items()}


def _in_onnxruntime(config: BenchConfig, run: Run, network: Network, size: tuple[int, int]) -> list[bench.Row]:
    """Eager and onnxruntime on the CPU, one image at a time, both from images to detections."""
    module = copy.deepcopy(network.module).cpu().eval()
    images = road_images(1, size, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        props = properties(module, classes_of(network), size, "full")
        write_onnx(FixedSize(module, size, full=True), path, props, opset=17)
        file = OnnxDetector(path)
        arms = [
            bench.Arm("eager", _passes(module, images)),
            bench.Arm("file", lambda batch: lambda: file(images)),
        ]
        rows = bench.compare(arms, [1], run, seconds=config.seconds, runtime="onnxruntime", device=CPU)
    return [dataclasses.replace(row, runtime=bench.TORCH) if row.arm == "eager" else row for row in rows]


def _record(run: Run, rows: Sequence[bench.Row], parts: Sequence[Mapping[str, Any]]) -> None:
    report = run.report
    for row in rows:
        if row.arm in ("all stages", "file"):
            name = "" if row.arm == "all stages" else "onnx_"
            report.metric(f"{name}images_per_s_b{row.batch}", row.images_per_s, unit="images/s")
            if row.ratio != 1:
                other = "first_stage" if row.arm == "all stages" else "eager"
                report.metric(f"{name}time_over_{other}_b{row.batch}", row.ratio, unit="ratio", higher_is_better=False)
    run.plot(
        "parts",
        stacked_bars,
        [f"batch {found['batch']}" for found in parts],
        {name: [found[name] / found["batch"] for found in parts] for name in PARTS},
        title=f"Where the time goes on {run.device.type} (threads: {torch.get_num_threads()})",
        xlabel="ms for an image",
    )


def table(report: Report) -> Table:
    """Times of all programs, and of the parts."""
    about, rows = report.technique, bench.rows_from(report.technique["bench"])
    parts = {found["batch"]: found for found in about["parts"]}
    cells = tuple(_cells(row, parts.get(row.batch, {}) if row.arm == "all stages" else {}) for row in rows)
    columns = ("what", "runtime", "batch", "ms", "p10-p90", "images/s", "time x", "MACs x", *(f"{k} ms" for k in PARTS))
    cost = about["cost"]
    params, macs, size = cost["params"] / 1e6, cost["macs"] / 1e9, "x".join(map(str, cost["size"]))
    whole, half = cost["bytes_fp32"] / 1e6, cost["bytes_fp16"] / 1e6
    notes = [
        f"{rows[0].precision} on {rows[0].device}, threads: {rows[0].threads}" if rows else "nothing fitted in memory",
        f"{params:.2f} M parameters ({whole:.1f} MB in fp32, {half:.1f} MB in fp16), {macs:.2f} G multiply-adds for an "
        f"image of {size} with {cost['proposals']} proposals",
        "time x: over the first row of its batch and device; no figure here says anything of another machine",
    ]
    peak = [row.peak_mb for row in rows if row.peak_mb]
    if peak:
        notes.append(f"peak memory {max(peak):.0f} MiB")
    return Table(f"{report.command}: {report.model.name if report.model else ''}", columns, cells, tuple(notes))


def _cells(row: bench.Row, parts: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        *(row.arm, row.runtime, row.batch, f"{row.median_ms:.1f}", f"{row.p10_ms:.1f}-{row.p90_ms:.1f}"),
        *(f"{row.images_per_s:.1f}", f"{row.ratio:.2f}", None if row.mac_ratio is None else f"{row.mac_ratio:.2f}"),
        *(f"{parts[name]:.1f}" if name in parts else None for name in PARTS),
    )


def preview(config: BenchConfig) -> list[Table]:
    """What is timed."""
    network = open_detector(find_run("detect", config.run))
    size = size_of(config.size, network.module.spec)
    row = (network.name, "x".join(map(str, size)), ", ".join(map(str, config.batch_size)), config.precision)
    return [Table("what is timed", ("detector", "image", "batch", "precision"), (row,))]
