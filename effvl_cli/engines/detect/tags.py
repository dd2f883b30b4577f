"""Day and night of the images of a data set: by a list, by metadata, by names, by pixels, in this order."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from effvl_cli.config.detect_tag import NIGHT_THRESH, TagOptions
from effvl_cli.core.run import Run
from effvl_cli.core.table import counted
from effvl_cli.data.boxes import BoxRecord, BoxSource
from effvl_cli.data.files import some
from effvl_cli.engines.common.batches import LoaderOptions
from effvl_cli.engines.detect.frame_features import frame_features
from effvl_cli.engines.detect.time_list import TimeList
from effvl_cli.techniques.detect.tagging import STATISTICS, Condition, Statistic, of_frames, otsu, voted

MUCH, FEW = 0.2, 5  # share of a sequence's images that are outvoted which is remarked, of so many at least

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


class Tagger:
    """Tags the images of splits of one data set.

    Args:
        options: how they are tagged.
        run: cache, progress, warnings.
        loading: loader processes, and what an unreadable image does.
        splits: gives all splits, for a threshold that is found from all images of a source.

    Raises:
        DataError: a list that cannot be read.
    """

    def __init__(
        self, options: TagOptions, run: Run, loading: LoaderOptions, splits: Callable[[], Iterable[BoxSource]]
    ) -> None:
        self.options, self.run, self.loading, self._splits = options, run, loading, splits
        self._listed = None if options.time_csv is None else TimeList.read(options.time_csv)

    def tagged(self, source: BoxSource) -> BoxSource:
        """A split with `time` of every record.

        Raises:
            DataError: a list that cannot be read or does not fit, or an unreadable image.
        """
        records = [
            dataclasses.replace(record, time=tag.time)
            for record, tag in zip(source.records, self.tags_of(source), strict=True)
        ]
        return source.with_records(records)

    def tags_of(self, source: BoxSource) -> list[Tag]:
        """The tag of each image of a split, in order; pixels are looked at only where nothing else tells.

        Raises:
            DataError: as `tagged`.
        """
        tags = self.said_of(source)
        unknown = [index for index, tag in enumerate(tags) if tag is None]
        seen = dict(zip(unknown, self._by_pixels(source, unknown), strict=True))
        return [seen[index] if tag is None else tag for index, tag in enumerate(tags)]

    def said_of(self, source: BoxSource) -> list[Tag | None]:
        """What is known of each image of a split without looking at it; None: nothing.

        Raises:
            DataError: a list that says both times of an image.
        """
        listed = {} if self._listed is None else self._listed.of(source, self.run.warn)
        return [
            Tag(listed[place], "list") if place in listed else said(record, self.options)
            for place, record in enumerate(source.records)
        ]

    def _by_pixels(self, source: BoxSource, indices: Sequence[int]) -> list[Tag]:
        """Tags of some images of a split by their luminance."""
        if not len(indices):
            return []
        seen = frame_features(source, indices, self.loading, self.run)
        values = seen.lightness[:, STATISTICS.index(self.options.night_stat)].tolist()
        records = [source.records[index] for index in indices]
        readable = [k for k, good in enumerate(seen.readable.tolist()) if good]
        found: list[Tag] = [Tag(None, "pixels")] * len(indices)
        for name in dict.fromkeys(record.source for record in records):
            own = [k for k in readable if records[k].source == name]
            numbers, members = [values[k] for k in own], [records[k] for k in own]
            limit = self.threshold(name)
            times = conditions(numbers, members, limit, self.options)
            _remark_outvoted(f"{name}, split {source.split},", members, times, of_frames(numbers, limit), self.run.warn)
            for k, time in zip(own, times, strict=True):
                found[k] = Tag(time, "pixels", values[k])
        return found

    def threshold(self, name: str, stat: Statistic | None = None) -> float:
        """The luminance below which it is night, in a source; of another statistic than the options' if that is given.

        Raises:
            DataError: an unreadable image.
        """
        if self.options.night_thresh != "auto":
            return self.options.night_thresh
        return self.auto_threshold(name, stat, self.run.warn)

    def auto_threshold(
        self, name: str, stat: Statistic | None = None, warn: Callable[[str], None] = lambda text: None
    ) -> float:
        """Otsu's of all images of a source; the usual one, with a warning, where these are no two groups.

        Raises:
            DataError: an unreadable image.
        """
        splits, values = self._everything.get(name, ([], []))
        column = STATISTICS.index(stat or self.options.night_stat)
        found = otsu(torch.tensor([row[column] for row in values])) if values else None
        if found is not None and found.holds:
            return found.threshold
        why = (
            "none can be read"
            if found is None
            else f"the variance between them is {found.ratio:.2f} of all, the smaller one has {found.share:.1%}"
        )
        warn(
            f"--night-thresh auto: the {len(values)} images of {name} ({', '.join(splits)}) do not fall into two "
            f"groups ({why}); {NIGHT_THRESH:g} is used"
        )
        return NIGHT_THRESH

    @cached_property
    def _everything(self) -> dict[str, tuple[list[str], list[list[float]]]]:
        """Splits and statistics of the readable images of each source."""
        found: dict[str, tuple[list[str], list[list[float]]]] = {}
        for source in self._splits():
            seen = frame_features(source, range(len(source)), self.loading, self.run)
            for record, row, good in zip(source.records, seen.lightness.tolist(), seen.readable.tolist(), strict=True):
                splits, values = found.setdefault(record.source, ([], []))
                if source.split not in splits:
                    splits.append(source.split)
                if good:
                    values.append(row)
        return found


def said(record: BoxRecord, options: TagOptions) -> Tag | None:
    """What metadata or the name of an image say."""
    if options.time_from == "metadata" and record.time is not None:
        return Tag(record.time, "metadata")
    if options.night_regex is not None:
        where = record.file if record.path is None else record.path.as_posix()
        return Tag("night" if re.search(options.night_regex, where) else "day", "name")
    return None


def conditions(
    values: Sequence[float], records: Sequence[BoxRecord], limit: float, options: TagOptions
) -> list[Condition]:
    """Day or night by a threshold, with or without the vote of sequences."""
    if options.night_vote == "frame":
        return of_frames(values, limit)
    return voted(values, [record.of_one_light for record in records], limit)


def _remark_outvoted(
    where: str,
    records: Sequence[BoxRecord],
    times: Sequence[Condition],
    alone: Sequence[Condition],
    warn: Callable[[str], None],
) -> None:
    """Say which sequences overrule so many of their images that they may be none of one lighting."""
    members: dict[tuple[str, str], list[int]] = {}
    for k, record in enumerate(records):
        members.setdefault(record.of_one_light, []).append(k)
    mixed = []
    for (_, seq), own in members.items():
        nights = sum(alone[k] == "night" for k in own)
        if len(own) >= FEW and sum(times[k] != alone[k] for k in own) > MUCH * len(own):
            mixed.append(f"{seq} ({len(own) - nights} day, {nights} night, tagged {times[own[0]]})")
    if mixed:
        warn(
            f"{where} has {counted(len(mixed), 'sequence')} of mixed lighting, each image alone: {some(mixed)}. If "
            "these are no sequences of one lighting, give --night-vote frame or --seq-regex"
        )
