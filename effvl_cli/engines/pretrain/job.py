"""Trains a network from scratch by one of the methods."""

from effvl_cli.config.methods import VIEW_METHODS
from effvl_cli.config.pretrain import PretrainConfig
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table, percent
from effvl_cli.engines.pretrain import invariance, labelled
from effvl_cli.engines.pretrain.preview import preview as costs_of


def run(config: PretrainConfig, run: Run) -> None:
    """Train, evaluate, save."""
    engine = invariance if config.method in VIEW_METHODS else labelled
    engine.run(config, run)


def preview(config: PretrainConfig) -> list[Table]:
    """What `--dry-run` shows besides the options."""
    return costs_of(config)


def table(report: Report) -> Table:
    """Test figures."""
    if report.technique.get("method") in VIEW_METHODS:
        return invariance.table(report)
    rows = [
        (name, percent(metric.value), percent(metric.se), metric.n)
        for name, metric in report.metrics.items()
        if metric.unit == "fraction"
    ]
    title = f"pretrain {report.technique.get('method', '')}: {report.model.name if report.model else ''}"
    return Table(title, ("figure", "test %", "± SE", "n"), tuple(rows))
