"""Options of `effvl cpr-mine probe`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc

from effvl_cli.config.options import Checked, Positive, RunOptions


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(RunOptions, Checked):
    """Scan the videos of a data set once: what they decode to, and which of them cannot be used."""

    panel: ClassVar[str] = "Data"

    data: Annotated[str, Doc("data set: video:ucf101, video:FOLDER, video:FILE.csv, video:FILE.mp4, ...")] = (
        "video:ucf101"
    )
    data_root: Annotated[str | None, Doc("folder that holds the data set, or that its path is relative to")] = None
    split: Annotated[Literal["all", "train", "val", "test"], Doc("videos")] = "all"
    frames: Annotated[Positive, Doc("frames of the clips that they are to give")] = 32
    stride: Annotated[Positive, Doc("frames of the video from one frame of a clip to the next")] = 1
