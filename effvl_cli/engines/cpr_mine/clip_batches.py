"""Batches of two random clips of each video, as frames; what unreadable videos are replaced by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core import distributed, seeds
from effvl_cli.core.errors import DataError
from effvl_cli.data.clip_sampling import train_start
from effvl_cli.data.clips import ClipSource, Frames
from effvl_cli.data.loader import Make, SampleLoader
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.video_transforms import clip_noise
from effvl_cli.engines.common.batches import Stream

HOPS = 3  # other videos that are tried in the place of an unreadable one
HELD_BYTES = 2**28  # of decoded frames that are kept in memory


@dataclass(frozen=True)
class ClipPair:
    """Two clips of a video.

    Attributes:
        index: of the video, after replacement.
        clips: two of (F, H, W, 3).
        noise: (2, NOISE), what augments each.
        failed: videos that could not be read, and why.
    """

    index: int
    clips: tuple[Frames, Frames]
    noise: Tensor
    failed: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class ClipBatch:
    """Two clips of each of B videos, on this process.

    Attributes:
        clips: two of (B, F, H, W, 3) uint8.
        indices: (B,) int64 of the videos.
        noise: (2, B, NOISE), what augments them.
        failed: videos that could not be read.
    """

    clips: tuple[Tensor, Tensor]
    indices: Tensor
    noise: Tensor
    failed: tuple[tuple[int, str], ...] = ()


class PairReader:
    """Two random clips of a video.

    Args:
        source: videos.
        frames: of a clip, with those that the views need in addition.
        stride: between them.
        held: all frames of each video, where they are in memory.
        on_bad: "skip" takes another video for an unreadable one.
        seed: of which clips, and which other video.
    """

    def __init__(
        self, source: ClipSource, frames: int, stride: int, held: Sequence[Frames] | None, *, on_bad: str, seed: int
    ) -> None:
        self.source, self.frames, self.stride, self.held, self.seed = source, frames, stride, held, seed
        self.hops = HOPS if on_bad == "skip" else 0

    def __call__(self, index: int, epoch: int) -> ClipPair:
        """The clips of a video in an epoch.

        Raises:
            DataError: it is unreadable, and so are those tried in its place.
        """
        failed: list[tuple[int, str]] = []
        for hop in range(self.hops + 1):
            chosen = index if not hop else self._other(index, epoch, hop)
            try:
                clips = (self._clip(chosen, epoch, 0), self._clip(chosen, epoch, 1))
            except DataError as error:
                if hop == self.hops:
                    raise
                failed.append((chosen, error.message))
                continue
            noise = torch.cat([clip_noise(self.seed, epoch, [index], clip) for clip in (0, 1)])
            return ClipPair(chosen, clips, noise, tuple(failed))
        raise AssertionError("not reached")

    def _other(self, index: int, epoch: int, hop: int) -> int:
        return seeds.derive(self.seed, "replacement", epoch, index, hop) % len(self.source)

    def _clip(self, index: int, epoch: int, number: int) -> Frames:
        generator = seeds.generator(self.seed, "clip", epoch, index, number)
        start = train_start(self.source.num_frames(index), self.frames, self.stride, generator)
        if self.held is not None:
            return self.held[index][start : start + self.frames * self.stride : self.stride]
        found: Frames = self.source.read(index, start, self.frames, self.stride)
        return found


def held_frames(source: ClipSource) -> Sequence[Frames] | None:
    """All frames of a data set that is small, decoded once; None for a larger one."""
    count = sum(source.num_frames(index) for index in range(len(source)))
    if not count or count * source.read(0, 0, 1).nbytes > HELD_BYTES:
        return None
    return [source.read(index, 0, source.num_frames(index)) for index in range(len(source))]


def collate(pairs: Sequence[ClipPair]) -> ClipBatch:
    """A batch of clips of one size."""
    first, second = (torch.from_numpy(np.stack([pair.clips[k] for pair in pairs])) for k in (0, 1))
    return ClipBatch(
        (first, second),
        torch.tensor([pair.index for pair in pairs]),
        torch.stack([pair.noise for pair in pairs], dim=1),
        tuple(bad for pair in pairs for bad in pair.failed),
    )


class PairLoader:
    """Streams of batches of this process.

    Args:
        reader: makes the pairs.
        workers: loader processes.
        on_bad: what unreadable videos do.
    """

    def __init__(self, reader: PairReader, *, workers: int, on_bad: str, seed: int) -> None:
        self.total = len(reader.source)

        def make_at(step: int) -> Make[ClipPair]:
            return reader

        self.loader: SampleLoader[ClipPair, ClipBatch] = SampleLoader(
            make_at, collate, self.total, seed=seed, workers=workers, on_bad=on_bad
        )

    def stream(self, sampler: EpochSampler) -> Stream[ClipBatch]:
        """Batches from any step on."""
        world = distributed.world()

        def batches(start: int) -> Iterator[ClipBatch]:
            for batch, _ in self.loader.endless(sampler, start_step=start, rank=world.rank, world=world.size):
                for index, message in batch.failed:
                    self.loader.bad.meet(DataError(message), index)
                yield batch

        return batches
