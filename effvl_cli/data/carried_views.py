"""Views that cannot be made of a clip's frames alone: the codec's motion, stored flow, and a user's own files.

They travel with the frames, as further channels of bytes at fixed places: `ClipSource.read` of a source with such views
gives (T, H, W, C) with C = 3, 5, 7 or 10, and each view takes its own. Motion is carried in steps of 20/127.5 px.
"""

import io
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.files import write_bytes
from effvl_cli.data.clips import MOTION_BLOCK, BadClipError, ClipSource, Frames, Motion, frame_numbers
from effvl_cli.data.files import SUFFIXES, file_states, natural, read_image, some
from effvl_cli.data.source import digest
from effvl_cli.data.video_views import CODEC, FAR, OWN, STORED, flow_finder

PRECOMPUTED = "precomputed:"
CHUNK = 32  # frames whose motion is found at once
LARGEST_MISMATCH = 1  # frames that own files may have fewer than the video
KEPT_SIDE = 160  # px; short side at which stored motion is kept


def with_views(source: ClipSource, views: Sequence[str], cache: Path | None = None) -> ClipSource:
    """A source whose frames carry what some views need; the source itself where none needs more than frames.

    Args:
        source: videos.
        views: names.
        cache: folder in which the motion of flow:dis and the like is kept; None: it is found anew for each clip.

    Raises:
        DataError: own files that are missing, or do not have as many frames as the videos; names the first ten.
        DataError: flow:mv of a data set that is not made of video files.
        UsageError: two folders of own files, or two views to be kept.
    """
    own = [view.removeprefix(PRECOMPUTED) for view in views if view.startswith(PRECOMPUTED)]
    if len(set(own)) > 1:
        raise UsageError(f"two views of own files: {', '.join(own)}", "Give one precomputed:DIR at a time")
    stored = [view for view in views if cache is not None and flow_finder(view) is not None]
    if len(set(stored)) > 1:
        raise UsageError(f"two views to be kept: {', '.join(stored)}", "Leave --cache-views out, or one of the views")
    codec = any(_is_codec(view) for view in views)
    if not (own or stored or codec):
        return source
    if codec:
        with suppress(BadClipError):  # an unreadable video is met when its clips are read
            source.motion(0, 0, 1)
    kept = StoredMotion(source, stored[0], cache) if stored and cache is not None else None
    return CarriedViews(source, codec=codec, stored=kept, own=OwnViews(source, Path(own[0])) if own else None)


def _is_codec(view: str) -> bool:
    return view == "flow:mv" or view.startswith("flow:mv:")


class CarriedViews:
    """A source of clips whose frames have further channels.

    Args:
        source: videos.
        codec: whether to carry the codec's motion.
        stored: motion that is kept in files.
        own: a user's files.
    """

    kind, endless = "clips", False

    def __init__(
        self, source: ClipSource, *, codec: bool, stored: "StoredMotion | None", own: "OwnViews | None"
    ) -> None:
        self.source, self.codec, self.stored, self.own = source, codec, stored, own
        self.name, self.split, self.ids = source.name, source.split, source.ids
        self.classes, self.labels, self.groups = source.classes, source.labels, source.groups
        self.channels = OWN.stop if own else STORED.stop if stored else CODEC.stop

    def __len__(self) -> int:
        return len(self.source)

    def fingerprint(self) -> str:
        """Digest of the videos, and of size and time of the user's files."""
        videos = self.source.fingerprint()
        return digest([videos, self.own.fingerprint()]) if self.own else videos

    def num_frames(self, index: int) -> int:
        """Frames of a video."""
        return self.source.num_frames(index)

    def motion(self, index: int, start: int, length: int, stride: int = 1) -> Motion:
        """The codec's motion."""
        return self.source.motion(index, start, length, stride)

    def read(self, index: int, start: int, length: int, stride: int = 1) -> Frames:
        """(T, H, W, C) frames, and behind them what they carry."""
        frames = self.source.read(index, start, length, stride)
        made = np.zeros((*frames.shape[:3], self.channels), dtype=np.uint8)
        made[..., :3] = frames
        if self.codec:
            made[..., CODEC] = as_bytes(_fitted(self.source.motion(index, start, length, stride), frames.shape))
        numbers = frame_numbers(self.ids[index], self.num_frames(index), start, length, stride)
        if self.stored:
            made[..., STORED] = _resized(self.stored.at(index, numbers, stride), frames.shape)
        if self.own:
            made[..., OWN] = _resized(self.own.at(index, numbers), frames.shape)
        return made


