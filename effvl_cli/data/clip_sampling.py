"""Which frames of a video make a clip, as in the code of CoCLR (arXiv 2010.09709): T frames, `stride` apart.

A video that is not longer than a clip gives one clip whose start is below 0: its first frame is repeated before it.
"""

import torch

from effvl_cli.data.clips import BadClipError


def shortest(frames: int, stride: int) -> int:
    """Frames that a video needs to be used at all."""
    return frames * stride // 2 + 2


def train_start(num_frames: int, frames: int, stride: int, generator: torch.Generator) -> int:
    """First frame of a random clip, uniform over 0 to n - T * stride - 1; below 0 where frames are to be repeated.

    Args:
        num_frames: n, of the video.
        frames: T.
        stride: between them.
        generator: of the choice.

    Raises:
        BadClipError: the video is too short.
    """
    free = _free(num_frames, frames, stride)
    return free if free <= 0 else int(torch.randint(free, (), generator=generator))


def test_starts(num_frames: int, frames: int, stride: int, step: int | None = None) -> list[int]:
    """First frames of the windows of a test video, by default every T * stride / 2 - 1 frames.

    Raises:
        BadClipError: the video is too short.
    """
    free = _free(num_frames, frames, stride)
    return [free] if free <= 0 else list(range(0, free + 1, step or max(1, frames * stride // 2 - 1)))


def centre_start(num_frames: int, frames: int, stride: int) -> int:
    """First frame of the clip in the middle.

    Raises:
        BadClipError: the video is too short.
    """
    free = _free(num_frames, frames, stride)
    return free if free <= 0 else free // 2


def _free(num_frames: int, frames: int, stride: int) -> int:
    """n - T * stride.

    Raises:
        BadClipError: n is below `shortest`.
    """
    if num_frames < shortest(frames, stride):
        text = f"a video has {num_frames} frames, and clips of {frames} frames, stride {stride}, need"
        raise BadClipError(f"{text} {shortest(frames, stride)}", "Give shorter --frames", reason="too_short")
    return num_frames - frames * stride
