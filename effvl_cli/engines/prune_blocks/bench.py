"""Times a run's network and the one that it came from, in torch and in onnxruntime."""

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from effvl_cli.config.prune_blocks import BenchConfig
from effvl_cli.core import bench, distributed
from effvl_cli.core.files import write_csv
from effvl_cli.core.find_run import find_run
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_blocks import load_run, network_latency, pictures
from effvl_cli.engines.prune_blocks.context import NetworkContext
from effvl_cli.engines.prune_blocks.preview import preview_bench
from effvl_cli.engines.prune_blocks.removal_step import size_of
from effvl_cli.models import onnx
from effvl_cli.models.program import INPUT, trace
from effvl_cli.models.pruned_network import build
from effvl_cli.models.removed_blocks import REMOVED, removals_of
from effvl_cli.techniques.prune_blocks.pareto import with_latencies
from effvl_cli.techniques.prune_blocks.surgery import ORIGINAL, along_steps

table, preview = bench.table, preview_bench
PARETO = "pareto.csv"
CPU = torch.device("cpu")


def run(config: BenchConfig, run: Run) -> None:
    """Time the network as built, and after each step."""
    context = load_run.open_run_network(config, run)
    made = removals_of(context.network.edits)
    kept = [edit for edit in context.network.edits if edit["kind"] != REMOVED]
    classes = getattr(context.network.module, "num_classes", None)
    original = build(context.network, kept, classes, run.device)
    arms = along_steps(original, made)
    arms[list(arms)[-1]] = context.module  # with its weights, for the check of onnxruntime
    rows = network_latency.measure(context, arms, config.batch_size)
    if config.onnx:
        rows += _in_onnxruntime(context, arms)
    bench.record(run, rows)
    before, after = size_of(context, original), size_of(context, context.module)
    report, last = run.report, list(arms)[-1]
    report.technique.update(mac_ratio=after.macs / before.macs, params_ratio=after.params / before.params)
    report.metric("mac_ratio", after.macs / before.macs, unit="ratio", higher_is_better=False)
    for row in rows:
        if row.arm == last:
            short = "latency" if row.runtime == bench.TORCH else "onnx_latency"
            report.metric(f"{short}_ratio_b{row.batch}", row.ratio, unit="ratio", higher_is_better=False)
    _pareto(context, find_run(load_run.TECHNIQUE, config.run), arms, rows)


def _in_onnxruntime(context: NetworkContext[BenchConfig], built: Mapping[str, nn.Module]) -> list[bench.Row]:
    """Time the networks in onnxruntime on the CPU; each is checked against its logits in torch first."""
    size, batches = context.network.preprocess.size, list(context.config.batch_size)
    images = bench.noise(size, CPU)
    with tempfile.TemporaryDirectory() as folder:
        arms: list[bench.Arm] = []
        for plain in network_latency.arms(context, built):
            path = Path(folder) / f"{len(arms)}.onnx"
            if distributed.is_main():
                reason = onnx.export_onnx(trace(built[plain.name], size), path)
                if reason:
                    context.run.warn(f"{plain.name} takes one image at a time in ONNX: {reason}")
                    batches = [batch for batch in batches if batch == 1]
            arms.append(dataclasses.replace(plain, prepare=_passes(path, images)))
        return bench.compare(
            arms, batches, context.run, seconds=network_latency.PER_ARM_SECONDS, runtime="onnxruntime", device=CPU
        )


def _passes(path: Path, images: Callable[[int], Tensor]) -> Callable[[int], bench.Pass]:
    def prepare(batch: int) -> bench.Pass:
        session, feed = onnx.session(path), {INPUT: images(batch).numpy()}
        return lambda: session.run(None, feed)

    return prepare


def _pareto(context: NetworkContext[BenchConfig], folder: Path, arms: Collection[str], rows: list[bench.Row]) -> None:
    """Cost and accuracy of the run's steps, with these latencies."""
    stored, images = load_run.points_of(folder)
    steps = [point.step for point in stored if isinstance(point.step, int) and point.step]
    before = min(steps, default=len(arms)) - 1
    start = f"step {before}" if before else ORIGINAL  # RUN may have started from a pruned network
    points = with_latencies(stored, network_latency.by_network(rows), start)
    found = [point.to_dict() for point in points]
    context.run.report.technique["pareto"] = found
    pictures.pareto(context.run, points, images)
    context.run.write(PARETO, write_csv, list(found[0]), found)
