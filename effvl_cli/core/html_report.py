"""`report.html` of a run, and of a sweep: what was run, what came out and what it cost, for a reader with a browser."""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from effvl_cli.core import html_page
from effvl_cli.core.html_page import badge, command, html_table, items, notes, pairs, section
from effvl_cli.core.report import Comparison, Metric, Report
from effvl_cli.core.table import Table

HTML = "report.html"
WIDTH = 1.96  # standard errors on each side: 95 %
_STATUS = {"completed": "good", "failed": "bad"}


def of_run(report: Report, table: Table | None, argv: Sequence[str], plots: Sequence[Path]) -> str:
    """The page of one run.

    Args:
        report: as written.
        table: what the command prints; None where it prints none.
        argv: the command line, word by word.
        plots: PNG files.
    """
    shown = html_page.table(table) if table and table.rows else ""
    figures = "".join(_metrics(title, rows) for title, rows in _by_unit(report.metrics).items())
    return html_page.page(
        f"effvl {report.command}",
        _lead(report),
        badge(report.status, _STATUS.get(report.status, "")),
        (
            section("Error", notes([report.error or ""]), kind="warn"),
            section("Command", command(shlex.join(argv)) + notes([_recipe(report)])),
            section("Result", shown),
            section("Warnings", items(report.warnings), kind="warn"),
            section("Figures", figures + _legend(report.metrics)),
            section("Published figures", _published(report.comparison)),
            section("Pictures", html_page.pictures(plots)),
            section("Cost", pairs(_cost(report))),
            section("Data and model", _data(report) + pairs(_model(report))),
            section("Environment", pairs(_environment(report))),
            section("Files", _files(report)),
        ),
    )


def of_sweep(title: str, path: str, tables: Sequence[Table], plots: Sequence[Path]) -> str:
    """The page of a sweep: its claims first, then its tables and pictures."""
    claims = [shown for shown in tables if shown.title == "claims"]
    others = [shown for shown in tables if shown.title != "claims"]
    verdicts = [row[0] for shown in claims for row in shown.rows]
    passed = sum(verdict == "PASS" for verdict in verdicts)
    mark = badge(f"{passed} of {len(verdicts)} claims hold", "good" if passed == len(verdicts) else "bad")
    return html_page.page(
        title,
        f"sweep {path}, {time.strftime('%Y-%m-%d %H:%M')}",
        mark if verdicts else "",
        (
            section("Command", command(shlex.join(["effvl", "sweep", path]))),
            *(section("Claims", html_page.table(shown, caption=False)) for shown in claims),
            section("Arms", html_page.pictures(plots)),
            *(section(shown.title.capitalize(), html_page.table(shown, caption=False)) for shown in others),
        ),
    )


def _lead(report: Report) -> str:
    data = ", ".join(dict.fromkeys(row.name for row in report.data))
    words = [report.model.name if report.model else "", f"on {data}" if data else "", f"· seed {report.seed}"]
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(report.started))
    return f"{' '.join(word for word in words if word)} · {when} · {_clock(report.duration_s)}".lstrip("· ")


def _recipe(report: Report) -> str:
    return f"recipe {report.recipe}" if report.recipe else ""


# --- figures ---------------------------------------------------------------------------------------------------------


def _by_unit(metrics: Mapping[str, Metric]) -> dict[str, dict[str, Metric]]:
    """Metrics by unit; fractions, which share a scale, come first."""
    shares = {name: metric for name, metric in metrics.items() if metric.unit == "fraction"}
    others = {name: metric for name, metric in metrics.items() if metric.unit != "fraction"}
    return {title: rows for title, rows in (("Shares", shares), ("Other figures", others)) if rows}


def _metrics(title: str, metrics: Mapping[str, Metric]) -> str:
    drawn = title == "Shares" and all(0 <= metric.value <= 1 for metric in metrics.values() if metric.value is not None)
    rows = [[*_row(name, metric), *([_drawn(metric)] if drawn else [])] for name, metric in metrics.items()]
    columns = ["figure", "value", "95 %", "n", "split", *([html_page.DRAWN] if drawn else [])]
    right = [name in ("value", "95 %", "n") for name in columns]
    used = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return html_table(
        [columns[k] for k in used], [[row[k] for k in used] for row in rows], [right[k] for k in used], title
    )


