"""Tables over runs: means and spreads over seeds, paired differences, published figures, claims."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from effvl_cli.config.recipe_file import Recipe, read_recipe
from effvl_cli.core import claims, html_report, sweep, sweep_pictures
from effvl_cli.core.claims import mean_and_error
from effvl_cli.core.errors import DataError, ModelError, UsageError
from effvl_cli.core.files import file_or_folder, write_text
from effvl_cli.core.report import Comparison, Metric, Report, compare, read_report
from effvl_cli.core.table import Cell, Table, percent, points

MOST_COLUMNS = 9  # of a table with a row for each figure


@dataclass(frozen=True)
class _Group:
    """Reports of one arm, or of runs that differ only in their seed, by seed."""

    name: str
    reports: dict[int, Report] = field(default_factory=dict)

    def metrics(self, name: str) -> dict[int, Metric]:
        """A figure by seed, where it has a value."""
        found = {seed: report.metrics.get(name) for seed, report in self.reports.items()}
        return {seed: metric for seed, metric in found.items() if metric is not None and metric.value is not None}


def tabulate(paths: list[Path]) -> list[Table]:
    """Tables of run folders, reports, sweep folders and sweep files.

    Raises:
        DataError: a path that holds no report.
        UsageError: a sweep file, or a claim in it, that cannot be read.
    """
    tables: list[Table] = []
    single: list[Path] = []
    for path in paths:
        if _is_sweep(path):
            tables += _sweep_tables(path)
        else:
            single.append(path)
    return tables + _run_tables(single)


# --- runs ------------------------------------------------------------------------------------------------------------


def _run_tables(paths: Sequence[Path]) -> list[Table]:
    groups: dict[str, _Group] = {}
    notes = []
    for path in paths:
        file = path if path.suffix == ".json" else path / sweep.REPORT
        if file_or_folder(file) != "file":
            raise DataError(
                f"{str(path)[:200]} holds no {sweep.REPORT}", "Give a run folder, a sweep folder or a sweep file"
            )
        report = read_report(file)
        key = _all_but_seed(file.parent, report)
        if report.seed in groups.get(key, _Group("")).reports:
            key = str(path)  # two runs of one seed, e.g. on two devices: side by side
        groups.setdefault(key, _Group(f"{report.command} {file.parent.name}")).reports[report.seed] = report
        if report.status != "completed":
            notes.append(f"{path}: {report.status}{f' ({report.error})' if report.error else ''}")
    if not groups:
        return []
    named = [_with_count(group) for group in groups.values()]
    return [_means("runs", named, tuple(notes)), *_published(named, ())]


def _with_count(group: _Group) -> _Group:
    more = len(group.reports) - 1
    return replace(group, name=f"{group.name} (+{more})") if more else group


def _all_but_seed(folder: Path, report: Report) -> str:
    """The key that runs share which differ only in their seed."""
    with contextlib.suppress(UsageError):
        config = read_recipe(folder / sweep.CONFIG).config
        return str([report.command, sorted(item for item in config.items() if item[0] not in ("seed", "out", "name"))])
    return str(folder)


# --- sweeps ----------------------------------------------------------------------------------------------------------


def write_pages(paths: Sequence[Path]) -> list[Path]:
    """Draw the pictures of the sweeps among the paths, and their arms over the training, and write a page for each.

    Returns:
        The pictures and the pages.
    """
    written: list[Path] = []
    for path in paths:
        if _is_sweep(path):
            recipe, folder = sweep.read_sweep(path), sweep.folder_of(path)
            groups, _ = _completed(recipe, path)
            reports = {arm: group.reports for arm, group in groups.items()}
            drawn = sweep_pictures.draw(recipe, reports, folder / "plots")
            drawn += sweep_pictures.draw_training(sweep.plan(recipe, folder), folder / "plots")
            page = html_report.of_sweep(recipe.description or path.stem, str(path), _sweep_tables(path), drawn)
            write_text(folder / html_report.HTML, page)
            written += [*drawn, folder / html_report.HTML]
    return written


def _is_sweep(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") or file_or_folder(path / sweep.FILE) == "file"


def _completed(recipe: Recipe, path: Path) -> tuple[dict[str, _Group], dict[str, int]]:
    """The completed runs by arm, and how many of each arm are missing."""
    groups = {arm: _Group(arm) for arm in recipe.arms}
    missing = dict.fromkeys(recipe.arms, 0)
    for run in sweep.plan(recipe, sweep.folder_of(path)):
        with contextlib.suppress(ModelError):
            report = read_report(run.folder / sweep.REPORT)
            if report.status == "completed":
                groups[run.arm].reports[run.seed] = report
                continue
        missing[run.arm] += 1
    return groups, missing


def _sweep_tables(path: Path) -> list[Table]:
    recipe = sweep.read_sweep(path)
    groups, missing = _completed(recipe, path)
    listed = list(groups.values())
    if not any(group.reports for group in listed):
        raise DataError(f"no completed run of {path}", f"Run it: effvl sweep {path}")
    notes = tuple(f"{arm}: {count} run(s) not completed" for arm, count in missing.items() if count)
    return [
        _means(recipe.description or str(path), listed, notes),
        *_published(listed, recipe.reference.get("expected") or ()),
        *_claims(recipe, groups),
        *_differences(groups[recipe.baseline or next(iter(groups))], listed),
    ]


def _means(title: str, groups: Sequence[_Group], notes: tuple[str, ...]) -> Table:
    """Mean ± standard error over seeds of each figure in each group."""
    rows: list[tuple[Cell, ...]] = [
        (name, *(_mean_cell(list(group.metrics(name).values())) for group in groups)) for name in _names(groups)
    ]
    columns = ("figure", *(group.name for group in groups))
    counts = [len(group.reports) for group in groups]
    if counts == [1]:
        (only,) = groups[0].reports.values()
        columns = (*columns, "n")
        rows = [(*row, only.metrics[str(row[0])].n) for row in rows]
    spread = "± is the figure's own standard error"
    if max(counts) > 1:
        spread = "± is the standard error over seeds" + (", with one seed the figure's own" if 1 in counts else "")
    if _is_wide(columns, rows):
        return _turned(Table(title, columns, (*rows, ("seeds", *counts)), (spread, *notes)))
    seeds = ", ".join(f"{group.name}: {len(group.reports)}" for group in groups)
    return Table(title, columns, tuple(rows), (f"seeds: {seeds}; {spread}", *notes))


def _is_wide(columns: Sequence[str], rows: Sequence[Any]) -> bool:
    return len(columns) > max(MOST_COLUMNS, len(rows))


def _turned(table: Table) -> Table:
    """Columns as rows; those without a value are left out."""
    names, *columns = zip(*table.rows, strict=True)
    rows = [(name, *cells) for name, cells in zip(table.columns[1:], columns, strict=True)]
    shown = tuple(row for row in rows if any(cell is not None for cell in row[1:]))
    return replace(table, columns=("arm", *names), rows=shown)


def _differences(first: _Group, groups: Sequence[_Group]) -> list[Table]:
    """Differences of each arm to one of them, seed by seed."""
    others = [group for group in groups if group is not first]
    rows: list[tuple[Cell, ...]] = []
    for name in _names([first]):
        base = first.metrics(name)
        cells = [_difference_cell(base, other.metrics(name)) for other in others]
        if any(cells):
            rows.append((name, *cells))
    if not rows:
        return []
    title = f"differences to {first.name}, paired by seed (percentages in points)"
    table = Table(title, ("figure", *(other.name for other in others)), tuple(rows))
    return [_turned(table) if _is_wide(table.columns, rows) else table]


def _published(groups: Sequence[_Group], expected: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A sweep's `reference.expected` (a row may name its `arm`), and those of the runs' own recipes."""
    rows: list[tuple[Cell, ...]] = []
    for group in groups:
        own = [row for report in list(group.reports.values())[:1] for row in report.comparison]
        wanted = [row for row in expected if row.get("arm", group.name) == group.name]
        wanted += [{"metric": row.metric, "value": row.expected, "tolerance": row.tolerance} for row in own]
        for row in wanted:
            found = list(group.metrics(row["metric"]).values())
            actual = mean_and_error([float(metric.value or 0) for metric in found])[0] if found else None
            rows.append(_published_row(group.name, compare(row, actual), found[0].unit if found else "fraction"))
    columns = ("arm", "figure", "published", "ours", "difference", "tolerance")
    return [Table("published figures (- : not found)", columns, tuple(rows))] if rows else []


