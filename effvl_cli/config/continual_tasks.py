"""Options of `effvl continual list-tasks`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Le

from effvl_cli.config.continual_learn import CHUNK, EMBEDDED, GROUPING, Follows, refuse_ungrouped
from effvl_cli.config.options import Checked, Positive, RunOptions


@dataclass(frozen=True, kw_only=True)
class ListTasksConfig(RunOptions, Checked):
    """Divide a data set into tasks, and write them as a list for `effvl continual --tasks FILE`, to be edited."""

    panel: ClassVar[str] = "Tasks"
    follows: ClassVar[Follows] = dict.fromkeys(GROUPING, ("by", lambda value, by: by == CHUNK))

    data: Annotated[str, Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets`")] = EMBEDDED
    data_root: Annotated[str | None, Doc("folder that holds the data set, or that its path is relative to")] = None
    by: Annotated[
        Literal["chunk", "coarse", "folders"],
        Doc("classes in groups; a task for each coarse label; or, of folder:PATH, one for each data set in PATH"),
    ] = "chunk"
    num_classes_per_task: Annotated[int, Ge(2), Le(100_000), Doc("chunk: classes of each task")] = 2
    class_order: Annotated[Literal["label", "seed"], Doc("chunk: order of the classes; seed: shuffled")] = "label"
    num_tasks: Annotated[Positive | None, Doc("the first so many tasks (default: all)")] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        refuse_ungrouped("by", self)
