"""Clips of videos: the interface of a data set of videos to the rest of the toolkit.

A clip is T frames of one video: frame `start`, `start + stride` and so on. Frames are counted in the order in which
they are shown.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.errors import DataError
from effvl_cli.data import CLIPS, open_source
from effvl_cli.data.source import Source

REASONS = ("open_failed", "no_video_stream", "zero_frames", "too_short", "decode_error")
MOTION_BLOCK = 8  # px; side of the cells for which a codec's motion vectors are given

Frames = NDArray[np.uint8]
Motion = NDArray[np.float32]


class BadClipError(DataError):
    """A video that cannot give the frames asked for.

    Args:
        message: what is wrong, naming the video.
        hint: the fix.
        reason: one of `REASONS`.
    """

    def __init__(self, message: str, hint: str = "", reason: str = "decode_error") -> None:
        super().__init__(message, hint)
        self.reason = reason


class ClipSource(Source, Protocol):
    """One split of a collection of videos.

    Attributes:
        kind: "clips".
        classes: readable class names; empty when there are none.
        labels: (M,) int64; -1 where a video's class is unknown.
        groups: (M,) int64; videos cut from one source video have the same number.
    """

    kind: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]

    def num_frames(self, index: int) -> int:
        """Frames that the video decodes to.

        Raises:
            BadClipError: it cannot be decoded.
        """
        ...

    def read(self, index: int, start: int, length: int, stride: int = 1) -> Frames:
        """(T, H, W, 3) frames start, start + stride, ...; in place of those below 0, the first frame.

        Raises:
            BadClipError: the video ends before the last of them, or too many cannot be decoded.
        """
        ...

    def motion(self, index: int, start: int, length: int, stride: int = 1) -> Motion:
        """(T, H / 8, W / 8, 2) the codec's motion from each frame of the clip to the next one of the video, in px.

        Raises:
            BadClipError: as `read`.
            DataError: the source is not made of video files.
        """
        ...


def load_clips(spec: str, split: str, *, root: str | None = None, seed: int = 0) -> ClipSource:
    """One split of a data set of videos.

    Args:
        spec: "NAME" or "NAME:ARGUMENT".
        split: "train", "val" or "test".
        root: folder that a relative path in `spec` starts from.
        seed: of generated videos; those of files do not depend on it.

    Raises:
        UsageError: unknown name, or samples of another kind.
        DataError: missing, empty or unreadable.
    """
    return cast(ClipSource, open_source(spec, split, kind=CLIPS, root=root, seed=seed))


def frame_numbers(name: str, frames: int, start: int, length: int, stride: int) -> NDArray[np.int64]:
    """(T,) numbers of a clip's frames, ascending: start, start + stride, ..., 0 in place of those below it.

    Raises:
        BadClipError: they go beyond the video's last frame.
    """
    numbers = start + stride * np.arange(length, dtype=np.int64)
    if numbers[-1] >= frames:
        text = f"{name} has {frames} frames, and frames {start} to {numbers[-1]} are wanted"
        raise BadClipError(text, "Ask for a shorter clip", reason="too_short")
    return numbers.clip(0)


def numbered(names: Sequence[str]) -> NDArray[np.int64]:
    """(M,) int64; equal names have equal numbers, in the order in which they first occur."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)