def _published_row(arm: str, row: Comparison, unit: str) -> tuple[Cell, ...]:
    gap = None if row.expected is None or row.actual is None else row.actual - row.expected
    verdict = None if row.within is None else ("within" if row.within else "outside")
    return (arm, row.metric, _shown(row.expected, unit), _shown(row.actual, unit), _signed(gap, unit), verdict)


def _claims(recipe: Recipe, groups: Mapping[str, _Group]) -> list[Table]:
    """Each claim over the seeds in which the arms that it names are completed."""
    rows: list[tuple[Cell, ...]] = []
    for text in recipe.claims:
        named = [groups[arm] for arm in claims.arms_of(text, recipe.arms)]
        seeds = sorted({seed for group in named for seed in group.reports})
        by_seed = {seed: {g.name: _figures(g.reports[seed]) for g in named if seed in g.reports} for seed in seeds}
        verdict = claims.judge(text, by_seed) if all(group.reports for group in named) else None
        if verdict is None or not verdict.seeds:
            rows.append(("NO RUN", text, None, None, 0))
            continue
        margin = None if math.isnan(verdict.margin) else f"{round(verdict.margin, 4) + 0.0:+.4f}"  # + 0.0: no "-0.0000"
        error = None if verdict.se is None or math.isnan(verdict.se) else f"{verdict.se:.4f}"
        rows.append(("PASS" if verdict.passed else "FAIL", text, margin, error, verdict.seeds))
    return [Table("claims", ("", "claim", "margin", "± SE", "seeds"), tuple(rows))] if rows else []


