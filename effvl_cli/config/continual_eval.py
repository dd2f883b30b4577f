"""Options of `effvl continual eval` and `effvl continual export`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc

from effvl_cli.config.continual_verify import StateInput
from effvl_cli.config.options import VOLATILE, Positive


@dataclass(frozen=True, kw_only=True)
class EvalConfig(StateInput):
    """Accuracy of RUN's tasks on their test images, or of one on other images of its classes."""

    panel: ClassVar[str] = "Evaluation"
    asked_again: ClassVar[bool] = True

    task: Annotated[tuple[str, ...], Doc("names of tasks, comma separated (default: all)")] = ()
    data: Annotated[
        str | None, Doc("other test images of one task, e.g. folder:PATH with its classes (default: its own)")
    ] = None
    data_root: Annotated[str | None, Doc("folder that the tasks' data lie in (default: where they lay)")] = None
    on_bad: Annotated[Literal["error", "skip"], Doc("an unreadable image: stop, or skip up to 1 %")] = "error"
    eval_batch_size: Annotated[Positive, VOLATILE, Doc("images per step on each device")] = 256

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.data is not None and len(self.task) != 1:
            raise ValueError(f"--data {self.data} belongs to one task. Name it: --task NAME")


@dataclass(frozen=True, kw_only=True)
class ExportConfig(StateInput):
    """The network of one task for use without effvl, each file compared with it before the command succeeds."""

    panel: ClassVar[str] = "Export"

    task: Annotated[str | None, Doc("name of the task; `effvl continual inspect` lists them")] = None
    format: Annotated[
        tuple[Literal["dense", "sparse", "compact", "onnx"], ...],
        Doc("weights with model.pt2 and rebuild.py; bitmaps; without channels that do not matter; ONNX"),
    ] = ("dense",)

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.task is None:
            raise ValueError("--task is missing. Name one task; `effvl continual inspect` lists them")
