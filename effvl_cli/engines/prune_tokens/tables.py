"""The printed tables of prune-tokens, made from a report alone."""

from typing import Any

from effvl_cli.core import bench
from effvl_cli.core.report import Report
from effvl_cli.core.table import Cell, Table, percent, points, times
from effvl_cli.techniques.prune_tokens.selector_table import SELECTORS

FIRST = ("dense", "golden", "predictor", "predictor+tuned")
COLUMNS = (
    *("selector", "keep", "patches", "top-1 %", "95 %", "± dense", "SE", "agree %", "cosine"),
    *("MMACs", "MFLOPs", "MACs", "n"),
)


def results(report: Report) -> Table:
    """A row for each selector and keep rate."""
    rows = report.technique.get("results", [])
    dense = next((row for row in rows if row["selector"] == "dense"), None)
    name = report.model.name if report.model else ""
    notes = [_golden(rows), _others(rows), _chosen(report), _speed(report), _controls(report)]
    return Table(
        f"{report.command}: {name} on {report.data[0].name if report.data else ''}",
        COLUMNS,
        tuple(_cells(row, dense) for row in sorted(rows, key=_place) if row["selector"] != "dense-golden"),
        tuple(note for note in notes if note),
    )


def _place(row: dict[str, Any]) -> int:
    """Sort key: the references first, then ours, then the others in the requested order."""
    return FIRST.index(row["selector"]) if row["selector"] in FIRST else len(FIRST)


def _cells(row: dict[str, Any], dense: dict[str, Any] | None) -> tuple[Cell, ...]:
    is_dense = row["selector"] == "dense"
    return (
        row["selector"] + (" (oracle)" if row["oracle"] else ""),
        f"{row['keep']:g}",
        row["K"],
        percent(row["top1"]),
        "-".join(f"{100 * bound:.1f}" for bound in row["ci95"]),
        None if is_dense else points(row["delta"]),
        percent(row["se"], 2),
        None if is_dense else percent(row["agreement"]),
        None if is_dense else f"{row['cosine']:.3f}",
        f"{row['macs'] / 1e6:.1f}",
        f"{row['flops'] / 1e6:.1f}",
        f"{row['macs'] / dense['macs']:.3f}" if dense else None,
        row["n"],
    )


def _golden(rows: list[dict[str, Any]]) -> str:
    found = next((row for row in rows if row["selector"] == "dense-golden"), None)
    if found is None:
        return ""
    dense = f"{percent(found['top1'])} ± {percent(found['se'])} %"
    return f"golden was searched on {found['n']} of the images; dense on the same ones: {dense}"


def _others(rows: list[dict[str, Any]]) -> str:
    """What the columns of some arms mean."""
    names = {row["selector"] for row in rows}
    return "; ".join(spec.note for name, spec in SELECTORS.items() if name in names and spec.note)


def _chosen(report: Report) -> str:
    """What --dropped auto chose."""
    found = report.technique.get("dropped")
    if found is None:
        return ""
    damages = " and ".join(f"{row['damage']:.4f} with {row['dropped']}" for row in found["tried"])
    return f"--dropped auto is {found['chosen']}: 1 - cosine on {found['images']} images is {damages}"


def _speed(report: Report) -> str:
    rows = bench.rows_from(report.technique.get("bench", []))[1::2]  # dense and the predictor's, in turn
    ratios = [row.mac_ratio for row in rows if row.mac_ratio]
    return f"speed-up {bench.described(rows)}; the MACs say {times(1 / ratios[0])}" if ratios else ""


def _controls(report: Report) -> str:
    shuffled, cover = report.metrics.get("top1_shuffled_names"), report.metrics.get("object_cover")
    parts = []
    if shuffled:
        parts.append(f"shuffled class names {percent(shuffled.value)} ± {percent(shuffled.se)} %")
    if cover:
        parts.append(f"the object touches {percent(cover.value)} ± {percent(cover.se)} % of the patches")
    return f"controls: {'; '.join(parts)}" if parts else ""


def ranking(report: Report) -> Table:
    """Table of the search."""
    found = report.technique["ranking"]
    rows = [
        ("images ranked", found["images"]),
        ("searched now", found["searched_now"]),
        ("suffix passes", found["passes"]),
        ("seconds", f"{found['seconds']:.1f}"),
        ("cache entry", found["key"]),
    ]
    return Table("golden ranking", ("", "value"), tuple(rows), tuple(_audited(row) for row in found.get("audit", [])))


def _audited(row: dict[str, Any]) -> str:
    """How close one search is to the exact one."""
    shares, kept = " / ".join(f"{share:.1%}" for share in row["overlap"].values()), " / ".join(row["overlap"])
    about = f"{row['passes'] / row['images']:.0f} passes per image, overlap {shares} at {kept} kept"
    return f"audit, {row['search']}: {about}, tau {row['tau']:.3f}"


def figures(report: Report) -> Table:
    """All metrics."""
    rows = [
        (name, percent(m.value) if m.unit == "fraction" else m.value, percent(m.se, 2), m.n)
        for name, m in report.metrics.items()
    ]
    return Table(report.command, ("figure", "%", "SE", "n"), tuple(rows))
