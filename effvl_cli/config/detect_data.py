"""Options of `effvl detect` that say which images with boxes, and how their annotations are read."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc

from effvl_cli.config.options import DataOptions

EMBEDDED = "road-scenes"


@dataclass(frozen=True, kw_only=True)
class BoxDataOptions(DataOptions):
    """Which images with boxes."""

    panel: ClassVar[str] = "Data"

    data: Annotated[str, Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets`")] = EMBEDDED
    format: Annotated[
        Literal["auto", "coco", "voc", "yolo", "bdd"], Doc("format of boxes:PATH; auto: by what the files hold")
    ] = "auto"
    map: Annotated[
        str | None,
        Doc(
            "classes that those of the data become: bdd100k-4, coco-4, kitti-4, three, a YAML file, "
            "or 'person=pedestrian,train=ignore'"
        ),
    ] = None
    unknown: Annotated[
        Literal["error", "drop", "ignore"], Doc("a class that is not in the map: stop, or drop or ignore its boxes")
    ] = "error"
    seq_regex: Annotated[
        str | None,
        Doc(r"sequence and frame in file names, e.g. '(?P<seq>.*)_(?P<frame>\d+)' (default: last digits)"),
    ] = None
    rescale_boxes: Annotated[bool, Doc("scale boxes where images have another size than the annotations declare")] = (
        False
    )
    drop_empty: Annotated[bool, Doc("leave out images without boxes, which are background otherwise")] = False
