"""The middle frames of videos as images, each written into the cache the first time that it is read."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from effvl_cli.core.cache import default_root
from effvl_cli.core.errors import DataError, MissingPackageError
from effvl_cli.core.files import write_bytes
from effvl_cli.data.files import file_states, read_image
from effvl_cli.data.source import digest

QUALITY = 95  # of JPEG


def middle_frame(video: Path) -> Image.Image:
    """Frame floor(n / 2) of n.

    Raises:
        MissingPackageError: PyAV is not installed.
        DataError: no frame can be decoded.
    """
    try:
        import av
    except ImportError as error:
        raise MissingPackageError("PyAV is not installed, and reads videos", "pip install 'effvl[video]'") from error
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            # Not every container knows how many frames it has.
            count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            container.seek(0)
            frames: Any = container.decode(stream)
            for number, frame in enumerate(frames):
                if number == count // 2:
                    return Image.fromarray(frame.to_ndarray(format="rgb24"))
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{video} cannot be read: {error}", "Extract it again") from error
    raise DataError(f"{video} ends before its middle", "Extract it again")


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
