"""Frames of a video file by their numbers, through PyAV.

A frame's number is its place in what the decoder puts out, from 0 on. Time stamps cannot say it: files with packed
B-frames give them out of order, and headers count frames that are not there. `index_video` decodes a file once and
notes the numbers of its key frames; a seek lands on one of these, and frames are counted from it.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from effvl_cli.core.errors import MissingPackageError
from effvl_cli.data.clips import BadClipError, Frames, frame_numbers

FROM_START_FRAMES, FROM_START = 400, 64  # shorter videos, and clips that begin earlier, are decoded without a seek
LEAST_FOUND = 0.9  # share of the frames of a clip, or of those that a header counts, that have to be there
LANDING = 1000  # packets after a seek among which a known key frame is looked for
ENCODE_AGAIN = "Download or encode it again"

Stamp = tuple[int | None, int | None]
"""Presentation and decoding time of a packet, in units of its stream."""


@dataclass(frozen=True)
class KeyFrame:
    """A frame that decoding can begin with.

    Attributes:
        number: of the frame.
        stamp: of its packet.
    """

    number: int
    stamp: Stamp


@dataclass(frozen=True)
class VideoIndex:
    """What one pass over a video says of it.

    Attributes:
        frames: that it decodes to.
        fps: frames per second; 0 where the file does not say.
        height: px, as displayed.
        width: px, as displayed.
        rotation: degrees from the stored to the displayed picture, counter-clockwise.
        keys: key frames in order.
        lost: for each packet that could not be decoded, the number of the frame after it.
    """

    frames: int
    fps: float
    height: int
    width: int
    rotation: int
    keys: tuple[KeyFrame, ...]
    lost: tuple[int, ...] = ()


# --- decoding --------------------------------------------------------------------------------------------------------


def pyav() -> Any:
    """The module.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingPackageError("PyAV is not installed, and reads videos", "pip install 'effvl[video]'") from error
    return av


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Container and first video stream of a file; in loader processes decoded by one thread.

    Raises:
        BadClipError: no video can be found in it.
        MissingPackageError: PyAV is not installed.
    """
    av = pyav()
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BadClipError(f"{path} cannot be read: {_said(error)}", ENCODE_AGAIN, "open_failed") from error
    with container:
        if not container.streams.video:
            raise BadClipError(f"{path} has no video stream", "Remove it, or give a video", "no_video_stream")
        stream = container.streams.video[0]
        stream.codec_context.copy_opaque = True  # frames say which packet they are of
        if get_worker_info() is not None:
            stream.codec_context.thread_count = 1
        yield container, stream


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _packets(container: Any, stream: Any, broken: list[str] | None = None) -> Iterator[Any]:
    """Packets up to the end, or to where the file cannot be read further; the last is empty and ends decoding.

    Args:
        container: the file.
        stream: in it.
        broken: gets why the file cannot be read further.
    """
    av, ended = pyav(), False
    try:
        for packet in container.demux(stream):
            ended = packet.size == 0
            yield packet
    except (av.error.FFmpegError, OSError) as error:
        if broken is not None:
            broken.append(_said(error))
    if not ended:
        yield None


class Decoder:
    """Frames of packets; a damaged packet is left out and noted.

    Attributes:
        count: frames that came out so far.
        lost: for each damaged packet, `count` at that time.
    """

    def __init__(self, stream: Any) -> None:
        self.codec, self.count = stream.codec_context, 0
        self.lost: list[int] = []

    def frames(self, packets: Iterator[Any]) -> Iterator[Any]:
        """All frames, in the order in which they are shown; those of a key frame's packet bear its stamp."""
        av = pyav()
        for packet in packets:
            if packet is not None and packet.is_keyframe and packet.size:
                packet.opaque = stamp_of(packet)
            try:
                found = self.codec.decode(packet)
            except (av.error.FFmpegError, OSError):
                self.lost.append(self.count)
                continue
            for frame in found:
                self.count += 1
                yield frame


def stamp_of(packet: Any) -> Stamp:
    """What tells a packet from others."""
    return packet.pts, packet.dts


# --- the pass over a file --------------------------------------------------------------------------------------------