def _figures(report: Report) -> dict[str, float]:
    found = {}
    for name, metric in report.metrics.items():
        found[name] = math.nan if metric.value is None else metric.value
        if metric.se is not None:
            found[f"{name}.se"] = metric.se
    return found


# --- cells -----------------------------------------------------------------------------------------------------------


def _names(groups: Sequence[_Group]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for report in group.reports.values() for name in report.metrics))


def _mean_cell(metrics: Sequence[Metric]) -> Cell:
    if not metrics:
        return None
    mean, error = mean_and_error([float(metric.value or 0) for metric in metrics])
    return _with_error(_shown(mean, metrics[0].unit), metrics[0].se if len(metrics) == 1 else error, metrics[0].unit)


def _difference_cell(base: Mapping[int, Metric], other: Mapping[int, Metric]) -> Cell:
    seeds = [seed for seed in base if seed in other]
    if not seeds:
        return None
    mean, error = mean_and_error([float(other[s].value or 0) - float(base[s].value or 0) for s in seeds])
    unit = base[seeds[0]].unit
    return _with_error(_signed(mean, unit), error, unit)


def _with_error(value: str | None, error: float | None, unit: str) -> str | None:
    return value if error is None else f"{value} ± {percent(error, 2) if unit == 'fraction' else f'{error:.4g}'}"


def _shown(value: float | None, unit: str) -> str | None:
    return percent(value) if unit == "fraction" else (None if value is None else f"{value:.4g}")


def _signed(value: float | None, unit: str) -> str | None:
    return points(value) if unit == "fraction" else (None if value is None else f"{value:+.4g}")
