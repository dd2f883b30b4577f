"""A few images of every class."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError
from effvl_cli.data.source import ImageSource

VALIDATION_SHOTS = 4  # at most, of each class


def few_shot(source: ImageSource, shots: int, seed: int, *, allow_empty: bool | None = None) -> NDArray[np.int64]:
    """`shots` images of each class (all, where there are fewer), drawn by (seed, "few-shot"); more shots include fewer.

    Of an endless split they are the first of each class, whatever the seed: no image there is better than the next, and
    runs of other seeds find their rankings and features in the cache.

    Returns:
        (M,) sorted positions in the split.

    Raises:
        DataError: a class has no image and `allow_empty` is not set, or there are no classes.
    """
    pool = candidates(source, shots)
    order = pool if source.endless else shuffled(pool, seed)
    return np.sort(drawn(source, order, shots, allow_empty=allow_empty))


def few_shot_validation(source: ImageSource, shots: int, seed: int) -> NDArray[np.int64]:
    """As `few_shot`, of a validation split: at most 4 images of each class, as CoOp takes them (arXiv 2109.01134).

    A class may have none.
    """
    return few_shot(source, min(shots, VALIDATION_SHOTS), seed, allow_empty=True)


def candidates(source: ImageSource, shots: int) -> NDArray[np.int64]:
    """Positions that shots are drawn from: all, of an endless split the first 60 for each image wanted.

    Raises:
        DataError: there are no classes.
    """
    if not source.classes:
        raise DataError(f"{source.name} has captions but no classes", "Give data with a label for every image")
    return np.arange(60 * shots * len(source.classes) if source.endless else len(source), dtype=np.int64)


def shuffled(positions: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """In an order drawn by (seed, "few-shot")."""
    return np.random.default_rng(seeds.derive(seed, "few-shot")).permutation(positions)


def drawn(
    source: ImageSource,
    order: NDArray[np.int64],
    shots: int | None,
    labels: NDArray[np.int64] | None = None,
    *,
    allow_empty: bool | None = None,
) -> NDArray[np.int64]:
    """The first `shots` positions of each class, or all where there are fewer.

    Args:
        source: names its classes.
        order: (M,) positions, the preferred first.
        shots: of each class; None: all.
        labels: (M,) class of each position, for others than the split's own.
        allow_empty: whether a class may have no image; None: no, and the command has no option for it.

    Returns:
        Positions, class by class, those of a class in the order given.

    Raises:
        DataError: a class has no image.
    """
    found = np.asarray(source.labels[order]) if labels is None else labels
    chosen = []
    for label, name in enumerate(source.classes):
        places = order[found == label][:shots]
        if not len(places) and not allow_empty:
            raise DataError(
                f"{source.name} has no {source.split} image of class {name!r}",
                "Add some, or drop the class" if allow_empty is None else "Add some, or give --allow-empty-class",
            )
        chosen.append(places)
    return np.concatenate(chosen).astype(np.int64)


def listed_shots(path: Path, source: ImageSource, split: str) -> NDArray[np.int64]:
    """Images that a file lists as {"train": [paths], "val": [paths]}; full paths are known by their ends.

    Args:
        path: of the file.
        source: the split that they are in.
        split: which of the two lists.

    Returns:
        (M,) sorted positions in the split.

    Raises:
        DataError: not such a file, a pickle as CoOp writes them, or an image is missing or twice.
    """
    fix = 'Write {"train": [paths], "val": [paths]}'
    try:
        content = path.read_bytes()
        if path.suffix in (".pkl", ".pickle") or content[:1] == b"\x80":
            raise DataError(f"--fewshot-file {path} is a pickle, which could run code", f"{fix} as JSON from it")
        document = json.loads(content)
        if not isinstance(document, dict) or split not in document:
            raise ValueError(f"it has no list {split!r}")
        listed = document[split]
        if not (isinstance(listed, list) and all(isinstance(name, str) for name in listed)):
            raise ValueError(f"{split!r} is not a list of paths")
    except (OSError, ValueError) as error:
        raise DataError(f"--fewshot-file {path} cannot be read: {error}", fix) from error
    found, unknown = positions_of(source, listed)
    if unknown:
        raise DataError(
            f"--fewshot-file {path}: {len(unknown)} of {len(listed)} {split} images are not in {source.name} "
            f"{source.split}, the first is {unknown[0]}",
            "Give paths as the data set names them",
        )
    if len(np.unique(found)) < len(found):
        raise DataError(f"--fewshot-file {path} lists a {split} image twice", "Name each once")
    return np.sort(found)


def positions_of(source: ImageSource, names: Iterable[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Positions of images by their ids, or by paths that end in them; and the names that no image has.

    Raises:
        DataError: the split is endless.
    """
    if source.endless:
        raise DataError(f"{source.name} {source.split} is endless and lists no images", "Give data in files")
    places = {name: place for place, name in enumerate(source.ids)}
    found, unknown = [], []
    for name in names:
        parts = name.split("/")
        ends = ("/".join(parts[first:]) for first in range(len(parts)))
        known = next((places[end] for end in ends if end in places), None)
        if known is None:
            unknown.append(name)
        else:
            found.append(known)
    return np.array(found, dtype=np.int64), unknown


def spread(labels: NDArray[np.int64], shown: int) -> Tensor:
    """Positions of images spread evenly over the classes, however a data set is ordered.

    Args:
        labels: (M,) of all images.
        shown: how many, or all if there are fewer.
    """
    by_class = torch.as_tensor(labels).argsort(stable=True)
    return by_class[torch.linspace(0, len(labels) - 1, min(shown, len(labels))).long().unique()]