def index_video(path: Path) -> VideoIndex:
    """Decode a file from its beginning to its end.

    Raises:
        BadClipError: it gives no frame.
        MissingPackageError: PyAV is not installed.
    """
    with opened(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate  # garbage once the container is closed
        decoder, keys, first = Decoder(stream), list[KeyFrame](), None
        for frame in decoder.frames(_packets(container, stream)):
            first = first or (frame.height, frame.width, int(frame.rotation))
            if frame.key_frame and frame.opaque is not None:
                keys.append(KeyFrame(decoder.count - 1, frame.opaque))
        if first is None:
            raise _no_frames(path, bool(decoder.lost))
    height, width, rotation = first
    if rotation // 90 % 2:
        height, width = width, height
    times = Counter(key.stamp for key in keys)
    kept = tuple(key for key in keys if times[key.stamp] == 1)  # others could not be told apart after a seek
    return VideoIndex(decoder.count, float(rate or 0), height, width, rotation, kept, tuple(decoder.lost))


def frame_rate(path: Path) -> float:
    """Frames per second; 0 where the file does not say.

    Raises:
        BadClipError: no video can be found in it.
        MissingPackageError: PyAV is not installed.
    """
    with opened(path) as (_, stream):
        return float(stream.average_rate or stream.guessed_rate or 0)


def all_frames(path: Path, every: int = 1, damaged: Callable[[str], None] = lambda text: None) -> Iterator[Frames]:
    """Frames (H, W, 3) from the first to the last, upright; damaged packets are left out.

    Args:
        path: of the file.
        every: give every so many-th frame.
        damaged: told once, after the last frame, of what could not be decoded.

    Raises:
        BadClipError: it gives no frame.
        MissingPackageError: PyAV is not installed.
    """
    with opened(path) as (container, stream):
        decoder, broken = Decoder(stream), list[str]()
        for number, frame in enumerate(decoder.frames(_packets(container, stream, broken))):
            if number % every == 0:
                yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), int(frame.rotation) // 90))
        if not decoder.count:
            raise _no_frames(path, bool(decoder.lost))
        if decoder.lost or broken or decoder.count < LEAST_FOUND * stream.frames:
            declared = f" of {stream.frames}" if stream.frames else ""
            lost = f"; {len(decoder.lost)} lost, the first after frame {decoder.lost[0]}" if decoder.lost else ""
            ended = f"; it cannot be read further: {broken[0]}" if broken else ""
            damaged(f"{path} is damaged: {decoder.count}{declared} frames can be decoded{lost}{ended}")


def _no_frames(path: Path, damaged: bool) -> BadClipError:
    if damaged:
        return BadClipError(f"no frame of {path} can be decoded", ENCODE_AGAIN, "decode_error")
    return BadClipError(f"{path} has a video stream without frames", ENCODE_AGAIN, "zero_frames")


# --- clips -----------------------------------------------------------------------------------------------------------


