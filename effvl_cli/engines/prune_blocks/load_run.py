"""Loads the network that a verb works on: that of RUN, or of --weights."""

from pathlib import Path
from typing import TypeVar

from effvl_cli.config.prune_blocks import ApplyConfig, BenchConfig, ExportConfig, ScoreConfig
from effvl_cli.core import checkpoint
from effvl_cli.core.errors import ModelError
from effvl_cli.core.find_run import find_run
from effvl_cli.core.report import Report, read_report
from effvl_cli.core.run import Run
from effvl_cli.core.run_files import REPORT
from effvl_cli.engines.prune_blocks.context import Context, NetworkContext, build_context
from effvl_cli.models import network as networks
from effvl_cli.models.edits import reported
from effvl_cli.techniques.prune_blocks.pareto import ParetoPoint

TECHNIQUE = "prune-blocks"
NC = TypeVar("NC", ScoreConfig, ApplyConfig)
RC = TypeVar("RC", BenchConfig, ExportConfig)


def open_network(config: NC, run: Run) -> Context[NC]:
    """Data and network of a verb.

    Raises:
        UsageError: --weights that do not name their data, without --data.
        DataError: neither, and no completed run.
        ModelError: what was given holds no network.
    """
    weights = config.weights or str(find_run(TECHNIQUE, config.run))
    return build_context(config, run, weights=weights, model=config.model, data=config.data)


def report_of(folder: Path) -> Report:
    """The report of a run that removed blocks.

    Raises:
        ModelError: it did not, or its network is not there.
    """
    report = read_report(folder / REPORT)
    if "steps" not in report.technique:
        raise ModelError(f"{folder} holds a run of `effvl {report.command}`", f"Give one of `effvl {TECHNIQUE}`")
    checkpoint.read_manifest(folder)
    return report


def points_of(folder: Path) -> tuple[list[ParetoPoint], int | None]:
    """Cost and accuracy of a run's steps, and the number of test images.

    Raises:
        ModelError: its report holds none.
    """
    report = report_of(folder)
    try:
        points = [ParetoPoint(**row) for row in report.technique["pareto"]]
        return points, report.metrics["top1_baseline"].n
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / REPORT} names no accuracy of its steps", "Copy it again") from error


def open_run_network(config: RC, run: Run) -> NetworkContext[RC]:
    """The network of RUN, for a verb that needs no data.

    Raises:
        DataError: no RUN, and none is completed.
        ModelError: what was given is not a run of this technique, or its network is missing.
    """
    folder = find_run(TECHNIQUE, config.run)
    report_of(folder)
    network = networks.load(None, str(folder), default="", kind="classifier", seed=config.seed)
    network.module.to(run.device).eval()
    run.report.model(network.name, network.source, network.module)
    run.report.edits(reported(network.edits))
    return NetworkContext(config, run, network)
