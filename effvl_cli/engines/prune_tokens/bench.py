"""`effvl prune-tokens bench`: time of pruned towers beside the dense one, and what the multiply-adds say."""

import itertools
from pathlib import Path
from typing import Any

from effvl_cli.config.prune_tokens import BenchConfig
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, times
from effvl_cli.engines.prune_tokens import artefact, latency, pictures
from effvl_cli.engines.prune_tokens.context import build_context, tower_summary
from effvl_cli.engines.prune_tokens.evaluation import arm, asked_for, refuse_missing


def run(config: BenchConfig, run: Run) -> None:
    """Every selector at every keep rate and batch size; all are timed in turn with the dense tower."""
    context = build_context(config, run)
    run.report.technique["tower"] = tower_summary(context)
    saved = artefact.load(context, Path(str(config.run)))
    names = asked_for(context)
    for name in names:
        refuse_missing(name, context, saved.predictor)
    arms = [
        latency.Arm(name, keep, arm(context, name, keep, saved.predictor))
        for name, keep in itertools.product(names, dict.fromkeys(context.config.keep))
    ]
    rows = latency.measure(
        context,
        arms,
        config.batch_size,
        compiled=config.compile,
        channels_last=config.channels_last,
        end_to_end=config.end_to_end,
    )
    run.report.technique["bench"] = rows
    for row in rows:
        run.report.metric(_metric(row, len(arms)), row["speedup"], unit="ratio")
    pictures.latency_bars(context, rows)


def _metric(row: dict[str, Any], arms: int) -> str:
    """Selector and keep rate are in the name only where there are several."""
    end = f"b{row['batch']}"
    return f"speedup_{end}" if arms == 1 else f"speedup_{row['selector'].replace('-', '_')}_keep{row['keep']:g}_{end}"


def table(report: Report) -> Table:
    """A row for each selector, keep rate and batch size."""
    rows = report.technique["bench"]
    about = f"{rows[0]['precision']}, threads: {rows[0]['threads']}" if rows else "nothing fitted the memory"
    columns = (
        *("selector", "keep", "patches", "batch", "dense ms", "pruned ms", "p10-p90", "images/s"),
        *("speed-up", "95 %", "MACs say", "measured / MACs"),
    )
    return Table(f"{report.command}: {report.model.name if report.model else ''}", columns, _cells(rows), (about,))


def _cells(rows: list[dict[str, Any]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (
            row["selector"],
            f"{row['keep']:g}",
            row["K"],
            row["batch"],
            f"{row['dense_ms']:.1f}",
            f"{row['pruned_ms']:.1f}",
            f"{row['p10']:.1f}-{row['p90']:.1f}",
            f"{row['img_s']:.0f}",
            times(row["speedup"]),
            "-".join(f"{bound:.2f}" for bound in row["speedup_ci95"]),
            times(1 / row["mac_ratio"]),
            f"{row['speedup'] * row['mac_ratio']:.2f}",
        )
        for row in rows
    )