class VideoReader:
    """Clips of one file; opened for each, so that it can be sent to loader processes.

    Args:
        path: of the file.
        index: of it.
        short_side: px to which larger frames are shrunk while they are decoded; None: never.
    """

    def __init__(self, path: Path, index: VideoIndex, short_side: int | None = None) -> None:
        self.path, self.index = path, index
        self.scale = min(1.0, short_side / min(index.height, index.width)) if short_side else 1.0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames that are read."""
        return max(1, round(self.index.height * self.scale)), max(1, round(self.index.width * self.scale))

    def read(self, start: int, length: int, stride: int = 1, *, seek: bool | None = None) -> Frames:
        """(T, H, W, 3) frames start, start + stride, ...; in place of those below 0, the first one; see `read_at`."""
        return self.read_at(frame_numbers(str(self.path), self.index.frames, start, length, stride), seek=seek)

    def read_at(self, numbers: NDArray[np.int64], *, seek: bool | None = None) -> Frames:
        """(T, H, W, 3) frames.

        Args:
            numbers: (T,) of the frames, ascending.
            seek: go to the key frame before the clip; None: where the video is long and the clip is not at its start.

        Raises:
            BadClipError: more than a tenth of the frames cannot be decoded.
        """
        self._refuse_damaged(int(numbers[0]), int(numbers[-1]))
        clip = np.empty((len(numbers), *self.size, 3), dtype=np.uint8)
        reformat, done = pyav().video.reformatter.VideoReformatter().reformat, 0  # one for all: making one is dear
        for number, frame in self.numbered(int(numbers[0]), int(numbers[-1]), seek=seek):
            places = np.flatnonzero(numbers == number)
            if len(places):
                clip[places] = self._upright(frame, reformat)
                done = int(places[-1]) + 1
        if done < LEAST_FOUND * len(numbers):
            raise BadClipError(f"{done} of {len(numbers)} frames of {self.path} can be decoded", ENCODE_AGAIN)
        clip[done:] = clip[done - 1]
        return clip

    def _refuse_damaged(self, first: int, last: int) -> None:
        lost = sum(first < place <= last for place in self.index.lost)
        span = last - first + 1 + lost
        if span - lost < LEAST_FOUND * span:
            raise BadClipError(f"{lost} of {span} packets of a clip of {self.path} are damaged", ENCODE_AGAIN)

    def _upright(self, frame: Any, reformat: Callable[..., Any]) -> Frames:
        """(H, W, 3) of a frame."""
        height, width = self.size
        if self.index.rotation // 90 % 2:
            height, width = width, height
        pixels = reformat(frame, width=width, height=height, format="rgb24").to_ndarray()
        return np.rot90(pixels, self.index.rotation // 90)

    def numbered(
        self, first: int, last: int, *, seek: bool | None = None, motion: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """Frames up to `last` with their numbers, from one at or before `first` on.

        Args:
            first: number of a frame.
            last: number of a frame.
            seek: whether to go to the key frame before it; None: as is quicker.
            motion: have the decoder give motion vectors too.
        """
        if seek is None:
            seek = self.index.frames > FROM_START_FRAMES and first >= FROM_START
        if not (seek and (yield from self._from_key_frame(first, last, motion))):
            with opened(self.path) as (container, stream):
                yield from _until(last, Decoder(_with_motion(stream, motion)).frames(_packets(container, stream)))

    def _from_key_frame(self, first: int, last: int, motion: bool) -> Generator[tuple[int, Any], None, bool]:
        """The same after a seek; whether it came to a known key frame is what it returns."""
        known = {key.stamp: key.number for key in self.index.keys}
        before = [key for key in self.index.keys if key.number <= first]
        if not before or not before[-1].number:
            return False
        with opened(self.path) as (container, stream):
            packets = _landed(container, stream, before[-1].stamp, known)
            packet = next(packets, None)
            if packet is None or known[stamp_of(packet)] > first:
                return False
            number, here = known[stamp_of(packet)], stamp_of(packet)
            frames = Decoder(_with_motion(stream, motion)).frames(chain([packet], packets))
            for frame in frames:  # frames shown before the key frame belong to what came before the seek
                if frame.opaque == here:
                    yield from _until(last, chain([frame], frames), number)
                    return True
        return False


def _with_motion(stream: Any, motion: bool) -> Any:
    if motion:
        from av.codec.context import Flags2

        stream.codec_context.flags2 |= Flags2.export_mvs
    return stream


def _until(last: int, frames: Iterator[Any], first: int = 0) -> Iterator[tuple[int, Any]]:
    for number, frame in enumerate(frames, first):
        yield number, frame
        if number >= last:
            return


def _landed(container: Any, stream: Any, stamp: Stamp, known: dict[Stamp, int]) -> Iterator[Any]:
    """Packets from the first known key frame after a seek on; none where there is none."""
    av = pyav()
    time = next((value for value in reversed(stamp) if value is not None), None)  # AVI and MP4 seek by decoding time
    if time is None:
        return
    try:
        container.seek(time, stream=stream)
    except (av.error.FFmpegError, OSError):
        return
    found = False
    for count, packet in enumerate(_packets(container, stream)):
        found = found or (packet is not None and packet.is_keyframe and stamp_of(packet) in known)
        if found:
            yield packet
        elif count > LANDING:
            return
