"""Tables over runs: means and spreads over seeds, published figures, claims."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.config.resolve import Recipe
from effvl_cli.core import claims, sweep
from effvl_cli.core.errors import DataError, ModelError
from effvl_cli.core.report import Metric, Report, read_report
from effvl_cli.core.table import Cell, Table, percent, points

REPORT = "report.json"


@dataclass(frozen=True)
class _Group:
    """Reports of one arm."""

    name: str
    reports: dict[int, Report]
    missing: int = 0


def tabulate(paths: list[Path]) -> list[Table]:
    """Tables of run folders, sweep folders and sweep files.

    Raises:
        DataError: a path that holds no report.
    """
    tables = []
    single: dict[str, dict[int, Report]] = {}
    for path in paths:
        if path.suffix in (".yaml", ".yml") or (path / sweep.FILE).is_file():
            tables += _sweep_tables(path)
        else:
            report = _report(path)
            runs = single.setdefault(f"{report.command} {report.config_sha256[:8]}", {})
            runs[report.seed] = report
    groups = [_Group(name, runs) for name, runs in single.items()]
    return tables + ([_means("runs", groups, ())] if groups else []) + _published(groups)


def _report(path: Path) -> Report:
    file = path if path.suffix == ".json" else path / REPORT
    if not file.is_file():
        raise DataError(f"{path} holds no {REPORT}", "Give a run folder, a sweep folder or a sweep file")
    return read_report(file)


def _sweep_tables(path: Path) -> list[Table]:
    recipe = sweep.read_sweep(path)
    out = path if path.is_dir() else Path("runs") / "sweeps" / path.stem
    groups: dict[str, _Group] = {}
    for run in sweep.plan(recipe, out):
        group = groups.setdefault(run.arm, _Group(run.arm, {}))
        with contextlib.suppress(ModelError):
            report = read_report(run.folder / REPORT)
            if report.status == "completed":
                group.reports[run.seed] = report
                continue
        groups[run.arm] = _Group(run.arm, group.reports, group.missing + 1)
    listed = list(groups.values())
    notes = tuple(f"{g.name}: {g.missing} run(s) not completed" for g in listed if g.missing)
    if not any(g.reports for g in listed):
        raise DataError(f"no completed run of {path}", f"Run it: effvl sweep {path}")
    title = recipe.description or str(path)
    return [_means(title, listed, notes), *_published(listed), *_claims(recipe, listed)]


def _means(title: str, groups: Sequence[_Group], notes: tuple[str, ...]) -> Table:
    """A row for each figure, a column for each group: mean ± standard error over seeds."""
    names = list(dict.fromkeys(name for g in groups for r in g.reports.values() for name in r.metrics))
    rows = [
        (name, *(_mean_cell([r.metrics[name] for r in g.reports.values() if name in r.metrics]) for g in groups))
        for name in names
    ]
    seeds = ", ".join(f"{g.name}: {len(g.reports)}" for g in groups)
    wide = len(groups) > 1 or any(len(g.reports) > 1 for g in groups)
    spread = "± is the standard error over seeds" if wide else "± is the figure's own standard error"
    return Table(title, ("figure", *(g.name for g in groups)), tuple(rows), (f"seeds: {seeds}; {spread}", *notes))


def _mean_cell(metrics: Sequence[Metric]) -> Cell:
    values = [m.value for m in metrics if m.value is not None]
    if not values:
        return None
    mean, spread = _mean(values)
    if len(values) == 1:
        spread = metrics[0].se
    scale = percent if metrics[0].unit == "fraction" else (lambda x, digits=3: None if x is None else f"{x:.4g}")
    return f"{scale(mean)}" + (f" ± {scale(spread, 2)}" if spread is not None else "")


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error; None for a single value."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def _published(groups: Sequence[_Group]) -> list[Table]:
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        for report in list(group.reports.values())[:1]:
            for row in report.comparison:
                gap = None if row.expected is None or row.actual is None else row.actual - row.expected
                verdict = None if row.within is None else ("within" if row.within else "outside")
                rows.append((group.name, row.metric, percent(row.expected), percent(row.actual), points(gap), verdict))
    if not rows:
        return []
    columns = ("arm", "figure", "published %", "ours %", "difference", "tolerance")
    return [Table("published figures (- : not found)", columns, tuple(rows))]


def _claims(recipe: Recipe, groups: Sequence[_Group]) -> list[Table]:
    seeds = set.intersection(*(set(g.reports) for g in groups)) if groups else set()
    if not recipe.claims or not seeds:
        return []
    by_seed = {seed: {g.name: _figures(g.reports[seed]) for g in groups} for seed in sorted(seeds)}
    verdicts = [claims.judge(text, by_seed) for text in recipe.claims]
    rows = tuple(
        ("PASS" if v.passed else "FAIL", v.claim, f"{v.margin:+.4f}", None if v.se is None else f"{v.se:.4f}", v.seeds)
        for v in verdicts
    )
    return [Table("claims", ("", "claim", "margin", "± SE", "seeds"), rows)]


def _figures(report: Report) -> dict[str, float]:
    found = {}
    for name, metric in report.metrics.items():
        if metric.value is not None:
            found[name] = metric.value
        if metric.se is not None:
            found[f"{name}.se"] = metric.se
    return found
