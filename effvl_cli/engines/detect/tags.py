"""Day and night of the images of a split: by a list, by metadata, by names, by pixels, in this order."""

import csv
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from effvl_cli.config.detect_tag import NIGHT_THRESH, TagOptions
from effvl_cli.core.errors import DataError
from effvl_cli.core.run import Run
from effvl_cli.core.table import counted
from effvl_cli.data.boxes import BoxRecord, BoxSource
from effvl_cli.data.files import some
from effvl_cli.engines.common.batches import LoaderOptions
from effvl_cli.engines.detect.frame_features import frame_features
from effvl_cli.techniques.detect.tagging import STATISTICS, Condition, of_frames, otsu, voted

MUCH, FEW = 0.2, 5  # share of images that are outvoted which is remarked, of so many at least

ByRule = Literal["list", "metadata", "name", "pixels"]


@dataclass(frozen=True)
class Tag:
    """Of one image.

    Attributes:
        time: day or night; None for an image that only its pixels could tell of, and that cannot be read.
        rule: what said so.
        value: the statistic, where it was computed.
    """

    time: Condition | None
    rule: ByRule
    value: float | None = None


def tagged(source: BoxSource, options: TagOptions, run: Run, loading: LoaderOptions) -> BoxSource:
    """The split with `time` of every record.

    Pixels are looked at only of images that nothing else tells of.

    Args:
        source: images.
        options: how they are tagged.
        run: cache, progress, warnings.
        loading: loader processes, and what an unreadable image does.

    Raises:
        DataError: a list that cannot be read or does not fit, or an unreadable image.
    """
    tags = tags_of(source, options, run, loading)
    records = [dataclasses.replace(record, time=tag.time) for record, tag in zip(source.records, tags, strict=True)]
    return source.with_records(records)


def tags_of(source: BoxSource, options: TagOptions, run: Run, loading: LoaderOptions) -> list[Tag]:
    """The tag of each image of a split, in order: see `tagged`."""
    listed = _listed(source, options.time_csv, run) if options.time_csv else {}
    tags = [said(record, options, listed) for record in source.records]
    unknown = [index for index, tag in enumerate(tags) if tag is None]
    seen = dict(zip(unknown, by_pixels(source, unknown, options, run, loading), strict=True))
    return [seen[index] if tag is None else tag for index, tag in enumerate(tags)]


def said(record: BoxRecord, options: TagOptions, listed: dict[str, Condition]) -> Tag | None:
    """What is known of an image without looking at it."""
    if record.file in listed:
        return Tag(listed[record.file], "list")
    if options.time_from == "metadata" and record.time is not None:
        return Tag(record.time, "metadata")
    if options.night_regex is not None:
        where = record.file if record.path is None else record.path.as_posix()
        return Tag("night" if re.search(options.night_regex, where) else "day", "name")
    return None


def by_pixels(
    source: BoxSource, indices: Sequence[int], options: TagOptions, run: Run, loading: LoaderOptions
) -> list[Tag]:
    """Tags of some images of a split by their luminance."""
    if not len(indices):
        return []
    seen = frame_features(source, indices, loading, run)
    values = seen.lightness[:, STATISTICS.index(options.night_stat)].tolist()
    records = [source.records[index] for index in indices]
    readable = [k for k, good in enumerate(seen.readable.tolist()) if good]
    found: list[Tag] = [Tag(None, "pixels")] * len(indices)
    for name in dict.fromkeys(record.source for record in records):
        own = [k for k in readable if records[k].source == name]
        numbers = [values[k] for k in own]
        limit = threshold(options, f"{name}, split {source.split},", numbers, run.warn)
        times = conditions(numbers, [records[k] for k in own], limit, options)
        _remark_outvoted(name, times, of_frames(numbers, limit), run.warn)
        for k, time in zip(own, times, strict=True):
            found[k] = Tag(time, "pixels", values[k])
    return found


def conditions(
    values: Sequence[float], records: Sequence[BoxRecord], limit: float, options: TagOptions
) -> list[Condition]:
    """Day or night by a threshold, with or without the vote of sequences."""
    if options.night_vote == "frame":
        return of_frames(values, limit)
    return voted(values, [(record.source, record.seq) for record in records], limit)


def _remark_outvoted(
    name: str, times: Sequence[Condition], alone: Sequence[Condition], warn: Callable[[str], None]
) -> None:
    """Say it where sequences overrule so many of their images that they may be none of one lighting."""
    count = sum(one != other for one, other in zip(times, alone, strict=True))
    if len(times) >= FEW and count > MUCH * len(times):
        kinds = ", ".join(f"{sum(time == kind for time in alone)} {kind}" for kind in ("day", "night"))
        warn(
            f"{count} of {len(times)} images of {name} are outvoted by the others of their sequence (each alone: "
            f"{kinds}). If these are no sequences of one lighting, give --night-vote frame or --seq-regex"
        )


def threshold(options: TagOptions, name: str, values: Sequence[float], warn: Callable[[str], None]) -> float:
    """The luminance below which it is night, of the images of one source."""
    if options.night_thresh != "auto":
        return options.night_thresh
    found = otsu(torch.tensor(values)) if values else None
    if found is not None and found.holds:
        return found.threshold
    why = "too few" if found is None else f"variance between them {found.ratio:.2f} of all, {found.share:.1%} in one"
    warn(f"--night-thresh auto: the images of {name} do not fall into two groups ({why}); {NIGHT_THRESH:g} is used")
    return NIGHT_THRESH


def _listed(source: BoxSource, path: str, run: Run) -> dict[str, Condition]:
    """Times by file, of a list with columns file and time; of one with a column split, the lines of this split.

    Raises:
        DataError: it cannot be read, or says another time.
    """
    option, example = f"--time-csv {path}", "Give a first line file,time and lines like image.jpg,night"
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = [{"split": source.split, **row} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{option} cannot be read: {error}", example) from error
    wrong = [row for row in rows if not row.get("file") or row.get("time") not in get_args(Condition)]
    if wrong or not rows:
        shown = some([",".join(map(str, row.values())) for row in wrong]) if wrong else "it is empty"
        raise DataError(f"{option} has {counted(len(wrong), 'line')} without day or night: {shown}", example)
    mine = [row for row in rows if row["split"] == source.split]
    listed: dict[str, Condition] = {row["file"]: "night" if row["time"] == "night" else "day" for row in mine}
    if not any(record.file in listed for record in source.records):
        run.warn(f"{option} names no image of {source.name} {source.split}")
    return listed
