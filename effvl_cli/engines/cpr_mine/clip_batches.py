"""Batches of two random clips of each video, as frames; what unreadable videos are replaced by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core import distributed, seeds
from effvl_cli.core.errors import DataError
from effvl_cli.data.clip_sampling import train_start
from effvl_cli.data.clips import BadClipError, ClipSource, Frames, frame_numbers
from effvl_cli.data.loader import Make, SampleLoader
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.engines.common.batches import Stream
from effvl_cli.engines.cpr_mine.window_stream import Failures, Geometry

HOPS = 3  # other videos that are tried in the place of an unreadable one
HELD_BYTES = 2**28  # of decoded frames that are kept in memory

Failed = tuple[int, str, str]
"""A video that could not be read, the reason in one word, and the message."""


@dataclass(frozen=True)
class ClipPair:
    """Two clips of a video.

    Attributes:
        index: of the video, after replacement.
        seed: of its augmentation.
        clips: two of (F, H, W, 3).
        starts: their first frames; below 0 where that of the video is repeated.
        failed: videos that could not be read.
    """

    index: int
    seed: int
    clips: tuple[Frames, Frames]
    starts: tuple[int, int]
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True)
class SizeGroup:
    """The clips of a batch whose frames have one size.

    Attributes:
        rows: (G,) int64 places in the batch.
        clips: (2, G, F, H, W, 3) uint8.
        indices: (G,) int64 of the videos.
        starts: (2, G) int64 first frames.
    """

    rows: Tensor
    clips: Tensor
    indices: Tensor
    starts: Tensor


@dataclass(frozen=True)
class ClipBatch:
    """Two clips of each of B videos, on this process.

    Attributes:
        groups: the clips, by the size of their frames.
        indices: (B,) int64 of the videos.
        seeds: (B,) int64 of their augmentation.
        failed: videos that could not be read.
    """

    groups: tuple[SizeGroup, ...]
    indices: Tensor
    seeds: Tensor
    failed: tuple[Failed, ...] = ()


class PairReader:
    """Two random clips of a video.

    Args:
        source: videos.
        geometry: of a clip, with the further frames that views need.
        held: all frames of each video, where they are in memory.
        on_bad: "skip" and "skip-all" take another video for an unreadable one.
        seed: of which clips, and which other video.
    """

    def __init__(
        self, source: ClipSource, geometry: Geometry, held: Sequence[Frames] | None, *, on_bad: str, seed: int
    ) -> None:
        self.source, self.geometry, self.held, self.seed = source, geometry, held, seed
        self.hops = 0 if on_bad == "error" else HOPS

    def __call__(self, index: int, epoch: int) -> ClipPair:
        """The clips of a video in an epoch.

        Raises:
            DataError: it is unreadable, and so are those tried in its place.
        """
        failed: list[Failed] = []
        for hop in range(self.hops + 1):
            chosen = seeds.derive(self.seed, "replacement", epoch, index, hop) % len(self.source) if hop else index
            try:
                (first, one), (second, two) = (self._clip(chosen, epoch, number) for number in (0, 1))
            except DataError as error:
                failed.append((chosen, Failures.reason_of(error), error.message))
                if hop == self.hops:
                    raise
                continue
            seed = seeds.derive(self.seed, "augment", epoch, index)
            return ClipPair(chosen, seed, (one, two), (first, second), tuple(failed))
        raise AssertionError("not reached")

    def _clip(self, index: int, epoch: int, number: int) -> tuple[int, Frames]:
        """First frame and frames."""
        shape, total = self.geometry, self.source.num_frames(index)
        generator = seeds.generator(self.seed, "clip", epoch, index, number)
        start = train_start(total, shape.frames, shape.stride, generator)
        length = shape.frames + shape.context
        start = min(start, total - 1 - (length - 1) * shape.stride)  # views that need a further frame have it
        if self.held is None:
            return start, self.source.read(index, start, length, shape.stride)
        found: Frames = self.held[index][frame_numbers(str(index), total, start, length, shape.stride)]
        return start, found


def held_frames(source: ClipSource) -> Sequence[Frames] | None:
    """All frames of a data set that is small and can be read, decoded once; None for any other."""
    try:
        count = sum(source.num_frames(index) for index in range(len(source)))
        if not count or count * source.read(0, 0, 1).nbytes > HELD_BYTES:
            return None
        return [source.read(index, 0, source.num_frames(index)) for index in range(len(source))]
    except DataError:
        return None


def collate(pairs: Sequence[ClipPair]) -> ClipBatch:
    """A batch of clips, those of one size together."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for row, pair in enumerate(pairs):
        by_size.setdefault(pair.clips[0].shape, []).append(row)
    groups = tuple(
        SizeGroup(
            torch.tensor(rows),
            torch.from_numpy(np.stack([np.stack([pairs[row].clips[side] for row in rows]) for side in (0, 1)])),
            torch.tensor([pairs[row].index for row in rows]),
            torch.tensor([[pairs[row].starts[side] for row in rows] for side in (0, 1)]),
        )
        for rows in by_size.values()
    )
    return ClipBatch(
        groups,
        torch.tensor([pair.index for pair in pairs]),
        torch.tensor([pair.seed for pair in pairs]),
        tuple(bad for pair in pairs for bad in pair.failed),
    )


class PairLoader:
    """Streams of batches of this process.

    Args:
        reader: makes the pairs.
        failures: told of the videos that cannot be read.
        workers: loader processes.
        seed: of the loader.
    """

    def __init__(self, reader: PairReader, failures: Failures, *, workers: int, seed: int) -> None:
        self.failures = failures

        def make_at(step: int) -> Make[ClipPair]:
            return reader

        self.loader: SampleLoader[ClipPair, ClipBatch] = SampleLoader(
            make_at, collate, len(reader.source), seed=seed, workers=workers, on_bad=failures.on_bad
        )

    def stream(self, sampler: EpochSampler) -> Stream[ClipBatch]:
        """Batches from any step on."""
        world = distributed.world()

        def batches(start: int) -> Iterator[ClipBatch]:
            for batch, _ in self.loader.endless(sampler, start_step=start, rank=world.rank, world=world.size):
                for index, reason, message in batch.failed:
                    self.failures.meet(BadClipError(message, reason=reason), index)
                yield batch

        return batches
