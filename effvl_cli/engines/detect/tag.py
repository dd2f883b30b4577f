"""`effvl detect tag`: day and night of every image, by which rule, and how far pixels agree with metadata."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from effvl_cli.config.detect_tag import TagConfig
from effvl_cli.core.files import write_csv
from effvl_cli.core.plots import histograms
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Cell, Table, counted, percent
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.detect.box_data import splits_of
from effvl_cli.engines.detect.box_splits import tagger_of
from effvl_cli.engines.detect.frame_features import FrameFeatures, frame_features
from effvl_cli.engines.detect.tags import Tag, Tagger, conditions
from effvl_cli.techniques.detect.tagging import STATISTICS, Statistic, of_frames

TAGS = "tags.csv"
COLUMNS = ("file", "time", "split", "source", "rule", *STATISTICS, "metadata")
AUTO = "auto"
BINS = tuple(range(0, 257, 4))


def run(config: TagConfig, run: Run) -> None:
    """Tag the images of the splits."""
    rows: list[dict[str, Any]] = []
    splits = []
    tagger = tagger_of(config, run)
    for source in splits_of(config, config.split, run, seed=config.seed):
        seen = frame_features(source, range(len(source)), config, run)
        tags = tagger.tags_of(source)
        run.report.data(source, num_samples=len(source), bad_files=int((~seen.readable).sum()))
        rows += _rows(source, tags, seen)
        splits.append(_summary(source, tags, seen, tagger, config))
    run.write(TAGS, write_csv, COLUMNS, rows)
    run.report.metric("night_share", sum(row["time"] == "night" for row in rows) / len(rows), n=len(rows))
    known = [row for row in splits if row["agree"]]
    for vote in ("seq", "frame"):
        for name in known[0]["agree"][vote] if known else ():
            right, total = (sum(row["agree"][vote][name][k] for row in known) for k in (0, 1))
            if total:
                run.report.metric(f"accuracy_{name}_by_{vote}", right / total, n=total)
    run.report.technique["splits"] = splits
    _draw(rows, splits, config, run)


def _rows(source: BoxSource, tags: Sequence[Tag], seen: FrameFeatures) -> list[dict[str, Any]]:
    rows = []
    for record, tag, values, good in zip(source.records, tags, seen.lightness.tolist(), seen.readable, strict=True):
        figures: dict[str, float] = {}
        if good:
            figures = {name: round(value, 2) for name, value in zip(STATISTICS, values, strict=True)}
        about = {"split": source.split, "source": record.source, "rule": tag.rule, "metadata": record.time}
        rows.append({"file": record.file, "time": tag.time, **about, **figures})
    return rows


def _summary(
    source: BoxSource, tags: Sequence[Tag], seen: FrameFeatures, tagger: Tagger, config: TagConfig
) -> dict[str, Any]:
    times, rules = Counter(tag.time for tag in tags), Counter(tag.rule for tag in tags)
    limits = {name: tagger.threshold(name) for name in dict.fromkeys(record.source for record in source.records)}
    alone = [
        None if tag.value is None else of_frames([tag.value], limits[record.source])[0]
        for record, tag in zip(source.records, tags, strict=True)
    ]
    return {
        "split": source.split,
        "images": len(tags),
        "sequences": len({record.of_one_light for record in source.records}),
        "day": times["day"],
        "night": times["night"],
        "untagged": times[None],
        "rules": dict(rules),
        "outvoted": sum(one is not None and one != tag.time for one, tag in zip(alone, tags, strict=True)),
        "thresholds": limits,
        "with_metadata": sum(record.time is not None for record in source.records),
        "agree": _agreement(source, seen, tagger, config),
    }


def _agreement(source: BoxSource, seen: FrameFeatures, tagger: Tagger, config: TagConfig) -> dict[str, Any]:
    """By vote and way of deciding: images whose pixels say what their metadata say, and images with both; or {}.

    What `auto` would say is told where all splits are looked at anyway.
    """
    known = [k for k, record in enumerate(source.records) if record.time is not None and seen.readable[k]]
    if not known:
        return {}
    ways: dict[str, tuple[Statistic, Callable[[str], float]]] = {
        stat: (stat, partial(tagger.threshold, stat=stat)) for stat in STATISTICS
    }
    if config.split == "all" or config.night_thresh == AUTO:
        ways[AUTO] = config.night_stat, tagger.auto_threshold
    return {
        vote: {
            name: _right(source, seen, known, way, dataclasses.replace(config, night_vote=vote))
            for name, way in ways.items()
        }
        for vote in ("seq", "frame")
    }


def _right(
    source: BoxSource,
    seen: FrameFeatures,
    known: Sequence[int],
    way: tuple[Statistic, Callable[[str], float]],
    config: TagConfig,
) -> tuple[int, int]:
    """Right ones, and all."""
    stat, limit_of = way
    values = seen.lightness[:, STATISTICS.index(stat)]
    right = 0
    for name in dict.fromkeys(source.records[k].source for k in known):
        own = [k for k in known if source.records[k].source == name]
        records = [source.records[k] for k in own]
        found = conditions(values[own].tolist(), records, limit_of(name), config)
        right += sum(time == record.time for time, record in zip(found, records, strict=True))
    return right, len(known)


def _draw(rows: Sequence[dict[str, Any]], splits: Sequence[dict[str, Any]], config: TagConfig, run: Run) -> None:
    known = any(row["metadata"] for row in rows)
    groups: dict[str, list[float]] = {}
    for row in rows:
        if config.night_stat in row:
            name = f"{row['metadata'] or 'unknown'} by metadata" if known else str(row["time"])
            groups.setdefault(name, []).append(row[config.night_stat])
    limits = sorted({limit for split in splits for limit in split["thresholds"].values()})
    marks = {f"night below {limit:g}": limit for limit in limits[:3]}
    what = {"median": "median", "sky": "mean of the upper 40 %", "mean": "mean"}[config.night_stat]
    run.plot(
        "luminance",
        histograms,
        dict(sorted(groups.items())),
        title="How light the images are",
        xlabel=f"luminance of the image: {what}",
        bins=BINS,
        marks=marks,
    )


def preview(config: TagConfig) -> list[Table]:
    """How many images there are, and of how many nothing but the pixels can tell."""
    rows: list[tuple[Cell, ...]] = []
    run = unopened("detect tag", config)
    tagger = tagger_of(config, run)
    for source in splits_of(config, config.split, run, seed=config.seed):
        unknown = sum(tag is None for tag in tagger.said_of(source))
        rows.append((source.split, len(source), unknown))
    return [Table("what is tagged", ("split", "images", "by pixels"), tuple(rows))]


def table(report: Report) -> Table:
    """A row for each split; with metadata, how often pixels say the same: by sequence, and frame by frame."""
    splits = report.technique["splits"]
    compared = next((list(row["agree"]["seq"]) for row in splits if row["agree"]), [])
    columns = ("split", "images", "sequences", "day", "night", "by", *(f"{name} %" for name in compared))
    rows = tuple(_cells(row, compared) for row in ([*splits, _all(splits)] if len(splits) > 1 else splits))
    notes = []
    if compared:
        notes.append("%: pixels say what metadata say, with the vote of the sequence / frame by frame")
    if count := sum(row.get("outvoted", 0) for row in splits):
        notes.append(f"{counted(count, 'image')} outvoted by the others of their sequence")
    if lost := sum(row["untagged"] for row in splits):
        notes.append(f"{lost} images cannot be read and have no tag")
    return Table(report.command, columns, rows, (*notes, f"each image: {TAGS}, which --time-csv reads"))


def _all(splits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sums of all splits."""
    found: dict[str, Any] = {"split": "all"}
    for key in ("images", "sequences", "day", "night"):
        found[key] = sum(row[key] for row in splits)
    found["rules"] = sum((Counter(row["rules"]) for row in splits), Counter())
    agreeing = [row["agree"] for row in splits if row["agree"]]
    found["agree"] = {
        vote: {name: [sum(row[vote][name][k] for row in agreeing) for k in (0, 1)] for name in names}
        for vote, names in (agreeing[0].items() if agreeing else ())
    }
    return found


def _cells(row: dict[str, Any], compared: Sequence[str]) -> tuple[Cell, ...]:
    def shares(name: str) -> str | None:
        if not row["agree"]:
            return None
        parts = (percent(row["agree"][vote][name][0] / row["agree"][vote][name][1]) for vote in ("seq", "frame"))
        return " / ".join(str(part) for part in parts)

    rules = ", ".join(f"{rule} {count}" for rule, count in row["rules"].items())
    about = (row["split"], row["images"], row["sequences"], row["day"], row["night"], rules)
    return (*about, *map(shares, compared))
