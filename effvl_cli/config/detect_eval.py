"""Options of `effvl detect eval`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc

from effvl_cli.config.detect_data import BoxDataOptions
from effvl_cli.config.detect_tag import TagOptions
from effvl_cli.config.detect_train import MeasureOptions
from effvl_cli.config.options import ARTEFACT, RunInput, RunOptions


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunInput, RunOptions, BoxDataOptions, TagOptions, MeasureOptions):
    """Measure RUN's detector, an exported one or a file of detections; also on other data."""

    panel: ClassVar[str] = "Evaluation"
    in_place_of_run: ClassVar[str] = "onnx+results"
    own: ClassVar[tuple[str, ...]] = ("on_bad", "precision", "merge", "onnx", "results", "split", "by")
    common: ClassVar[tuple[str, ...]] = (
        *("run", "onnx", "results", "data", "data_root", "split", "by", "merge", "map", "eval_batch_size", "precision"),
        *("device", "out"),
    )

    onnx: Annotated[str | None, ARTEFACT, Doc("file of `detect export` in place of RUN (an extra)")] = None
    results: Annotated[
        str | None, ARTEFACT, Doc("COCO results of any program in place of RUN; only images of the split")
    ] = None
    split: Annotated[Literal["train", "val", "test"], Doc("images")] = "val"
    by: Annotated[
        tuple[Literal["time", "source", "scene", "class"], ...], Doc("parts whose figures are printed too")
    ] = ("time", "source", "class")
    merge: Annotated[
        Literal["max", "sum", "gated"] | None,
        Doc("score of a class, of those by day and by night: the larger, the sum, or that of the image's tag"),
    ] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.onnx and self.results:
            raise ValueError("--onnx and --results both stand in place of RUN. Give one of them")
        if self.merge and (self.onnx or self.results):
            raise ValueError("--merge needs the scores by day and by night, which RUN gives. Give RUN, or leave it out")
