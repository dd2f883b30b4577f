"""The list of tasks: classes of one data set in groups, or the rows of a file."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from effvl_cli.config.continual_learn import PER_TASK, UNOWNED, ContinualConfig, TaskOptions
from effvl_cli.config.recipe_file import read_yaml
from effvl_cli.config.resolve import outdated
from effvl_cli.config.validate import unknown_option, validate
from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.table import counted, shortened
from effvl_cli.data import any_split
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.continual.coarse import coarse_of

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
OWN_KEYS = ("name", "data", "classes", "coarse")
LONGEST = 40  # characters of a task's name that lists all its classes
Config = TypeVar("Config", bound=TaskOptions)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Put the place in front of messages that do not name it, such as those on two options that do not go together."""
    try:
        yield
    except (UsageError, DataError) as error:
        if where in error.message:
            raise
        raise type(error)(f"{where}: {error.message}", error.hint) from error


class GroupOptions(Protocol):
    """The options that divide the classes of one data set."""

    @property
    def data(self) -> str:
        """The data set."""

    @property
    def data_root(self) -> str | None:
        """Where it lies."""

    @property
    def num_classes_per_task(self) -> int:
        """Classes of each task."""

    @property
    def class_order(self) -> str:
        """label or seed."""

    @property
    def seed(self) -> int:
        """Of the order of the classes."""


@dataclass(frozen=True)
class Task:
    """One task of a sequence.

    Attributes:
        name: unique in its sequence.
        data: data set.
        data_root: folder that holds it.
        classes: readable names, in the order of the task's labels 0..C-1; empty: all classes of the data set.
        overrides: options of this task alone, as written, by their keys.
        origin: where it was written, for messages.
    """

    name: str
    data: str
    data_root: str | None = None
    classes: tuple[str, ...] = ()
    overrides: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""

    def options(self, config: Config) -> Config:
        """The options of the run with those of the task.

        What the run took from the defaults of its data set is taken from those of the task's.

        Raises:
            UsageError: a value that does not fit; names the row.
        """
        values = {item.name: getattr(config, item.name) for item in fields(config)}
        values |= dict.fromkeys(set(config.derived) & set(PER_TASK))
        own = {key.replace("-", "_"): value for key, value in self.overrides.items()}
        values |= dict.fromkeys(outdated(type(config), values, own))
        values |= {**own, "data": self.data, "data_root": self.data_root}
        where = self.origin or f"task {self.name!r}"
        with _named(where):
            found: Config = validate(type(config), values, dict.fromkeys(values, where))
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without where it was written."""
        found = asdict(self) | {"classes": list(self.classes), "overrides": dict(self.overrides)}
        del found["origin"]
        return found

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Task":
        """From the JSON form."""
        return cls(**{**saved, "classes": tuple(saved["classes"])})


def read_tasks(config: ContinualConfig) -> list[Task]:
    """The tasks that the options ask for, every one checked.

    Raises:
        UsageError: a list that cannot be read, or names that are not unique or not allowed.
        DataError: a task without two classes, or classes that its data set does not have.
    """
    if config.tasks == "chunk":
        tasks = chunks(config)
    elif config.tasks == "coarse":
        tasks = coarse_tasks(config.data, config.data_root)
    else:
        tasks = file_tasks(Path(config.tasks), config)
    return first_tasks(tasks, config.num_tasks)


def first_tasks(tasks: list[Task], wanted: int | None) -> list[Task]:
    """The first so many, or all.

    Raises:
        UsageError: there are fewer.
    """
    if wanted is not None and wanted > len(tasks):
        raise UsageError(f"--num-tasks is {wanted}, and there are {len(tasks)}", "Give fewer")
    return tasks[:wanted]


def chunks(config: GroupOptions) -> list[Task]:
    """Classes of one data set, so many at a time, in the order of their labels or shuffled by the seed.

    Raises:
        DataError: the last task would have one class.
    """
    source, size = any_split(config.data, root=config.data_root), config.num_classes_per_task
    names = list(source.classes)
    if config.class_order == "seed":
        order = np.random.default_rng(seeds.derive(config.seed, "class-order")).permutation(len(names))
        names = [names[place] for place in order]
    groups = [tuple(names[first : first + size]) for first in range(0, len(names), size)]
    if not groups or len(groups[-1]) < 2:
        raise DataError(
            f"the {len(names)} classes of {config.data} in tasks of {size} leave one with {len(names) % size}",
            "Give another --num-classes-per-task",
        )
    return distinct(
        Task(_chunk_name(number, group), config.data, config.data_root, group) for number, group in enumerate(groups, 1)
    )


def _chunk_name(number: int, classes: Sequence[str]) -> str:
    joined = slug("-".join(classes))
    return joined if len(joined) <= LONGEST else f"{number:03d}-{slug(classes[0])[:LONGEST]}"


def distinct(tasks: Iterable[Task]) -> list[Task]:
    """The tasks, with their numbers in front of names that would be the same, as those of other alphabets can be."""
    found = list(tasks)
    count = Counter(task.name for task in found)
    numbered = [f"{number:03d}-{task.name}"[:64] for number, task in enumerate(found, 1)]
    names = [new if count[task.name] > 1 else task.name for new, task in zip(numbered, found, strict=True)]
    if len(set(names)) < len(names):  # one is called what another would be
        names = numbered
    return [replace(task, name=name) for task, name in zip(found, names, strict=True)]


def slug(text: str) -> str:
    """A name of a task from words: other characters than letters, digits, dot and dash become underscores."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)[:64] or "_"


