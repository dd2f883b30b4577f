"""`effvl continual list-tasks`: a data set divided into tasks, as a file that a user can edit."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from effvl_cli.config.continual_tasks import ListTasksConfig
from effvl_cli.config.recipe_file import dump_rows
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.files import write_text
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, counted, shortened
from effvl_cli.data import SPLITS, any_split, load
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.continual.task_images import NO_IMAGES, NO_VAL
from effvl_cli.engines.continual.tasks import Task, checked_classes, chunks, coarse_tasks, distinct, first_tasks, slug

FILE = "tasks.yaml"
COLUMNS = ("task", "classes", "training images", "val", "test", "names")
HEADER = """\
# Tasks for `effvl continual --tasks FILE`, in the order in which they are learned.
# A row may also set options of its task alone, e.g. epochs: 60.
"""
SHOWN = 5  # names of classes in a row of the table
LONGEST = 24  # characters of each


def run(config: ListTasksConfig, run: Run) -> None:
    """Write the list; no image is read."""
    tasks = _divided(config)
    rows = _counted(tasks, run)
    for text in _lacking(rows):
        run.warn(text)
    run.write(FILE, write_text, _text(tasks))
    run.report.metric("tasks", len(tasks), unit="count")
    run.report.technique.update(tasks=rows, file=str(run.path(FILE)))


def preview(config: ListTasksConfig) -> list[Table]:
    """The tasks."""
    rows = _counted(_divided(config))
    return [_table("tasks", rows, *_lacking(rows))]


def table(report: Report) -> Table:
    """A row for each task."""
    about = report.technique
    return _table(report.command, about["tasks"], f"written to {about['file']}; `effvl continual --tasks` takes it")


def _divided(config: ListTasksConfig) -> list[Task]:
    if config.by == "chunk":
        tasks = chunks(config)
    elif config.by == "coarse":
        tasks = coarse_tasks(config.data, config.data_root)
    else:
        tasks = _folder_tasks(config)
    return first_tasks(tasks, config.num_tasks)


def _folder_tasks(config: ListTasksConfig) -> list[Task]:
    """A task for each folder in PATH, in the order of their names."""
    kind, _, argument = config.data.partition(":")
    folder = Path(config.data_root or "", argument)
    if kind != "folder" or not folder.is_dir():
        raise UsageError(f"--by folders with --data {config.data}", "Give folder:PATH, which holds a folder a task")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no folders", "Expected PATH/TASK/train/CLASS/*.jpg and so on")
    if set(found) <= set(SPLITS):
        told = f"--by folders with --data {config.data}, which is one data set: it holds {', '.join(found)}"
        raise UsageError(told, "Give the folder that holds the data sets, or --by chunk")
    tasks = []
    for name in found:
        data = f"folder:{Path(argument, name)}"
        source = any_split(data, root=config.data_root)
        tasks.append(checked_classes(Task(slug(name), data, config.data_root, tuple(source.classes)), source))
    return distinct(tasks)


def _text(tasks: Sequence[Task]) -> str:
    rows: list[dict[str, Any]] = []
    for task in tasks:
        row: dict[str, Any] = {"name": task.name, "data": task.data}
        if task.data_root is not None:
            row["data-root"] = task.data_root
        rows.append({**row, "classes": list(task.classes)})
    return HEADER + dump_rows(rows)


def _counted(tasks: Sequence[Task], run: Run | None = None) -> list[dict[str, Any]]:
    """What each task has; an endless split has no number."""
    opened: dict[tuple[str, str], ImageSource | None] = {}
    rows = []
    for task in tasks:
        row: dict[str, Any] = {"name": task.name, "classes": list(task.classes)}
        for split in SPLITS:
            if (task.data, split) not in opened:
                opened[task.data, split] = found = _opened(task, split)
                if run is not None and found is not None:
                    run.report.data(found)
            source = opened[task.data, split]
            row[split] = None if source is None or source.endless else _number(source, task)
            if split != "test":
                row[f"without_{split}"] = _empty(source, task)
        rows.append(row)
    return rows


def _opened(task: Task, split: str) -> ImageSource | None:
    with suppress(DataError):
        return load(task.data, split, root=task.data_root)
    return None


def _number(source: ImageSource, task: Task) -> int:
    wanted = [label for label, name in enumerate(source.classes) if name in task.classes]
    return int(np.isin(source.labels, wanted).sum())


def _empty(source: ImageSource | None, task: Task) -> list[str]:
    """Classes of a task without an image; none of a split that has no end."""
    if source is None or source.endless:
        return [] if source is not None else list(task.classes)
    present = {source.classes[label] for label in np.unique(source.labels)}
    return [name for name in task.classes if name not in present]


def _lacking(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Warnings about classes that cannot be learned, or not be decided on."""
    for split, advice in (("train", NO_IMAGES), ("val", NO_VAL)):
        empty = [(row["name"], name) for row in rows for name in row[f"without_{split}"]]
        if empty:
            tasks, (first, label) = len({task for task, _ in empty}), empty[0]
            which = f"the first: {shortened(label)!r} of task {first!r}"
            classes = "1 class has" if len(empty) == 1 else f"{len(empty)} classes have"
            yield f"{classes} no {split} image, in {counted(tasks, 'task')}; {which}. {advice}"


def _table(title: str, rows: Sequence[dict[str, Any]], *notes: str) -> Table:
    return Table(title, COLUMNS, tuple(map(_cells, rows)), notes)


def _cells(row: dict[str, Any]) -> tuple[Cell, ...]:
    shown = [shortened(name, LONGEST) for name in row["classes"][:SHOWN]]
    names = ", ".join(shown) + (", ..." if len(row["classes"]) > SHOWN else "")
    return shortened(row["name"]), len(row["classes"]), *(row[split] for split in SPLITS), names
