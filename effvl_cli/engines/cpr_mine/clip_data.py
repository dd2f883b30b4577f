"""Opens the videos of the options."""

from typing import Any, Protocol, cast

from effvl_cli.core.cache import Cache
from effvl_cli.data import open_source
from effvl_cli.data.clips import ClipSource
from effvl_cli.data.video_sets import VideoFiles

CLIPS = "clips"


class ClipData(Protocol):
    """The options that say which videos, and where what is known of them is kept."""

    @property
    def data(self) -> str:
        """The data set."""

    @property
    def data_root(self) -> str | None:
        """Its folder."""

    @property
    def cache_dir(self) -> str | None:
        """Folder of the cache."""


def open_clips(config: ClipData, split: str) -> ClipSource:
    """One split of --data.

    Raises:
        UsageError: unknown name, or no data set of videos.
        DataError: missing, empty or unreadable.
    """
    source: Any = open_source(config.data, split, kind=CLIPS, root=config.data_root)
    if isinstance(source, VideoFiles):
        source.cache = Cache(config.cache_dir)
    return cast("ClipSource", source)
