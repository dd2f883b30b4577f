"""Data sets by name: the registry, and one file per source."""

from pathlib import Path
from typing import TYPE_CHECKING

from effvl_cli.core.registry import Registry, Row

if TYPE_CHECKING:
    from effvl_cli.data.source import ImageSource

SPLITS = ("train", "val", "test")

DATASETS = Registry(
    "data set",
    "effvl.datasets",
    [
        Row(
            "shape-captions",
            "effvl_cli.data.shape_captions:build",
            "procedural 64 px scenes, one coloured shape each; shape-captions:sketch is a shifted style",
        ),
        Row("digits", "effvl_cli.data.digits:build", "1,797 real handwritten digits, 8 px (scikit-learn)"),
        Row("folder:", "effvl_cli.data.folders:build", "folder:PATH holding [train|val|test/]CLASS/*.jpg"),
        Row("csv:", "effvl_cli.data.tables:build", "csv:FILE with columns path and label and/or caption [, split]"),
    ],
)


def load(spec: str, split: str, *, root: str | Path | None = None, seed: int = 0) -> "ImageSource":
    """One split of a data set.

    Args:
        spec: "NAME" or "NAME:ARGUMENT".
        split: "train", "val" or "test".
        root: folder that a relative path in `spec` starts from.
        seed: of sources that draw; the built-in ones do not depend on it.

    Raises:
        UsageError: unknown name.
        DataError: missing, empty or unreadable.
    """
    row, argument = DATASETS.find(spec)
    return DATASETS.builder(row)(argument, split, root=Path(root) if root else None, seed=seed)
