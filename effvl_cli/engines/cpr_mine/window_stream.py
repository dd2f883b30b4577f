"""Windows of videos, in order, as batches of frames of one size; what could not be read is counted by reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core.errors import DataError
from effvl_cli.data.clip_sampling import centre_start, test_starts
from effvl_cli.data.clips import ClipSource
from effvl_cli.data.loader import BadFiles, Make, SampleLoader

SPAN = 512  # frames that are decoded at once, unless a window is longer
TOO_SHORT = "too_short"
UNREADABLE = "decode_error"  # where an error gives no reason


@dataclass(frozen=True)
class Window:
    """A clip of a video.

    Attributes:
        index: number of the video.
        start: its first frame; below 0 where the video is shorter: its first frame is then repeated before it.
        length: frames of the video.
    """

    index: int
    start: int
    length: int

    def frames(self, geometry: "Geometry") -> NDArray[np.int64]:
        """(F,) numbers of its frames, ascending; what views need after the last frame of the video repeats that."""
        wanted = self.start + np.arange(geometry.frames + geometry.context) * geometry.stride
        return np.asarray(wanted.clip(0, self.length - 1), dtype=np.int64)


@dataclass(frozen=True)
class Geometry:
    """Frames of a window.

    Attributes:
        frames: of a clip.
        stride: between them.
        context: further frames at the end that views need.
    """

    frames: int
    stride: int
    context: int = 0

    @property
    def span(self) -> int:
        """T of the sampling rules: frames times stride."""
        return self.frames * self.stride

    def starts(self, length: int, *, center: bool, step: int | None) -> list[int]:
        """First frames of a video's windows: the middle one, or one every `step` frames (default: half overlapping).

        Raises:
            BadClipError: it is too short.
        """
        if center:
            return [centre_start(length, self.frames, self.stride)]
        return test_starts(length, self.frames, self.stride, step)


@dataclass
class Failures:
    """Videos that could not be used, by reason; too short ones do not count against the limit of --on-bad.

    Args:
        on_bad: "error", "skip" or "skip-all".
        total: number of videos.
    """

    on_bad: str
    total: int
    errors: dict[int, DataError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bad = BadFiles(self.on_bad, self.total)

    def meet(self, error: DataError, index: int) -> None:
        """Count a video.

        Raises:
            DataError: it is not to be left out, or too many were.
        """
        if self.reason_of(error) != TOO_SHORT:
            try:
                self.bad.meet(error, index)
            except DataError as stop:
                if self.on_bad != "skip":
                    raise
                raise DataError(stop.message, "Mend or remove them, or give --on-bad skip-all") from error
        self.errors[index] = error

    @staticmethod
    def reason_of(error: DataError) -> str:
        """What the reader says of it in one word."""
        return str(getattr(error, "reason", "") or UNREADABLE)

    def rows(self, source: ClipSource) -> list[dict[str, str]]:
        """Name, reason and message of each video, for `bad_videos.json`."""
        return [
            {"id": source.ids[index], "reason": self.reason_of(error), "message": error.message}
            for index, error in sorted(self.errors.items())
        ]

    def counts(self) -> dict[str, int]:
        """Videos by reason, the most frequent first."""
        found: dict[str, int] = {}
        for reason in map(self.reason_of, self.errors.values()):
            found[reason] = found.get(reason, 0) + 1
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


class Lengths(Protocol):
    """Videos, as far as their numbers of frames go."""

    def __len__(self) -> int: ...

    def num_frames(self, index: int) -> int:
        """Frames of a video."""
        ...


def windows_of(
    source: Lengths, geometry: Geometry, failures: Failures, *, center: bool, step: int | None
) -> list[Window]:
    """All windows of all videos in order; a video without any is counted.

    Args:
        source: videos.
        geometry: of a window.
        failures: told of videos whose length cannot be found, or that are too short.
        center: the window in the middle alone.
        step: frames from one window to the next; None: half a window.
    """
    found = []
    for index in range(len(source)):
        try:
            length = source.num_frames(index)
            starts = geometry.starts(length, center=center, step=step)
        except DataError as error:
            failures.meet(error, index)
            continue
        found += [Window(index, start, length) for start in starts]
    return found


@dataclass(frozen=True)
class _Segment:
    """Frames (n, H, W, 3) that cover some windows of a video, from the number `first` on, `step` apart."""

    windows: tuple[Window, ...]
    frames: Tensor
    first: int
    step: int

    def clip(self, window: Window, geometry: Geometry) -> Tensor:
        """(F, H, W, 3) of a window."""
        places = (window.frames(geometry) - self.first) // self.step
        return self.frames[torch.from_numpy(places)]


@dataclass(frozen=True)
class _Failed:
    """In the place of a segment; an error itself would count as unreadable, whatever its reason."""

    error: DataError


def _segments(windows: Sequence[Window], geometry: Geometry) -> list[tuple[Window, ...]]:
    """Windows of one video in runs whose frames are decoded together."""
    runs: list[list[Window]] = []
    for window in windows:
        if runs and window.frames(geometry)[-1] - runs[-1][0].frames(geometry)[0] < SPAN:
            runs[-1].append(window)
        else:
            runs.append([window])
    return [tuple(run) for run in runs]


class WindowStream:
    """Batches of windows of one frame size.

    Args:
        source: videos.
        windows: in the order of the videos.
        geometry: of each.
        batch_size: windows at a time.
        workers: loader processes.
        failures: told of what cannot be read.
    """

    def __init__(
        self,
        source: ClipSource,
        windows: Sequence[Window],
        geometry: Geometry,
        *,
        batch_size: int,
        workers: int,
        failures: Failures,
    ) -> None:
        self.source, self.geometry, self.batch_size, self.failures = source, geometry, batch_size, failures
        by_video: dict[int, list[Window]] = {}
        for window in windows:
            by_video.setdefault(window.index, []).append(window)
        self.segments = [part for own in by_video.values() for part in _segments(own, geometry)]
        self.workers = workers

    def __iter__(self) -> Iterator[tuple[list[Window], Tensor]]:
        """Windows, and their frames (b, F, H, W, 3) uint8; a video that fails comes no further."""
        waiting: list[tuple[Window, Tensor]] = []
        for segment in self._read():
            for window in segment.windows:
                clip = segment.clip(window, self.geometry)
                if waiting and waiting[0][1].shape != clip.shape:
                    yield _batch(waiting)
                    waiting = []
                waiting.append((window, clip))
                if len(waiting) == self.batch_size:
                    yield _batch(waiting)
                    waiting = []
        if waiting:
            yield _batch(waiting)

    def _read(self) -> Iterator[_Segment]:
        def make_at(step: int) -> Make[_Segment | _Failed]:
            return lambda number, epoch: self._segment(number)

        loader: SampleLoader[_Segment | _Failed, Any] = SampleLoader(
            make_at, list, len(self.segments), workers=self.workers
        )
        for found, numbers in loader.once(np.arange(len(self.segments)), chunk=1):
            assert found is not None  # errors are samples too
            (segment,) = found
            if isinstance(segment, _Failed):
                self.failures.meet(segment.error, self.segments[int(numbers[0])][0].index)
            else:
                yield segment

    def _segment(self, number: int) -> _Segment | _Failed:
        try:
            return _read_segment(self.source, self.segments[number], self.geometry)
        except DataError as error:
            return _Failed(error)


def _read_segment(source: ClipSource, windows: tuple[Window, ...], geometry: Geometry) -> _Segment:
    """No more frames than the windows need."""
    numbers = np.concatenate([window.frames(geometry) for window in windows])
    first, last = int(numbers.min()), int(numbers.max())
    step = geometry.stride if not ((numbers - first) % geometry.stride).any() else 1
    frames = source.read(windows[0].index, first, (last - first) // step + 1, step)
    return _Segment(windows, torch.from_numpy(frames), first, step)


def read_window(source: ClipSource, window: Window, geometry: Geometry) -> Tensor:
    """Frames (F, H, W, 3) uint8 of one window.

    Raises:
        DataError: unreadable.
    """
    return _read_segment(source, (window,), geometry).clip(window, geometry)


def _batch(waiting: Sequence[tuple[Window, Tensor]]) -> tuple[list[Window], Tensor]:
    return [window for window, _ in waiting], torch.stack([clip for _, clip in waiting])
