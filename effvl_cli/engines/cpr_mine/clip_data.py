"""Opens the videos of the options."""

from typing import cast

from effvl_cli.config.cpr_mine_train import ClipDataOptions
from effvl_cli.data import open_source
from effvl_cli.data.clips import ClipSource

CLIPS = "clips"


def open_clips(config: ClipDataOptions, split: str) -> ClipSource:
    """One split of --data.

    Raises:
        UsageError: unknown name, or no data set of videos.
        DataError: missing, empty or unreadable.
    """
    return cast("ClipSource", open_source(config.data, split, kind=CLIPS, root=config.data_root))
