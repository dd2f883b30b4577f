"""`effvl detect dedup`: a training split without its near-duplicates, and what it shares with other splits."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from effvl_cli.config.detect_dedup import BOTH, HASHES, LEAK_DISTANCE, DedupConfig
from effvl_cli.core.errors import CheckError, DataError
from effvl_cli.core.files import file_or_folder, write_json, write_text
from effvl_cli.core.plots import histograms
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Cell, Table, counted, percent, shortened
from effvl_cli.data import SPLITS
from effvl_cli.data.box_writers import coco_json
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.detect.box_data import open_boxes, splits_of
from effvl_cli.engines.detect.near_duplicates import deduplicated, frames_of, heeding, rule_of, rule_text
from effvl_cli.techniques.detect.dedup import Leak, leaks

SUMMARY, LEAKS, KEPT = "dedup.json", "leaks.json", "kept.txt"
LISTED = 40  # sequences of the table


def run(config: DedupConfig, run: Run) -> None:
    """Thin a split out, compare it with another one, and write what is left.

    Raises:
        CheckError: it shares images with the other split, after everything has been written; or all of its images, and
            nothing would be left.
    """
    source = open_boxes(config, config.split, run, seed=config.seed, whole=config.whole)
    others = _others(config, run)
    run.report.data(source)
    kept, summary = deduplicated(source, config, run, config)
    run.write(SUMMARY, write_json, summary)
    run.report.metric("kept_share", len(kept) / len(source), higher_is_better=False, n=len(source))
    run.report.technique.update({key: value for key, value in summary.items() if key != "skipped"})
    shared: list[Leak] = []
    if config.leak_check:
        shared = _check(config, run, kept, others)
        if config.fix and len(shared) == len(kept):
            raise CheckError(
                f"--fix would leave nothing: each image of {config.split} is in {config.leak_check} too; "
                f"see {run.folder / LEAKS}",
                "Give another --leak-check",
            )
        if config.fix:
            leaking = {leak.frame for leak in shared}
            kept = kept.take([k for k in range(len(kept)) if k not in leaking])
    run.report.technique["n_written"] = len(kept)
    run.write(KEPT, write_text, "".join(f"{name}\n" for name in kept.ids))
    names = [record.file if record.path is None else str(record.path.resolve()) for record in kept.records]
    run.write(f"{config.split}.json", write_json, coco_json(kept, names))
    _draw(summary, config, run)
    if shared and not (config.fix or config.allow_leaks):
        raise CheckError(
            f"{len(shared)} of {counted(len(kept), 'image')} of {config.split} are in {config.leak_check} too, "
            f"e.g. {kept.ids[shared[0].frame]}; see {run.folder / LEAKS}",
            "Give --fix to leave them out, or --allow-leaks to go on",
        )


def _check(config: DedupConfig, run: Run, kept: BoxSource, others: Sequence[BoxSource]) -> list[Leak]:
    """Images of the split that are in another one too, each with the nearest there.

    A hash alone takes most roads for one another: it is joined by the correlation here.
    """
    options = dataclasses.replace(config, signature=BOTH, tau=None) if config.signature in HASHES else config
    rule = rule_of(options, config.leak_tau if config.leak_tau is not None else LEAK_DISTANCE)
    ours = frames_of(kept, options, run, config)
    nearest: dict[int, tuple[Leak, str]] = {}
    for other in others:
        theirs = frames_of(other, options, run, config)
        names = [f"{other.split}/{other.ids[index]}" for index in theirs.indices]
        for leak in filter(None, heeding(leaks(ours.signatures, theirs.signatures, rule), run)):
            frame = ours.indices[leak.frame]
            if frame not in nearest or leak.distance < nearest[frame][0].distance:
                nearest[frame] = (Leak(frame, leak.other, leak.distance), names[leak.other])
    rows = [
        {"file": kept.ids[frame], "is": name, "distance": round(leak.distance, 6)}
        for frame, (leak, name) in sorted(nearest.items())
    ]
    against = sum(map(len, others))
    run.write(
        LEAKS,
        write_json,
        {"against": config.leak_check, "n_against": against, "rule": rule._asdict(), "shared": rows},
    )
    run.report.metric("leaks", float(len(rows)), unit="images", higher_is_better=False, n=len(kept))
    run.report.technique["leaks"] = {"against": config.leak_check, "n_against": against, "shared": len(rows)}
    return [leak for leak, _ in (nearest[frame] for frame in sorted(nearest))]


def _others(config: DedupConfig, run: Run) -> list[BoxSource]:
    """What the split is compared with: nothing, another split, or all images of another data set.

    Raises:
        DataError: no such file, or it cannot be read.
    """
    if config.leak_check is None:
        return []
    given = config.leak_check
    if given in SPLITS:
        return [open_boxes(config, given, run, seed=config.seed)]
    if ":" not in given and (Path(given).suffix or "/" in given) and not file_or_folder(given):
        raise DataError(
            f"no file or folder --leak-check {given}", "Give val, test, a data set or a file of annotations"
        )
    spec = f"boxes:{Path(given).resolve()}" if file_or_folder(given) else given
    return list(splits_of(config, "all", run, seed=config.seed, data=spec))


def _draw(summary: Mapping[str, Any], config: DedupConfig, run: Run) -> None:
    """How far adjacent images are apart, by day and by night."""
    rows = {"by day": summary["hist_day"], "by night": summary["hist_night"]}
    params, edges = summary["params"], summary["distance_edges"]
    if params["bits"] is not None and any(row["n"] for row in rows.values()):
        groups = {name: _spread(row["bits"], range(len(row["bits"]))) for name, row in rows.items()}
        run.plot(
            "adjacent-bits",
            histograms,
            groups,
            title="Adjacent images of a sequence",
            xlabel=f"bits of the {config.signature.split('+')[0]} that differ",
            bins=[k - 0.5 for k in range(0, len(summary["hist_day"]["bits"]) + 1)],
            marks={f"at most {params['bits']}": params["bits"] + 0.5},
        )
    if params["distance"] is not None and any(row["n"] for row in rows.values()):
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        groups = {name: _spread(row["distance"], middles) for name, row in rows.items()}
        run.plot(
            "adjacent-distances",
            histograms,
            groups,
            title="Adjacent images of a sequence",
            xlabel="1 - correlation" if config.signature != "embed" else "1 - cosine",
            bins=edges,
            marks={f"at most {params['distance']:.3g}": params["distance"]},
        )


def _spread(counts: Sequence[int], values: Sequence[float]) -> list[float]:
    """Each value as often as it is counted."""
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]


def preview(config: DedupConfig) -> list[Table]:
    """How many images there are."""
    run = unopened("detect dedup", config)
    rows: list[tuple[Cell, ...]] = []
    own = open_boxes(config, config.split, run, seed=config.seed, whole=config.whole)
    for source in (own, *_others(config, run)):
        sequences = len({(record.source, record.seq) for record in source.records})
        rows.append((source.name, source.split, len(source), sequences))
    return [Table("what is compared", ("data", "split", "images", "sequences"), tuple(rows))]


def table(report: Report) -> Table:
    """A row for each sequence, and one for all."""
    about = report.technique
    rows = [_row(shortened(row["seq"]), row["n_in"], row["n_kept"]) for row in about["per_seq"][:LISTED]]
    rows.append(_row(f"all {counted(len(about['per_seq']), 'sequence')}", about["n_in"], about["n_kept"]))
    notes = [f"skipped {rule_text(about['params'])}"]
    if found := about.get("leaks"):
        notes.append(f"{found['shared']} images are among the {found['n_against']} of {found['against']} too")
    if about["n_written"] != about["n_kept"]:
        notes.append(f"{about['n_written']} are left without these")
    return Table(report.command, ("sequence", "images", "kept", "kept %"), tuple(rows), tuple(notes))


def _row(name: str, before: int, after: int) -> tuple[Cell, ...]:
    return name, before, after, percent(after / before if before else None)
