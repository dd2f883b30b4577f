"""Official splits of data sets of videos, and what a report says of videos that could not be used."""

from effvl_cli.core.errors import UsageError
from effvl_cli.core.files import write_json
from effvl_cli.core.run import Run
from effvl_cli.data.clips import ClipSource
from effvl_cli.engines.cpr_mine.window_stream import Failures

BAD_VIDEOS = "bad_videos.json"
OFFICIAL = ("1", "2", "3")


def official_splits(data: str, splits: tuple[str, ...]) -> list[str]:
    """The data set in each of the official splits that are asked for: "video:ucf101:2" and so on.

    Raises:
        UsageError: it has none.
    """
    if not splits:
        return [data]
    source, _, rest = data.partition(":")
    name = rest.partition(":")[0]
    if source != "video" or name not in ("ucf101", "hmdb51"):
        raise UsageError(f"--splits is for video:ucf101 and video:hmdb51, and --data is {data}", "Leave it out")
    return [f"{source}:{name}:{split}" for split in (OFFICIAL if splits == ("all",) else splits)]


def note_failures(run: Run, source: ClipSource, failures: Failures) -> None:
    """Write `bad_videos.json`, count its rows in the report, and say so."""
    if not failures.errors:
        return
    counts = failures.counts()
    split = f"{source.name} {source.split}"
    run.report.technique.setdefault("bad_videos", {})[split] = counts
    name = BAD_VIDEOS if source.split == "train" else f"bad_videos-{source.split}.json"
    run.write(name, write_json, failures.rows(source))
    shown = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    run.warn(f"{split}: {len(failures.errors)} of {len(source)} videos are left out ({shown}), see {name}")
