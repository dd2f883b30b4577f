"""`video:NAME`: data sets of video files, read while they are used.

NAME is ucf101, hmdb51 or kinetics400 in the layouts of their authors below the data root, with `:2` or `:3` behind the
first two for the other official splits; a table FILE.csv; a folder; or one video. Which videos these have is said in
`video_lists.py`.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import UsageError
from effvl_cli.data import CLIPS, video_lists
from effvl_cli.data.clips import Frames, Motion, frame_numbers, numbered
from effvl_cli.data.codec_motion import read_motion
from effvl_cli.data.files import file_states
from effvl_cli.data.source import digest
from effvl_cli.data.video import VideoIndex, VideoReader
from effvl_cli.data.video_index import cached_index
from effvl_cli.data.video_lists import VideoList

OFFICIAL = ("1", "2", "3")
KINETICS_SIDE = 256  # px; its videos are as large as people uploaded them


def build(argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> "VideoFiles":
    """Registry builder.

    Raises:
        UsageError: there is no such official split.
        DataError: missing, empty, or a list that cannot be read.
    """
    name, _, number = argument.partition(":")
    if name in ("ucf101", "hmdb51"):
        if (number or "1") not in OFFICIAL:
            raise UsageError(f"--data video:{argument}: no official split {number!r}", f"Give video:{name}:1, :2 or :3")
        read = video_lists.ucf101 if name == "ucf101" else video_lists.hmdb51
        return VideoFiles(f"video:{argument}", split, read(root or Path(), split, int(number or 1)))
    if argument == "kinetics400":
        found = video_lists.kinetics400(root or Path(), split)
        return VideoFiles(f"video:{argument}", split, found, short_side=KINETICS_SIDE)
    if not argument:
        raise UsageError(
            "--data video: names nothing", "Give video:ucf101, video:FILE.csv, video:FOLDER or video:FILE.mp4"
        )
    place = root / argument if root else Path(argument)
    if place.suffix.lower() in (".csv", ".tsv", ".txt"):
        return VideoFiles(f"video:{place.stem}", split, video_lists.table(place, split))
    if place.suffix.lower() in video_lists.VIDEOS and not place.is_dir():
        return VideoFiles(f"video:{place.stem}", split, video_lists.one(place))
    return VideoFiles(f"video:{place.name or place.resolve().name}", split, video_lists.folder(place, split))


class VideoFiles:
    """Video files; an id is a file's path from the data set's folder, with `@START-END` for a part of one.

    `remark` is a note on it for reports, `expected` how many videos its authors count, `cache` where the indices of
    files are kept (None: where the user's are).
    """

    kind, endless = CLIPS, False

    def __init__(self, name: str, split: str, found: VideoList, *, short_side: int | None = None) -> None:
        self.name, self.split, self.classes = name, split, found.classes
        self.remark, self.expected, self.short_side = found.remark, found.expected, short_side
        self._root, self._videos = found.root, found.videos
        self.ids: Sequence[str] = [video.name for video in found.videos]
        self.labels: NDArray[np.int64] = np.array([video.label for video in found.videos], dtype=np.int64)
        self.groups: NDArray[np.int64] = numbered([video.source or video.path for video in found.videos])
        self._known: dict[int, VideoIndex] = {}
        self.cache: Cache | None = None

    def __len__(self) -> int:
        return len(self._videos)

    def path(self, index: int) -> Path:
        """File of a video."""
        return self._root / self._videos[index].path

    def about(self, index: int) -> VideoIndex:
        """The index of a video's file, which is scanned the first time.

        Raises:
            BadClipError: no frame of it can be decoded.
        """
        if index not in self._known:
            self._known[index] = cached_index(self.path(index), self.cache)
        return self._known[index]

    def num_frames(self, index: int) -> int:
        """Frames that a video, or the listed part of it, decodes to."""
        return len(self._part(index))

    def _part(self, index: int) -> range:
        """Numbers of the frames."""
        video, about = self._videos[index], self.about(index)
        first = min(round((video.start or 0) * about.fps), about.frames)
        last = about.frames if video.end is None else min(round(video.end * about.fps), about.frames)
        return range(first, max(first, last))

    def _numbers(self, index: int, start: int, length: int, stride: int) -> NDArray[np.int64]:
        part = self._part(index)
        return frame_numbers(self.ids[index], len(part), start, length, stride) + part.start

    def _reader(self, index: int) -> VideoReader:
        return VideoReader(self.path(index), self.about(index), self.short_side)

    def read(self, index: int, start: int, length: int, stride: int = 1) -> Frames:
        """(T, H, W, 3) frames of a clip."""
        numbers = self._numbers(index, start, length, stride)
        return self._reader(index).read_at(numbers)

    def motion(self, index: int, start: int, length: int, stride: int = 1) -> Motion:
        """(T, H / 8, W / 8, 2) the codec's motion from each frame of a clip to the next one of the video, px."""
        return read_motion(self._reader(index), self._numbers(index, start, length, stride))

    def fingerprint(self) -> str:
        """Digest of names, labels, groups, and of size and time of each file; nothing is decoded."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        paths = [self.path(index) for index in range(len(self))]
        numbers = [str(number) for row in (self.labels, self.groups) for number in row.tolist()]
        return digest([self.split, *self.classes, *self.ids, *numbers, *file_states(paths)])
