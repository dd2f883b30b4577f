"""Options of `effvl detect tag`, and of tags in other commands."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Le

from effvl_cli.config.detect_data import BoxDataOptions
from effvl_cli.config.options import ARTEFACT, Checked, RunOptions

NIGHT_THRESH = 65.0  # of the luminance 0..255


@dataclass(frozen=True, kw_only=True)
class TagOptions(Checked):
    """Which images are of the day and which of the night."""

    panel: ClassVar[str] = "Day and night"

    time_csv: Annotated[str | None, ARTEFACT, Doc("file with columns file,time (day or night), which comes first")] = (
        None
    )
    time_from: Annotated[
        Literal["metadata", "pixels"],
        Doc("metadata: what the data set says of an image, else its folder, else its pixels; pixels: these alone"),
    ] = "metadata"
    night_regex: Annotated[
        str | None, Doc("images whose name or path matches are of the night, the others of the day")
    ] = None
    night_stat: Annotated[
        Literal["median", "sky", "mean"],
        Doc("luminance of the pixels: their median, the mean of the upper 40 %, or of all"),
    ] = "median"
    night_thresh: Annotated[
        Annotated[float, Ge(0), Le(255)] | Literal["auto"],
        Doc("luminance 0..255 below which it is night; auto: Otsu's, where the images fall into two groups"),
    ] = NIGHT_THRESH
    night_vote: Annotated[
        Literal["seq", "frame"], Doc("seq: the frames of a sequence get the tag of most of them; frame: each its own")
    ] = "seq"

    def __post_init__(self) -> None:
        """Check the pattern."""
        super().__post_init__()
        try:
            re.compile(self.night_regex or "")
        except re.error as error:
            raise ValueError(f"--night-regex {self.night_regex} is no regular expression: {error}. Mend it") from error


@dataclass(frozen=True, kw_only=True)
class TagConfig(TagOptions, BoxDataOptions, RunOptions):
    """Tell day from night: the tag of each image, the rule that gave it, and how far pixels agree with metadata."""

    panel: ClassVar[str] = "Images"
    common: ClassVar[tuple[str, ...]] = (
        *("data", "split", "time_csv", "time_from", "night_regex", "night_stat", "night_thresh", "night_vote", "out"),
    )

    split: Annotated[Literal["all", "train", "val", "test"], Doc("images")] = "all"
