"""Opens the videos of the options."""

from typing import Any, cast

from effvl_cli.config.cpr_mine_train import ClipDataOptions
from effvl_cli.core.cache import Cache
from effvl_cli.data import open_source
from effvl_cli.data.clips import ClipSource
from effvl_cli.data.video_sets import VideoFiles

CLIPS = "clips"


def open_clips(config: ClipDataOptions, split: str) -> ClipSource:
    """One split of --data.

    Raises:
        UsageError: unknown name, or no data set of videos.
        DataError: missing, empty or unreadable.
    """
    source: Any = open_source(config.data, split, kind=CLIPS, root=config.data_root)
    if isinstance(source, VideoFiles):
        source.cache = Cache(getattr(config, "cache_dir", None))
    return cast("ClipSource", source)
