"""The middle frames of videos as images, each written into the cache the first time that it is read."""

import io
from pathlib import Path

from PIL import Image

from effvl_cli.core.cache import default_root
from effvl_cli.core.files import write_bytes
from effvl_cli.data.files import file_states, read_image
from effvl_cli.data.source import digest
from effvl_cli.data.video import VideoReader, index_video

QUALITY = 95  # of JPEG


def middle_frame(video: Path) -> Image.Image:
    """Frame floor(n / 2) of n.

    Raises:
        MissingPackageError: PyAV is not installed.
        BadClipError: no frame can be decoded.
    """
    index = index_video(video)
    return Image.fromarray(VideoReader(video, index).read(index.frames // 2, 1)[0])


def cached_middle_frame(root: Path, name: str) -> Image.Image:
    """The middle frame of root/name as an RGB image; a video that has changed is decoded again.

    Raises:
        MissingPackageError: PyAV is not installed.
        DataError: the video cannot be read.
    """
    video = root / name
    kept = default_root() / "middle-frames" / f"{digest([name, *file_states([video])])}.jpg"
    if not kept.is_file():
        content = io.BytesIO()
        middle_frame(video).save(content, "JPEG", quality=QUALITY)
        write_bytes(kept, content.getvalue())
    return read_image(kept)
