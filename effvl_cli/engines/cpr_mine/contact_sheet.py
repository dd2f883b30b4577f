"""Contact sheets: a query in the first column, and beside it what each stage of a cascade ranks first."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.plots import captioned_images
from effvl_cli.core.run import Run
from effvl_cli.data.clips import ClipSource
from effvl_cli.techniques.cpr_mine.cascade import mine
from effvl_cli.techniques.cpr_mine.forbid import Forbid
from effvl_cli.techniques.cpr_mine.stages import Stage

SHOWN = 7  # candidates of a stage
SHEETS = 3  # queries
SIDE = 96  # px of a picture
LONGEST = 24  # letters of a class name

Picture = Callable[[int], NDArray[np.uint8]]
"""From the number of a sample to an image (H, W, 3)."""


def middle_frames(source: ClipSource) -> Picture:
    """The frame in the middle of each video."""

    def picture(index: int) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = source.read(index, max(0, source.num_frames(index) - 1) // 2, 1)[0, ..., :3]
        return found

    return picture


def draw_sheets(
    run: Run,
    picture: Picture,
    bank: Mapping[str, Tensor],
    stages: Sequence[Stage],
    *,
    forbid: Forbid | None = None,
    labels: NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Draw `plots/positives-1.png` and so on: some random queries and their best candidates after each stage.

    Args:
        run: whose folder.
        picture: of a sample.
        bank: (N, D) of each view; the queries are rows of it.
        stages: with sizes expanded.
        forbid: as it was mined with, all N rows being queries.
        labels: (N,), -1 unknown: candidates of the query's class are marked.
        classes: their names.
        seed: which queries.
    """
    total = len(next(iter(bank.values())))
    drawn = torch.randperm(total, generator=seeds.generator(seed, "contact-sheet"))
    for number, row in enumerate(drawn[: min(SHEETS, total)].tolist(), 1):
        ranked = [(_name(k, stages), _best(bank, stages[: k + 1], row, forbid)) for k in range(len(stages))]
        images, captions = [], []
        for name, candidates in ranked:
            images += [picture(row), *(picture(index) for index in candidates)]
            captions += [f"{name}\n{_class_of(row, labels, classes)}"]
            captions += [_caption(place, row, index, labels, classes) for place, index in enumerate(candidates, 1)]
            empty = SHOWN - len(candidates)
            images += [np.full((SIDE, SIDE, 3), 255, np.uint8)] * empty
            captions += [""] * empty
        run.plot(
            f"positives-{number}",
            captioned_images,
            np.stack([thumbnail(image) for image in images]),
            captions,
            title=f"Query {row} (left) and the best candidates after each stage",
            columns=SHOWN + 1,
        )


def _best(bank: Mapping[str, Tensor], stages: Sequence[Stage], row: int, forbid: Forbid | None) -> list[int]:
    """The first candidates of a query that are left after these stages, by the last one's similarity."""
    queries = {view: rows[row : row + 1] for view, rows in bank.items()}
    own = None if forbid is None else forbid.of_queries(range(row, row + 1))
    found = mine(queries, bank, stages, forbid=own, check=False)
    return [index for index in found.indices[0, :SHOWN].tolist() if index >= 0]


def _name(place: int, stages: Sequence[Stage]) -> str:
    stage = stages[place]
    return f"{place + 1}. {stage.view}: best of {stage.n}"


def _class_of(index: int, labels: NDArray[np.int64] | None, classes: Sequence[str]) -> str:
    if labels is None or labels[index] < 0:
        return ""
    label = int(labels[index])
    return (classes[label] if label < len(classes) else f"class {label}")[:LONGEST]


def _caption(place: int, row: int, index: int, labels: NDArray[np.int64] | None, classes: Sequence[str]) -> str:
    name = _class_of(index, labels, classes)
    if not name or labels is None:
        return f"#{place}"
    return f"#{place} {'same' if labels[index] == labels[row] else 'other'}\n{name}"


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3) of the largest square in the middle."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    resample = Image.Resampling.NEAREST if side < SIDE else Image.Resampling.BOX
    return np.asarray(cut.resize((SIDE, SIDE), resample))