def _row(name: str, metric: Metric) -> list[str]:
    spread = "" if metric.se is None else f"± {_shown(WIDTH * metric.se, metric.unit)}"
    words = [name.replace("_", " "), _shown(metric.value, metric.unit), spread, metric.n or "", metric.split or ""]
    return [escape(str(word)) for word in words]


def _drawn(metric: Metric) -> str:
    if metric.value is None:
        return ""
    reach = WIDTH * (metric.se or 0.0)
    return html_page.interval(metric.value - reach, metric.value, metric.value + reach)


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == "fraction":
        return f"{100 * value:.2f} %"
    if unit == "ratio":
        return f"{value:.3g}x"
    if unit == "boolean":
        return "yes" if value else "no"
    number = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{number} {unit}"


def _legend(metrics: Mapping[str, Metric]) -> str:
    if not any(metric.se is not None for metric in metrics.values()):
        return ""
    return notes(["± 1.96 standard errors over the n samples, paired with the dense network's where there is one"])


def _published(rows: Sequence[Comparison]) -> str:
    if not rows:
        return ""
    cells: tuple[Any, ...] = tuple(
        (row.metric, row.expected, row.actual, row.tolerance, {True: "within", False: "outside"}.get(bool(row.within)))
        if row.within is not None
        else (row.metric, row.expected, row.actual, row.tolerance, None)
        for row in rows
    )
    return html_page.table(Table("", ("figure", "published", "ours", "tolerance", ""), cells), caption=False)


# --- the rest --------------------------------------------------------------------------------------------------------


def _cost(report: Report) -> Iterator[tuple[str, object]]:
    yield "time of this attempt", _clock(report.duration_s)
    for name, value in report.technique.items():
        if isinstance(value, dict) and isinstance(value.get("seconds"), int | float):
            yield f"of which {name.replace('_', ' ')}", _clock(value["seconds"])
    for name, value in report.efficiency.items():
        if isinstance(value, int | float):
            yield name.replace("_", " "), f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if report.resume.count:
        yield "resumed", f"{report.resume.count} times, {report.resume.steps_done_before:,} steps were not repeated"


def _data(report: Report) -> str:
    rows = tuple((row.name, row.split, row.num_samples or None, row.fingerprint, row.bad_files) for row in report.data)
    columns = ("data", "split", "samples", "fingerprint", "unreadable")
    return html_page.table(Table("", columns, rows), caption=False) if rows else ""


def _model(report: Report) -> Iterator[tuple[str, object]]:
    if report.model is not None:
        yield "model", report.model.name
        yield "weights from", report.model.source
        yield "parameters", f"{report.model.params_total:,}"
        yield "edits", ", ".join(str(edit["kind"]) for edit in report.model.edits)


def _environment(report: Report) -> Iterator[tuple[str, object]]:
    about = report.environment
    device, world, git = about.get("device", {}), about.get("distributed", {}), about.get("git", {})
    yield "effvl", report.effvl_version
    yield "Python", about.get("python")
    yield "platform", about.get("platform")
    yield "device", f"{device.get('type')}, {device.get('name')}"
    yield "memory", f"{device.get('memory_bytes', 0) / 2**30:.1f} GiB"
    yield "threads", about.get("threads")
    yield "processes", world.get("world_size")
    yield "packages", ", ".join(f"{name} {version}" for name, version in about.get("packages", {}).items() if version)
    commit = git.get("commit")
    yield "commit of the current folder", commit and commit[:12] + (", with changes" if git.get("dirty") else "")
    yield "options", f"config.yaml, sha256 {report.config_sha256[:16]}"


def _files(report: Report) -> str:
    rows = tuple((file.path, f"{file.bytes:,}", file.sha256[:16]) for file in report.artifacts)
    return html_page.table(Table("", ("file", "bytes", "sha256"), rows), caption=False) if rows else ""


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
