"""The network of a run, for use without effvl."""

from typing import Any

from effvl_cli.config.prune_blocks import ExportConfig
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.common.verified_files import traced_once, write_code, write_onnx, write_program
from effvl_cli.engines.prune_blocks import load_run
from effvl_cli.engines.prune_blocks.preview import preview_export
from effvl_cli.models.onnx import need_exporter

preview = preview_export


def refuse_first(config: ExportConfig) -> None:
    """A missing package, before anything is loaded or traced."""
    if "onnx" in config.format:
        need_exporter()


def run(config: ExportConfig, run: Run) -> None:
    """Write what --format names, each verified against the network."""
    context = load_run.open_run_network(config, run)
    network = context.network
    traced = traced_once(network, network.module)
    if "onnx" in config.format:
        write_onnx(run, traced)
    if "pt2" in config.format:
        write_program(run, traced)
    if "rebuild" in config.format:
        run.save_model(network.module.state_dict(), {**network.manifest, **network.describe()})
        write_code(run, network)
    run.report.technique["format"] = list(config.format)


def table(report: Report) -> Table:
    """The files."""
    rows: tuple[tuple[Any, ...], ...] = tuple((file.path, f"{file.bytes:,}") for file in report.artifacts)
    name = report.model.name if report.model else ""
    return Table(f"{name}, verified against the run's network", ("file", "bytes"), rows, tuple(report.warnings))