def as_bytes(motion: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Motion in px, clipped to 20, as bytes; 0 becomes 128."""
    found: NDArray[np.uint8] = ((motion / FAR).clip(-1, 1) * 127.5 + 127.5).round().astype(np.uint8)
    return found


def _fitted(motion: Motion, shape: tuple[int, ...]) -> Motion:
    """(T, h, w, 2) of cells to (T, H, W, 2): each pixel has the motion of its cell."""
    sides = list(zip(shape[1:3], motion.shape[1:3], strict=True))
    whole = all(-(-side // MOTION_BLOCK) == cells for side, cells in sides)
    rows, columns = (  # cells of frames that were shrunk while they were decoded are smaller
        np.arange(side) // MOTION_BLOCK if whole else np.arange(side) * cells // side for side, cells in sides
    )
    found: Motion = motion[:, rows][:, :, columns]
    return found


def _resized(picture: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(T, h, w, C) bytes to (T, H, W, C)."""
    if picture.shape[1:3] == shape[1:3]:
        return picture
    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(0, 3, 1, 2).float()
    found = F.interpolate(planes, tuple(shape[1:3]), mode="bilinear", align_corners=False, antialias=True)
    return found.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


# --- motion in files -------------------------------------------------------------------------------------------------


class StoredMotion:
    """Motion of whole videos, found once and kept in files `NAME.u8.npz`, below a folder of their first two letters.

    Args:
        source: videos.
        view: name of a view of motion that is made of frames.
        folder: of the cache.
    """

    def __init__(self, source: ClipSource, view: str, folder: Path) -> None:
        self.source, self.view, self.folder = source, view, folder
        self._last: tuple[Path, NDArray[np.uint8]] | None = None

    def path(self, index: int, stride: int) -> Path:
        """File of a video's motion from each frame to the one `stride` later."""
        name = digest([self.source.fingerprint(), self.source.ids[index], self.view, str(stride)])
        return self.folder / "clip-views" / name[:2] / f"{name}.u8.npz"

    def cost(self) -> tuple[int, float]:
        """Videos without a file at stride 1, and about how many seconds theirs will take, by the first of them."""
        missing = [index for index in range(len(self.source)) if not self.path(index, 1).is_file()]
        finder = flow_finder(self.view)
        assert finder is not None
        for index in missing:
            try:
                count, frames = self.source.num_frames(index), self.source.read(index, 0, 2)
            except DataError:
                continue
            pair, begun = torch.from_numpy(frames)[None], time.perf_counter()
            finder(pair)
            return len(missing), (time.perf_counter() - begun) * count * len(missing)
        return len(missing), 0.0

    def at(self, index: int, numbers: NDArray[np.int64], stride: int) -> NDArray[np.uint8]:
        """(T, h, w, 2) bytes of some frames."""
        path = self.path(index, stride)
        if self._last is None or self._last[0] != path:
            self._last = path, self._load(path, index, stride)
        motion = self._last[1]
        found: NDArray[np.uint8] = motion[numbers.clip(max=len(motion) - 1)]
        return found

    def _load(self, path: Path, index: int, stride: int) -> NDArray[np.uint8]:
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    found: NDArray[np.uint8] = file["motion"]
                    return found
            except (OSError, ValueError, KeyError, EOFError):  # damaged: found once more
                path.unlink(missing_ok=True)
        found = self._find(index, stride)
        content = io.BytesIO()
        np.savez_compressed(content, motion=found)
        write_bytes(path, content.getvalue(), option="--cache-dir")
        return found

    def _find(self, index: int, stride: int) -> NDArray[np.uint8]:
        """(n, h, w, 2) bytes; for the last frames, which have no later one, those of the last that has."""
        finder, count = flow_finder(self.view), self.source.num_frames(index)
        assert finder is not None
        if count <= stride:
            height, width = self.source.read(index, 0, 1).shape[1:3]
            return np.full((count, height, width, 2), 128, dtype=np.uint8)
        parts = []
        for first in range(0, count - stride, CHUNK):
            length = min(CHUNK, count - stride - first)
            frames = self.source.read(index, first, length + stride)
            pairs = torch.from_numpy(np.stack([frames[:length], frames[stride:]], 1))  # (length, 2, H, W, 3)
            parts.append(_small(finder(pairs)[:, :, 0]))
        motion = np.concatenate(parts)
        return np.concatenate([motion, motion[-1:].repeat(stride, 0)])


def _small(flow: Tensor) -> NDArray[np.uint8]:
    """(M, 2, H, W) px to (M, h, w, 2) bytes, the shorter side at most KEPT_SIDE; the values stay px of the frames."""
    height, width = flow.shape[2:]
    scale = min(1.0, KEPT_SIDE / min(height, width))
    if scale < 1:
        size = (round(height * scale), round(width * scale))
        flow = F.interpolate(flow, size, mode="bilinear", align_corners=False, antialias=True)
    return as_bytes(flow.permute(0, 2, 3, 1).cpu().numpy())


# --- own files -------------------------------------------------------------------------------------------------------


class OwnViews:
    """A user's pictures of each video: `ID.npy` (T, H, W[, C]) uint8, or a folder ID of images in natural order.

    ID is the video's name, with or without its suffix. There is one picture a frame; the last may be missing.

    Args:
        source: videos.
        folder: of the files.

    Raises:
        DataError: some are missing, or have another number of frames; names the first ten.
    """

    def __init__(self, source: ClipSource, folder: Path) -> None:
        self.folder, self.ids = folder, source.ids
        self._paths = [self._find(name) for name in source.ids]
        missing = [name for name, path in zip(source.ids, self._paths, strict=True) if path is None]
        if missing:
            text = f"{folder} has no arrays or images of {len(missing)} of {len(source)} videos: {_ten(missing)}"
            raise DataError(text, "Write ID.npy or a folder ID of images for each")
        self._refuse_mismatch(source)

    def _find(self, name: str) -> Path | None:
        for stem in dict.fromkeys((name, str(Path(name).with_suffix("")))):
            for path in (self.folder / f"{stem}.npy", self.folder / stem):
                if path.is_file() if path.suffix == ".npy" else path.is_dir():
                    return path
        return None

    def _refuse_mismatch(self, source: ClipSource) -> None:
        wrong = []
        for index, name in enumerate(source.ids):
            try:
                frames = source.num_frames(index)
            except DataError:  # an unreadable video is met when its clips are read
                continue
            found = self._opened(index)[0]
            if not frames - LARGEST_MISMATCH <= found <= frames:
                wrong.append(f"{name} ({found} for {frames} frames)")
        if wrong:
            text = f"E_VIEW_MISMATCH: {self.folder} has other numbers of frames than {len(wrong)} videos: {_ten(wrong)}"
            raise DataError(text, "Give one picture a frame, or one less")

    def _opened(self, index: int) -> tuple[int, Callable[[int], NDArray[np.uint8]]]:
        """Number of pictures, and how to read one."""
        path = self._paths[index]
        assert path is not None
        if path.is_dir():
            files = sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES), key=lambda p: natural(p.name))
            return len(files), lambda number: np.asarray(read_image(files[number]))
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is no array: {error}", "Save it with numpy.save") from error
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 2, 3)):
            text = f"{path} holds {array.dtype} of shape {array.shape}"
            raise DataError(text, "Needed: uint8 (T, H, W), or (T, H, W, C) with C = 1, 2 or 3")
        return len(array), lambda number: np.asarray(array[number])

    def at(self, index: int, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(T, h, w, 3) pictures of some frames."""
        count, picture = self._opened(index)
        return np.stack([_three(picture(min(int(number), count - 1))) for number in numbers])

    def fingerprint(self) -> str:
        """Digest of size and time of each file or folder."""
        return digest(file_states(path for path in self._paths if path is not None))


def _three(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w[, C]) to (h, w, 3): grey is replicated, of two channels the third is 128."""
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.shape[2] == 1:
        return picture.repeat(3, 2)
    if picture.shape[2] == 2:
        return np.concatenate([picture, np.full_like(picture[..., :1], 128)], 2)
    return picture


def _ten(names: Sequence[str]) -> str:
    return some(names) if len(names) <= 3 else ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
