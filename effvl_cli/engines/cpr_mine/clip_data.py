"""Opens the videos of the options."""

from collections.abc import Sequence
from typing import Protocol

from effvl_cli.config.cpr_mine_train import ClipDataOptions
from effvl_cli.core.cache import Cache
from effvl_cli.core.run import Run
from effvl_cli.data.carried_views import CarriedViews, with_views
from effvl_cli.data.clips import ClipSource, load_clips
from effvl_cli.data.video_sets import VideoFiles


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
    source = load_clips(config.data, split, root=config.data_root)
    if isinstance(source, VideoFiles):
        source.cache = Cache(config.cache_dir)
    return source


def carrying(config: ClipDataOptions, run: Run, source: ClipSource, views: Sequence[str]) -> ClipSource:
    """A source whose frames carry what some views need beyond them; the source itself where none does.

    With --cache-views, what finding the motion will take is logged.

    Raises:
        DataError: a data set without the codec's motion, or own pictures that are missing or do not fit.
        UsageError: two views where there can be one.
    """
    found = with_views(source, views, run.cache.root if config.cache_views else None)
    if isinstance(found, CarriedViews) and found.stored:
        missing, seconds = found.stored.cost()
        if missing:
            run.log(f"--cache-views: motion of {missing} videos of {source.name} is to be found, about {seconds:.0f} s")
    return found
