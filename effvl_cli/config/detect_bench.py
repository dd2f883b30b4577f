"""Options of `effvl detect bench`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc
from annotated_types import Gt

from effvl_cli.config.detect_export import check_size
from effvl_cli.config.options import MEMORY, Checked, Positive, RunInput, RunOptions


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunInput, RunOptions, Checked):
    """Time RUN's detector on this machine, part by part, beside its first stage alone and onnxruntime."""

    panel: ClassVar[str] = "Benchmark"
    own: ClassVar[tuple[str, ...]] = ("batch_size", "precision")

    size: Annotated[
        str | None, MEMORY, Doc("height and width of the images in px, e.g. 480x864 (default: the detector's)")
    ] = None
    batch_size: Annotated[tuple[Positive, ...], MEMORY, Doc("batch sizes, comma separated")] = (1, 8)
    onnx: Annotated[bool, Doc("also in onnxruntime on the CPU, which the extra `onnx` installs")] = True
    seconds: Annotated[float, Gt(0), Doc("time for each part and program, at least five passes")] = 5.0

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        check_size(self.size)
