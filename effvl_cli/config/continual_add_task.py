"""Options of `effvl continual add-task`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc

from effvl_cli.config.continual_learn import TaskOptions
from effvl_cli.config.continual_verify import RUN_DOC, STATE_FILE
from effvl_cli.config.options import RunInput


@dataclass(frozen=True, kw_only=True)
class AddTaskConfig(RunInput, TaskOptions):
    """Learn one more task on top of RUN's, whose data are not needed; options that are not given are RUN's."""

    panel: ClassVar[str] = "Tasks"
    run_holds: ClassVar[str] = STATE_FILE
    run_gives_options: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("controls", "num_reserve_tasks")
    """Not RUN's: what it compared with needs its data, and one task fewer is expected."""
    common: ClassVar[tuple[str, ...]] = (
        *("run", "task", "data", "classes", "coarse", "goal", "goal_value", "grow_max", "num_reserve_tasks"),
        *("epochs", "lr", "batch_size", "device", "out"),
    )

    run: Annotated[str | None, Doc(RUN_DOC)] = None
    """Not told from others by its content, as inputs of other verbs are: the command itself changes that."""
    task: Annotated[str | None, Doc("name of the task")] = None
    classes: Annotated[tuple[str, ...], Doc("its classes in --data, by name or number (default: all)")] = ()
    coarse: Annotated[str | None, Doc("or the coarse label whose classes they are")] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        if self.controls is None:
            object.__setattr__(self, "controls", ("none",))
        super().__post_init__()
        if self.task is None:
            raise ValueError("--task is missing. Give the new task a name")
        if "finetune" in (self.controls or ()):
            raise ValueError("--controls finetune needs the data of earlier tasks. Leave it out")
        if self.method not in ("cpg", "pae", "packnet"):
            raise ValueError(f"--method is {self.method}, which keeps no state. Give cpg, pae or packnet")
