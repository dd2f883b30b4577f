"""The images of a task: its classes of a data set, relabelled from 0, in memory where they fit."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from effvl_cli.config.continual_learn import TaskOptions
from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.run import Run
from effvl_cli.core.table import shortened
from effvl_cli.data import load
from effvl_cli.data.decoded import CHUNK, Decoded
from effvl_cli.data.fewshot import few_shot
from effvl_cli.data.source import ImageSource, Indices, Subset, digest
from effvl_cli.data.transforms import Preprocess
from effvl_cli.engines.common.batches import decode
from effvl_cli.engines.continual.tasks import Task

ON_WHOLE_PICTURES = ("crop-flip", "rrc-flip")  # augmentations that crop before they resize
NO_IMAGES = "Add some, or leave the class out"
NO_VAL = "Give --val-fraction, e.g. 0.1, to take them from the training images; or add some, or leave the class out"


class Joined:
    """Training and validation images of a data set, one after the other."""

    endless = False

    def __init__(self, first: ImageSource, second: ImageSource) -> None:
        self.parts, self.border = (first, second), len(first)
        self.name, self.split = first.name, first.split
        self.classes, self.templates = first.classes, first.templates
        self.labels = np.concatenate([first.labels, second.labels])
        self.ids: Sequence[str] = [*first.ids, *second.ids]
        self.captions: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return self.parts[index >= self.border].image(index - self.border * (index >= self.border))

    def fingerprint(self) -> str:
        """Digest of both."""
        return digest(part.fingerprint() for part in self.parts)


class TaskImages:
    """Some images of a data set, labelled 0..C-1 by the classes of a task.

    Args:
        source: of the images.
        rows: (M,) positions in it, all of the task's classes.
        classes: of the task, in the order of its labels.
        split: "train", "val" or "test".
        task: its name.
    """

    endless = False

    def __init__(self, source: ImageSource, rows: Indices, *, classes: tuple[str, ...], split: str, task: str) -> None:
        self.source, self.rows, self.classes, self.split = source, rows, classes, split
        self.name, self.templates = f"{source.name} [{task}]", source.templates
        places = np.full(len(source.classes), -1, dtype=np.int64)
        places[[source.classes.index(name) for name in classes]] = np.arange(len(classes))
        self.labels: NDArray[np.int64] = places[np.asarray(source.labels[rows])]
        self.ids: Sequence[str] = [source.ids[int(row)] for row in rows]
        self.captions: Sequence[str] | None = None
        self.remark = getattr(source, "remark", "")

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return self.source.image(int(self.rows[index]))

    def fingerprint(self) -> str:
        """Digest of the whole, of which part, and of the labels."""
        return digest([self.source.fingerprint(), *self.classes, *self.ids])


class HeldImages:
    """Images that are in memory already, as a source: training reads each of them many times."""

    endless = False

    def __init__(self, images: Decoded) -> None:
        source = images.source
        self.name, self.split = source.name, source.split
        self.classes, self.templates = source.classes, source.templates
        self.captions: Sequence[str] | None = None
        self.ids: Sequence[str] = images.ids
        self.labels: NDArray[np.int64] = images.labels.numpy()
        self._source = source
        self._pictures: NDArray[np.uint8] = images.pixels.permute(0, 2, 3, 1).contiguous().numpy()

    def __len__(self) -> int:
        return len(self._pictures)

    def image(self, index: int) -> Image.Image:
        """One image, resized and cropped."""
        return Image.fromarray(self._pictures[index])

    def images(self, indices: Indices) -> NDArray[np.uint8]:
        """(B, H, W, 3)."""
        return self._pictures[indices]

    def fingerprint(self) -> str:
        """Digest of what they were read from."""
        return self._source.fingerprint()


@dataclass(frozen=True, eq=False)
class TaskSplits:
    """What a task is learned, decided and measured on.

    Attributes:
        train: for the loader, which augments them.
        train_images: the same without augmentation.
        val: images that goals, growth and ratios are decided on.
        test: images that are reported.
        preprocess: geometry and normalisation of the task.
        classes: readable names by label.
    """

    train: ImageSource
    train_images: Decoded
    val: Decoded
    test: Decoded
    preprocess: Preprocess
    classes: tuple[str, ...]


class TaskReader:
    """Opens the data of tasks; a data set that several tasks share is opened once.

    Args:
        config: options of the run.
        run: device and report.
        preprocess: of the network.
    """

    def __init__(self, config: TaskOptions, run: Run, preprocess: Preprocess) -> None:
        self.config, self.run, self.preprocess = config, run, preprocess
        self._opened: dict[tuple[str, str | None, str], ImageSource] = {}

    def splits(self, task: Task) -> TaskSplits:
        """Training, validation and test images of a task.

        Raises:
            DataError: unreadable, no classes, or a class without images in one of the splits.
            UsageError: options of the task that do not fit.
        """
        options = task.options(self.config)
        train, val = self._learned_from(task, options)
        images = decode(train, self.preprocess, None, options, self.run)
        preprocess = self.preprocess
        if options.normalise == "per-task":
            preprocess = with_statistics(preprocess, images)
        images = replace(images, preprocess=preprocess)
        learned: ImageSource = train
        if images.held is not None and options.augment not in ON_WHOLE_PICTURES:
            learned = HeldImages(images)
        return TaskSplits(
            learned,
            images,
            decode(val, preprocess, None, options, self.run),
            self.test(task, preprocess),
            preprocess,
            train.classes,
        )

    def test(self, task: Task, preprocess: Preprocess | None = None) -> Decoded:
        """Test images of a task.

        Args:
            task: which.
            preprocess: of the task, where it is not that of the network.

        Raises:
            DataError: unreadable, or a class without images.
        """
        preprocess = preprocess or self.preprocess
        return decode(self.test_images(task), preprocess, None, task.options(self.config), self.run)

    def test_images(self, task: Task) -> TaskImages:
        """Test images of a task, not read yet."""
        return images_of(task, self._open(task, "test"), "test")

    def note(self, task: Task) -> None:
        """Name the images of a task in the report; none is read."""
        for source in (*self._learned_from(task, task.options(self.config)), self.test_images(task)):
            self.run.report.data(source)

    def counts(self, task: Task) -> dict[str, int]:
        """How many training, validation and test images a task has; no image is read."""
        train, val = self._learned_from(task, task.options(self.config))
        return {"train": len(train), "val": len(val), "test": len(self.test_images(task))}

    def _learned_from(self, task: Task, options: TaskOptions) -> tuple[TaskImages, TaskImages]:
        """Training images, and those that decisions are made on."""
        train = self._open(task, "train")
        if options.select_on == "test":
            train = self._with_val(task, train)
            rows, val = _all(train, options), images_of(task, self._open(task, "test"), "val")
        elif options.val_fraction is None or train.endless:
            rows, val = _all(train, options), images_of(task, self._open_val(task), "val", hint=NO_VAL)
        else:
            train = self._with_val(task, train)
            held = held_out(train, task.classes or train.classes, options.val_fraction, options.seed)
            rows = np.setdiff1d(np.arange(len(train)), held)
            val = images_of(task, train, "val", held)
        if options.shots is not None and not train.endless:
            rows = rows[few_shot(Subset(train, rows), options.shots, options.seed, allow_empty=True)]
        return images_of(task, train, "train", rows), val

    def _with_val(self, task: Task, train: ImageSource) -> ImageSource:
        """All images that are not test images."""
        with suppress(DataError):
            return train if train.endless else Joined(train, self._open(task, "val"))
        return train

    def _open_val(self, task: Task) -> ImageSource:
        """Validation images of the data set itself.

        Raises:
            DataError: it has none; names the option that makes some.
        """
        try:
            return self._open(task, "val")
        except DataError as error:
            raise DataError(error.message, NO_VAL) from error

    def _open(self, task: Task, split: str) -> ImageSource:
        key = task.data, task.data_root, split
        if key not in self._opened:
            self._opened[key] = load(task.data, split, root=task.data_root)
        source = self._opened[key]
        missing = [name for name in task.classes if name not in source.classes]
        if missing:
            raise DataError(
                f"task {task.name!r}: {source.name} {split} has no class {shortened(missing[0])!r}", "Mend the list"
            )
        return source


def images_of(
    task: Task, source: ImageSource, split: str, rows: Indices | None = None, *, hint: str = NO_IMAGES
) -> TaskImages:
    """Images of the task's classes among some rows, or all; the hint is for a class without any.

    Raises:
        DataError: a class without images.
    """
    rows = np.arange(len(source)) if rows is None else rows
    classes = task.classes or tuple(source.classes)
    wanted = [source.classes.index(name) for name in classes]
    chosen = rows[np.isin(source.labels[rows], wanted)]
    found = np.bincount(source.labels[chosen], minlength=len(source.classes))[wanted]
    if not found.all():
        empty = [name for name, count in zip(classes, found, strict=True) if not count]
        raise DataError(
            f"task {task.name!r}: {source.name} has no {split} image of class {shortened(empty[0])!r}", hint
        )
    return TaskImages(source, chosen, classes=classes, split=split, task=task.name)


def _all(source: ImageSource, options: TaskOptions) -> Indices:
    """All positions; of an endless split, those of --shots.

    Raises:
        DataError: an endless split without --shots.
    """
    if not source.endless:
        return np.arange(len(source))
    if options.shots is None:
        raise DataError(f"{source.name} has no end", "Say how many images of each class with --shots")
    return few_shot(source, options.shots, options.seed, allow_empty=True)


def held_out(source: ImageSource, classes: Sequence[str], fraction: float, seed: int) -> Indices:
    """Positions of that share of some classes, rounded, at least one: the same whatever other classes there are.

    Raises:
        UsageError: a class would have no image left to train on.
    """
    held = []
    for name in classes:
        places = np.flatnonzero(source.labels == source.classes.index(name))
        count = min(max(1, round(fraction * len(places))), len(places))
        if count == len(places) > 0:
            raise UsageError(
                f"--val-fraction {fraction:g} leaves none of the {len(places)} training images of {shortened(name)!r}",
                "Give less, or add images",
            )
        order = np.random.default_rng(seeds.derive(seed, "val", name)).permutation(len(places))
        held.append(places[order[:count]])
    return np.sort(np.concatenate(held))


def with_statistics(preprocess: Preprocess, images: Decoded) -> Preprocess:
    """The preprocessing with mean and standard deviation of each channel over some images.

    Sums are exact integers, so that the order of the images and the number of threads do not matter.

    Raises:
        DataError: a channel that does not vary.
    """
    totals, squares, count = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), 0
    for _, pixels in images.batches(CHUNK):
        wide = pixels.long()
        totals += wide.sum((0, 2, 3))
        squares += wide.square().sum((0, 2, 3))
        count += pixels[:, 0].numel()
    mean = [value / count for value in totals.tolist()]
    variance = [value / count - m * m for value, m in zip(squares.tolist(), mean, strict=True)]
    if min(variance) <= 0:
        raise DataError(f"{images.source.name}: a channel of the training images is the same everywhere", "Mend them")
    red, green, blue = (value / 255 for value in mean)
    deviations = [value**0.5 / 255 for value in variance]
    return replace(preprocess, mean=(red, green, blue), std=(deviations[0], deviations[1], deviations[2]))
