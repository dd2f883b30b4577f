"""Small video files that tests write."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av")


def greys(count: int = 40, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """(T, H, W, 3) frames; frame t has grey level 6 t."""
    return np.broadcast_to(
        (6 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, height, width, 3)
    ).copy()


def write_video(
    path: Path, frames: NDArray[np.uint8], *, codec: str = "ffv1", key_every: int = 8, b_frames: int = 2
) -> Path:
    """A file of frames at 10 a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = {"ffv1": "bgr0", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.gop_size = key_every
        if codec == "mpeg4":
            stream.max_b_frames = b_frames
            stream.bit_rate = 2_000_000
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file without a video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
