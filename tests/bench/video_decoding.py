"""How fast videos are decoded, beside a plain loop of PyAV: a row of `make bench-cpr-mine`.

Whole videos to (T, H, W, 3) by both, in turn; the reader also finds its frames by number, checks them for damage and
turns them upright.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from effvl_cli.core.bench import Latency, Ratio, ratio, timed
from effvl_cli.data.clips import Frames
from effvl_cli.data.video import VideoReader, index_video

LEAST = 0.95
COUNT, HEIGHT, WIDTH = 200, 240, 320  # of the video that is written where none is given


@dataclass(frozen=True)
class Decoding:
    """Times of one video.

    Attributes:
        name: of the file.
        frames: in it.
        ours: of the reader.
        plain: of the loop.
    """

    name: str
    frames: int
    ours: Latency
    plain: Latency

    @property
    def speed(self) -> Ratio:
        """Frames per second of the reader over those of the loop."""
        return ratio(self.plain, self.ours)

    def row(self) -> dict[str, object]:
        """As the benchmark prints it."""
        return {
            "what": f"decoding {self.name}, {self.frames} frames",
            "frames_per_s": 1000 * self.frames / self.ours.median_ms,
            "plain_frames_per_s": 1000 * self.frames / self.plain.median_ms,
            "ratio": self.speed.value,
            "ratio_ci95": (self.speed.low, self.speed.high),
            "target": f"lower end at least {LEAST}",
            "passed": self.speed.low >= LEAST,
        }


def plain(path: Path) -> Frames:
    """(T, H, W, 3) by PyAV alone."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def measure(path: Path, seconds: float = 10.0) -> Decoding:
    """Both on one video, which they decode to the same frames."""
    reader = VideoReader(path, index_video(path))

    def ours() -> Frames:
        return reader.read(0, reader.index.frames)

    assert np.array_equal(ours(), plain(path))
    found = timed({"ours": ours, "plain": lambda: plain(path)}, torch.device("cpu"), seconds=seconds)
    return Decoding(path.name, reader.index.frames, found["ours"], found["plain"])


def written(folder: Path) -> Path:
    """A video of moving texture, MPEG-4 as UCF101 has it."""
    generator = np.random.default_rng(0)
    texture = generator.integers(0, 255, (HEIGHT // 8 + COUNT, WIDTH // 8 + COUNT, 3), dtype=np.uint8)
    wide = texture.repeat(8, 0).repeat(8, 1)
    path = folder / "texture.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 1_000_000
        for t in range(COUNT):
            picture = np.ascontiguousarray(wide[t : t + HEIGHT, 2 * t : 2 * t + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def main() -> int:
    """Print a row for each video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path, help="files (default: one that is written here)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each video and program")
    options = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for path in options.videos or [written(Path(folder))]:
            row = measure(path, options.seconds).row()
            print(row, flush=True)
            good &= bool(row["passed"])
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