def coarse_tasks(data: str, root: str | None) -> list[Task]:
    """One task for each coarse label, in alphabetical order; classes in the order of their labels.

    Raises:
        DataError: the data set has no coarse labels, or one of them has a single class.
    """
    source = any_split(data, root=root)
    return distinct(
        checked_classes(Task(slug(name), data, root, classes), source) for name, classes in coarse_of(source).items()
    )


def file_tasks(path: Path, config: ContinualConfig) -> list[Task]:
    """The rows of a file: name, and optionally data, classes or coarse, and options of the task alone.

    Raises:
        UsageError: not a list of rows, a name that is not unique or not allowed, an unknown key, a bad value.
        DataError: classes that the data set does not have.
    """
    if not path.is_file():
        raise UsageError(f"--tasks is {path}, where no file is", "Give chunk, coarse or a YAML list of tasks")
    rows = read_yaml(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} is not a list of tasks", "Write rows like - {name: a, data: cifar100, coarse: fish}")
    tasks = [row_task(row, f"row {number} of {path}", config) for number, row in enumerate(rows, 1)]
    repeated = [name for name, count in Counter(task.name for task in tasks).items() if count > 1]
    if repeated:
        raise UsageError(f"{path} has two tasks named {repeated[0]!r}", "Rename one")
    for task in tasks:
        _refuse_method(task, task.options(config).method, config.method)
    return tasks


def _refuse_method(task: Task, own: str, of_all: str) -> None:
    """Check that one task can be learned by another method than the others.

    Raises:
        UsageError: weights have owners in one of them, and none in the other.
    """
    if own != of_all and {own, of_all} & set(UNOWNED):
        told = f"method is {own} in {task.origin}, and --method is {of_all}"
        raise UsageError(told, "Rows choose among cpg, pae and packnet; finetune and individual are for all tasks")


def row_task(row: Mapping[str, Any], where: str, config: TaskOptions) -> Task:
    """The task of one row: name, and optionally data, classes or coarse, and options of the task alone.

    Raises:
        UsageError: a name that is not allowed, an unknown key, a value that is no text.
        DataError: classes that the data set does not have.
    """
    name = row.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        shown = shortened(repr(name), 80)
        raise UsageError(f"name is {shown} in {where}", "Give 1 to 64 letters, digits, dots, dashes and underscores")
    where = f"{where}, task {name!r}"
    known = [*OWN_KEYS, *(option.replace("_", "-") for option in PER_TASK)]
    overrides = {}
    for written, value in row.items():
        key = written.replace("_", "-")
        if key not in known:
            raise unknown_option(key, known, f"key {shortened(key)!r} in {where}")
        if key not in OWN_KEYS:
            overrides[key] = ",".join(_texts(value, key, where))
    data = "".join(_texts(row.get("data", config.data), "data", where, single=True))
    root = overrides.pop("data-root", config.data_root)
    task = Task(name, data, root, (), overrides, where)
    with _named(where):
        source = any_split(data, root=root)
        classes = _classes(row, source, where)
    return checked_classes(replace(task, classes=classes), source, where)


def _texts(value: Any, key: str, where: str, *, single: bool = False) -> list[str]:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items) or (single and len(items) != 1):
        raise UsageError(
            f"{key} in {where} is {shortened(repr(value), 80)}", "Rows are flat: one text, or a list of texts"
        )
    return items


