"""Options of `effvl detect predict`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Lt

from effvl_cli.config.options import ARTEFACT, MEMORY, VOLATILE, Positive, RunInput, RunOptions


@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunInput, RunOptions):
    """Detect objects in images and videos with RUN's detector; draw and write what it finds."""

    panel: ClassVar[str] = "Prediction"
    asked_again: ClassVar[bool] = True
    in_place_of_run: ClassVar[str] = "onnx"

    input: Annotated[
        tuple[str, ...],
        Doc("images, videos, folders of these, patterns in quotes, or - for a list of names on standard input"),
    ] = ()
    onnx: Annotated[str | None, ARTEFACT, Doc("file of `detect export`, run by onnxruntime in place of RUN")] = None
    score: Annotated[float, Ge(0), Lt(1), Doc("least score of a detection")] = 0.3
    batch_size: Annotated[Positive, MEMORY, VOLATILE, Doc("images at a time; only those of one size go together")] = 8
    save: Annotated[
        tuple[Literal["images", "video", "coco", "yolo"], ...],
        Doc("drawn images, drawn videos, COCO results of both, a YOLO text file for each image or frame"),
    ] = ("images", "video", "coco")
    every: Annotated[Positive, Doc("videos: look at every so many-th frame")] = 1
    annotations: Annotated[
        str | None, ARTEFACT, Doc("COCO file whose ids of images (by file name) and classes the COCO results use")
    ] = None
    on_bad: Annotated[
        Literal["error", "skip"],
        Doc("an unreadable image or video, or a damaged frame of one: stop, or leave it out, however many there are"),
    ] = "error"

    def __post_init__(self) -> None:
        """Refuse what would look at nothing."""
        if not self.input:
            raise ValueError("--input is missing. Give images, videos, a folder, a pattern in quotes, or -")
        if self.onnx and self.run:
            raise ValueError("RUN and --onnx both give a detector. Give one of them")
