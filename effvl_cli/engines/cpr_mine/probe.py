"""`effvl cpr-mine probe`: what the videos of a data set decode to, and which of them cannot be used.

The index of each video goes into the cache, where later commands find it.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from effvl_cli.config.cpr_mine_probe import ProbeConfig
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.files import write_csv, write_json
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table
from effvl_cli.data import SPLITS
from effvl_cli.data.clip_sampling import shortest
from effvl_cli.data.clips import REASONS
from effvl_cli.data.loader import SampleLoader, loader_workers
from effvl_cli.data.video_sets import VideoFiles
from effvl_cli.engines.cpr_mine.clip_data import open_clips
from effvl_cli.engines.cpr_mine.clip_splits import BAD_VIDEOS

VIDEOS = "videos.csv"
TOO_SHORT = "too_short"
SHOWN = 3  # sizes of frames


@dataclasses.dataclass(frozen=True)
class Probed:
    """A video.

    Attributes:
        id: its name.
        reason: why it cannot be used; "" if it can.
        message: the same as a sentence.
        frames: that it, or the listed part of it, decodes to.
        fps: frames per second.
        height: px, as displayed.
        width: px, as displayed.
        rotation: degrees from the stored to the displayed picture.
        damaged_packets: that are left out.
    """

    id: str
    reason: str = ""
    message: str = ""
    frames: int = 0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    rotation: int = 0
    damaged_packets: int = 0


COLUMNS = tuple(field.name for field in dataclasses.fields(Probed))


def run(config: ProbeConfig, run: Run) -> None:
    """Scan every video of the splits once."""
    sources = _sources(config)
    need = shortest(config.frames, config.stride)
    known: dict[str, Probed] = {}
    rows, bad = [], []
    for source in sources:
        fresh = [index for index in range(len(source)) if source.ids[index] not in known]
        known.update((row.id, row) for row in _scanned(source, fresh, need, config, run))
        own = [known[name] for name in source.ids]
        unusable = [row for row in own if row.reason not in ("", TOO_SHORT)]
        run.report.data(source, num_samples=len(own), bad_files=len(unusable))
        rows.append(_summary(source, own))
    found = list(known.values())
    bad = [{"id": row.id, "reason": row.reason, "message": row.message} for row in found if row.reason]
    run.write(BAD_VIDEOS, write_json, bad)
    run.write(VIDEOS, write_csv, COLUMNS, [dataclasses.asdict(row) for row in found])
    usable = sum(not row.reason for row in found)
    run.report.metric("usable_share", usable / len(found), n=len(found))
    run.report.technique.update(splits=rows, reasons=_reasons(found), need=need, videos=len(found), usable=usable)
    if bad:
        run.warn(f"{len(bad)} of {len(found)} videos cannot be used, see {BAD_VIDEOS}")


def _sources(config: ProbeConfig) -> list[VideoFiles]:
    """The splits that there are.

    Raises:
        UsageError: a data set that is not made of files.
        DataError: the split, or all of them, are missing.
    """
    found: list[VideoFiles] = []
    errors: list[DataError] = []
    for split in SPLITS if config.split == "all" else (config.split,):
        try:
            source = open_clips(config, split)
        except DataError as error:
            errors.append(error)
            continue
        if not isinstance(source, VideoFiles):
            raise UsageError(f"--data {config.data} is not made of video files", "Give video:FOLDER or the like")
        found.append(source)
    if not found:
        raise errors[0]
    return found


def _scanned(source: VideoFiles, indices: Sequence[int], need: int, config: ProbeConfig, run: Run) -> list[Probed]:
    loader: SampleLoader[Probed, list[Probed]] = SampleLoader(
        lambda step: lambda index, epoch: probed(source, index, need),
        list,
        len(source),
        workers=loader_workers(config.workers, run.device.type),
    )
    rows: list[Probed] = []
    with run.progress(f"{source.name} {source.split}", len(indices)) as progress:
        for batch, _ in loader.once(np.array(indices, dtype=np.int64), chunk=1):
            rows += batch or []
            progress.update(len(rows))
            run.check_stop()  # what was scanned is in the cache
    return rows


def probed(source: VideoFiles, index: int, need: int) -> Probed:
    """What one video decodes to; its index is in the cache afterwards.

    Args:
        source: videos.
        index: of the video.
        need: frames that it has to have.
    """
    name = source.ids[index]
    try:
        about, frames = source.about(index), source.num_frames(index)
    except DataError as error:
        return Probed(name, getattr(error, "reason", "decode_error"), error.message)
    row = Probed(
        name,
        frames=frames,
        fps=round(about.fps, 3),
        height=about.height,
        width=about.width,
        rotation=about.rotation,
        damaged_packets=len(about.lost),
    )
    if frames < need:
        return dataclasses.replace(row, reason=TOO_SHORT, message=f"{frames} frames, and clips need {need}")
    return row


def _reasons(rows: Sequence[Probed]) -> dict[str, int]:
    """Videos by reason, in the order of the reasons; those that do not occur are 0."""
    counts = Counter(row.reason for row in rows)
    return {reason: counts[reason] for reason in REASONS}


def _summary(source: VideoFiles, rows: Sequence[Probed]) -> dict[str, Any]:
    decoded = [row for row in rows if row.frames]
    frames = [row.frames for row in decoded]
    sizes = Counter(f"{row.width} x {row.height}" for row in decoded)
    return {
        "split": source.split,
        "videos": len(rows),
        "classes": len(source.classes),
        "sources": len(set(source.groups.tolist())),
        "frames": sum(frames),
        "frames_min": min(frames, default=None),
        "frames_median": float(np.median(frames)) if frames else None,
        "frames_max": max(frames, default=None),
        "sizes": dict(sizes.most_common()),
        "rotated": sum(row.rotation != 0 for row in decoded),
        "damaged": sum(row.damaged_packets > 0 for row in decoded),
        "reasons": _reasons(rows),
    }


def preview(config: ProbeConfig) -> list[Table]:
    """How many videos there are."""
    rows: list[tuple[Cell, ...]] = []
    with suppress(DataError):
        rows = [(s.split, len(s), s.expected, len(s.classes)) for s in _sources(config)]
    return [Table("what is scanned", ("split", "videos", "published", "classes"), tuple(rows))]


def table(report: Report) -> Table:
    """A row for each split."""
    about = report.technique
    rows = tuple(map(_cells, about["splits"]))
    columns = (
        "split",
        "videos",
        "sources",
        "frames: least",
        "median",
        "most",
        "size",
        "damaged",
        "unusable",
        "too short",
    )
    notes = []
    if unusable := {reason: count for reason, count in about["reasons"].items() if count and reason != TOO_SHORT}:
        notes.append(f"unusable: {', '.join(f'{count} {reason}' for reason, count in unusable.items())}")
    if short := about["reasons"][TOO_SHORT]:
        notes.append(f"too short: {short} with fewer than {about['need']} frames")
    return Table(report.command, columns, rows, tuple(notes))


def _cells(row: dict[str, Any]) -> tuple[Cell, ...]:
    sizes = list(row["sizes"].items())
    size = ", ".join(f"{name} ({count})" for name, count in sizes[:SHOWN])
    if len(sizes) > SHOWN:
        size += f" and {len(sizes) - SHOWN} more"
    unusable = sum(count for reason, count in row["reasons"].items() if reason != TOO_SHORT)
    median = None if row["frames_median"] is None else f"{row['frames_median']:g}"
    return (
        *(row["split"], row["videos"], row["sources"], row["frames_min"], median, row["frames_max"], size or None),
        *(row["damaged"], unusable, row["reasons"][TOO_SHORT]),
    )