def _classes(row: Mapping[str, Any], source: ImageSource, where: str) -> tuple[str, ...]:
    """Names of a row's classes; all of the data set where it names none."""
    if "classes" in row and "coarse" in row:
        raise UsageError(f"{where} has both classes and coarse", "Remove one")
    if "coarse" in row:
        groups = coarse_of(source)
        [asked] = _texts(row["coarse"], "coarse", where, single=True)
        if asked not in groups and asked.replace("_", " ") not in groups:
            told = f"{source.name} has no coarse label {shortened(asked)!r} ({where})"
            raise DataError(told, f"It has {_shown(list(groups), 20)}")
        return groups[asked if asked in groups else asked.replace("_", " ")]
    if "classes" not in row:
        return tuple(source.classes)
    given = row["classes"]
    words = [part.strip() for part in given.split(",")] if isinstance(given, str) else _texts(given, "classes", where)
    return tuple(_class(word, source, where) for word in words)


def _class(word: str, source: ImageSource, where: str) -> str:
    """A class by name, with spaces or underscores, or by number."""
    for name in (word, word.replace("_", " ")):
        if name in source.classes:
            return name
    if word.isdecimal() and int(word) < len(source.classes):
        return source.classes[int(word)]
    raise DataError(
        f"{source.name} has no class {shortened(word)!r} ({where})", f"It has {_shown(list(source.classes))}"
    )


def checked_classes(task: Task, source: ImageSource, where: str = "") -> Task:
    """The task, if it has two classes or more, and none twice.

    Raises:
        DataError: it has not.
    """
    repeated = [name for name, count in Counter(task.classes).items() if count > 1]
    if repeated:
        raise DataError(f"task {task.name!r} has class {shortened(repeated[0])!r} twice", "Name each class once")
    if len(task.classes) < 2:
        listed = _shown(list(task.classes)) or "none"
        raise DataError(
            f"task {task.name!r} of {source.name} has fewer than two classes: {listed}{f' ({where})' if where else ''}",
            "A task needs two or more to tell apart",
        )
    return task


def refuse_other_classes(name: str, stored: Sequence[str], found: Sequence[str]) -> None:
    """Check that data have the classes that a task was learned with.

    Raises:
        DataError: they have not; shows what each side lacks.
    """
    if tuple(stored) == tuple(found):
        return
    missing = [label for label in stored if label not in found]
    extra = [label for label in found if label not in stored]
    lacking = [("missing", missing), ("not learned", extra)]
    difference = "; ".join(f"{what}: {_shown(labels)}" for what, labels in lacking if labels)
    raise DataError(
        f"task {name!r} was learned with {len(stored)} classes ({_shown(list(stored))}) and the data have {len(found)} "
        f"({_shown(list(found))}): {difference or 'another order'}",
        "Give data with the same classes",
    )


def refuse_changed(stored: Sequence[Task], tasks: Sequence[Task]) -> None:
    """Check that a run is continued with the tasks that it began with.

    Raises:
        UsageError: another list; names the first difference, and for more tasks `add-task`.
    """
    for number, (old, new) in enumerate(zip(stored, tasks, strict=False), 1):
        before, after = old.to_dict(), new.to_dict()
        for key in before:
            if before[key] != after[key]:
                raise UsageError(
                    f"task {number} of this run folder has {key} {_shown(before[key])}, and the list now says "
                    f"{_shown(after[key])}",
                    "Restore the list, give another --out, or start over with --fresh",
                )
    if len(tasks) > len(stored):
        raise UsageError(
            f"this run folder was made for {counted(len(stored), 'task')}, and the list now has {len(tasks)}",
            f"Add the others with `effvl continual add-task --task {tasks[len(stored)].name}`",
        )
    if len(tasks) < len(stored):
        raise UsageError(
            f"this run folder was made for {counted(len(stored), 'task')}, and the list now has {len(tasks)}: "
            f"{stored[len(tasks)].name!r} is missing",
            "Restore the list, give another --out, or start over with --fresh",
        )


def _shown(value: Any, most: int = 10) -> str:
    """For a message: the first few of a list, each cut where it is long."""
    if not isinstance(value, list):
        return shortened(str(value), 80)
    return ", ".join(map(shortened, value[:most])) + (", ..." if len(value) > most else "")
