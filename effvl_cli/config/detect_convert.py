"""Options of `effvl detect convert`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc

from effvl_cli.config.detect_data import BoxDataOptions
from effvl_cli.config.options import RunOptions


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(BoxDataOptions, RunOptions):
    """Check annotations of boxes, and write them in another format; the originals stay as they are."""

    panel: ClassVar[str] = "Conversion"
    common: ClassVar[tuple[str, ...]] = ("data", "to", "map", "unknown", "split", "images", "check_only", "out")

    to: Annotated[Literal["coco", "yolo"], Doc("format that is written")] = "coco"
    split: Annotated[Literal["all", "train", "val", "test"], Doc("images")] = "all"
    images: Annotated[
        Literal["link", "copy", "none"],
        Doc("beside the annotations: links to the images, copies, or nothing; drawn scenes are always copied"),
    ] = "link"
    check_only: Annotated[
        bool,
        Doc(
            "read and count, decode every image, and write no annotations; images that cannot be decoded are an error "
            "at the end, with --on-bad skip only counted"
        ),
    ] = False
