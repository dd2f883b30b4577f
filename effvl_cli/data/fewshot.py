"""A few images of every class."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError
from effvl_cli.data.source import ImageSource


def few_shot(source: ImageSource, shots: int, seed: int) -> NDArray[np.int64]:
    """`shots` images of each class (all, where there are fewer), drawn by (seed, "few-shot"); more shots include fewer.

    Returns:
        (M,) sorted positions in the split.

    Raises:
        DataError: a class has no image, or there are no classes.
    """
    if not source.classes:
        raise DataError(f"{source.name} has captions but no classes", "Give data with a label for every image")
    count = 60 * shots * len(source.classes) if source.endless else len(source)
    labels = np.asarray(source.labels[np.arange(count)])
    order = np.arange(count)
    if not source.endless:
        order = np.random.default_rng(seeds.derive(seed, "few-shot")).permutation(count)
    chosen = []
    for label, name in enumerate(source.classes):
        places = order[labels[order] == label][:shots]
        if not len(places):
            raise DataError(
                f"{source.name} has no {source.split} image of class {name!r}", "Add some, or drop the class"
            )
        chosen.append(places)
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def spread(labels: NDArray[np.int64], shown: int) -> Tensor:
    """Positions of images spread evenly over the classes, however a data set is ordered.

    Args:
        labels: (M,) of all images.
        shown: how many, or all if there are fewer.
    """
    by_class = torch.as_tensor(labels).argsort(stable=True)
    return by_class[torch.linspace(0, len(labels) - 1, min(shown, len(labels))).long().unique()]
