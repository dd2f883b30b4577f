"""Options of `effvl detect export`."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Le

from effvl_cli.config.options import Checked, Positive, RunInput, RunOptions

STRIDE = 32  # sides of a graph's image are multiples of it
SIZE = re.compile(r"(\d+)x(\d+)")


def check_size(text: str | None) -> None:
    """Refuse what is no size of a graph's image.

    Raises:
        ValueError: not two multiples of 32.
    """
    found = SIZE.fullmatch(text or f"{STRIDE}x{STRIDE}")
    if found is None or any(int(side) % STRIDE or not int(side) for side in found.groups()):
        raise ValueError(f"--size is {text}. Give height x width in multiples of {STRIDE}, e.g. 480x864")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(RunInput, RunOptions, Checked):
    """RUN's detector as an ONNX file for one image at a time, compared with the detector before it is kept."""

    panel: ClassVar[str] = "Export"
    own: ClassVar[tuple[str, ...]] = ("precision",)
    computes: ClassVar[bool] = False

    graph: Annotated[
        Literal["full", "raw"], Doc("full: gives detections; raw: all boxes and scores, without the final NMS")
    ] = "full"
    size: Annotated[
        str | None, Doc("height and width of the image in px, multiples of 32, e.g. 480x864 (default: the detector's)")
    ] = None
    opset: Annotated[int, Ge(16), Le(20), Doc("version of ONNX's operators")] = 17
    num_check: Annotated[Positive, Doc("images that both detectors must find the same in, one of them blank")] = 4

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        found = SIZE.fullmatch(self.size) if self.size is not None else None
        if self.size is not None and (
            found is None or any(int(side) % STRIDE or not int(side) for side in found.groups())
        ):
            raise ValueError(f"--size is {self.size}. Give height x width in multiples of {STRIDE}, e.g. 480x864")
        if self.precision == "bf16":
            raise ValueError("--precision bf16 is not for files. Give fp32, or fp16 to halve the file")
