"""Embeddings of the same items in several views, mapped from .npy files. N items, V views of D numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.config.cpr_mine_mine import MineConfig
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.engines.common.view_folder import ViewFolder, digest_beside, read_about, read_views
from effvl_cli.techniques.cpr_mine.forbid import Forbid

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """Rows of all views and what is known of them.

    Attributes:
        views: (N, D) of each, on the CPU, read from the files as they are needed.
        ids: N names; None: the row numbers.
        labels: (N,) int64, -1 unknown, or None.
        groups: (N,) int64, -1 unknown, or None.
        classes: names of the classes, where they are known.
        about: what wrote the embeddings, for the report.
    """

    views: Mapping[str, Tensor]
    ids: tuple[str, ...] | None
    labels: Tensor | None
    groups: Tensor | None
    classes: tuple[str, ...]
    about: Mapping[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.views.values())))

    @property
    def names(self) -> Sequence[str]:
        """N names."""
        return self.ids if self.ids is not None else [str(row) for row in range(len(self))]


def open_items(config: MineConfig) -> Items:
    """The items of --features, else of RUN.

    Raises:
        DataError: files that are missing, of another shape or type, or that list other items than their neighbours.
        ModelError: RUN is no folder of embeddings.
    """
    paths, folder = _paths_of(config)
    ids, labels, groups = (folder.ids, folder.labels, folder.groups) if folder else (None, None, None)
    about = dict(folder.about) if folder else {}
    views = _read_all(paths)
    count = len(next(iter(views.values())))
    if config.ids:
        ids = _read_ids(Path(config.ids), count, "--ids")
    if ids is not None and len(ids) != count:
        raise DataError(f"E_VIEW_MISMATCH: {len(ids)} names for {count} rows in {config.run}", "Write it again")
    labels, groups = (
        Path(given) if given else found for given, found in ((config.labels, labels), (config.groups, groups))
    )
    return Items(
        views,
        ids,
        _column(labels, count, "labels"),
        _column(groups, count, "groups"),
        tuple(map(str, about.get("classes") or ())),
        about,
    )


def open_queries(config: MineConfig, items: Items) -> Items:
    """The queries of --query-features, else the items themselves.

    Raises:
        UsageError: another number of views.
        DataError: see `open_items`, and rows of another length than the items'.
    """
    if not config.query_features:
        return items
    if len(config.query_features) != len(items.views):
        raise UsageError(
            f"--query-features has {len(config.query_features)} files for the views {', '.join(items.views)}",
            "Give one for each view, in that order",
        )
    views = _read_all(dict(zip(items.views, map(Path, config.query_features), strict=True)))
    for view, rows in views.items():
        if rows.shape[1] != items.views[view].shape[1]:
            raise DataError(
                f"queries of {view} have {rows.shape[1]} numbers, and its items {items.views[view].shape[1]}",
                "Embed both with one encoder",
            )
    count = len(next(iter(views.values())))
    ids = _read_ids(Path(config.query_ids), count, "--query-ids") if config.query_ids else None
    labels, groups = (Path(name) if name else None for name in (config.query_labels, config.query_groups))
    return Items(
        views, ids, _column(labels, count, "query labels"), _column(groups, count, "query groups"), items.classes, {}
    )


def forbid_of(items: Items, queries: Items, pairs: Tensor | None = None) -> Forbid:
    """What is no positive of what: an item of itself, items of one name, items of one source."""
    query_ids, bank_ids = _numbers(queries, items)
    known = queries.groups is not None and items.groups is not None
    return Forbid(query_ids, bank_ids, queries.groups if known else None, items.groups if known else None, pairs=pairs)


def _numbers(queries: Items, items: Items) -> tuple[Tensor | None, Tensor | None]:
    """Equal numbers for equal names; None where queries have names of their own or none."""
    if queries is items and items.ids is None:
        rows = torch.arange(len(items))
        return rows, rows
    if queries.ids is None or items.ids is None:
        return None, None
    known = {name: number for number, name in enumerate(dict.fromkeys(items.ids))}
    bank = torch.tensor([known[name] for name in items.ids])
    if queries is items:
        return bank, bank
    return torch.tensor([known.get(name, len(known)) for name in queries.ids]), bank


def _paths_of(config: MineConfig) -> tuple[dict[str, Path], ViewFolder | None]:
    """The file of each view, and the folder that says whose rows they are, if the files belong to one."""
    if not config.features:
        folder = read_views(Path(config.run or ""))
        return dict(folder.views), folder
    paths = dict(zip(_names_of(config), map(Path, config.features), strict=True))
    beside = next((path.parent for path in paths.values() if digest_beside(path) is not None), None)
    return paths, None if beside is None else read_views(beside)


def _names_of(config: MineConfig) -> tuple[str, ...]:
    names = config.view_names or tuple(_name_of(Path(name)) for name in config.features)
    if len(set(names)) < len(names):
        raise UsageError(f"two of --features are called {max(names, key=names.count)}", "Name them by --view-names")
    return names


def _name_of(path: Path) -> str:
    """As the views.json beside a file calls it, else the file's name: that of "flow:dis" is flow-dis.npy."""
    named = read_about(path.parent)["files"] if digest_beside(path) is not None else {}
    return next((view for view, name in named.items() if name == path.name), path.stem)


def _read_all(paths: Mapping[str, Path]) -> dict[str, Tensor]:
    """All views, of equally many rows and of the same items.

    Raises:
        DataError: they differ.
    """
    views = {view: read_array(path) for view, path in paths.items()}
    counts = {view: len(rows) for view, rows in views.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{view} {count}" for view, count in counts.items())
        raise DataError(f"E_VIEW_MISMATCH: views of different numbers of rows: {listed}", "Embed the same items")
    listing = {view: found for view, path in paths.items() if (found := digest_beside(path)) is not None}
    if len(set(listing.values())) > 1:
        raise DataError(
            f"E_VIEW_MISMATCH: {' and '.join(listing)} list different items in the views.json beside them",
            "Embed the same items, in the same order",
        )
    return views


def read_array(path: Path) -> Tensor:
    """(N, D) of a floating type, mapped from a .npy file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    array = _load(path, mapped=True)
    if array.ndim != 2 or not len(array) or not array.shape[1]:
        raise DataError(f"{path} has the shape {array.shape}", "Embeddings are rows of numbers: (N, D)")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise DataError(f"{path} holds {array.dtype}", "Embeddings are float16, float32 or float64")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


_MAGIC = b"\x93NUMPY"


def _load(path: Path, *, mapped: bool) -> NDArray[Any]:
    try:
        found = np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)  # "c": writable, for torch
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there", "Give the .npy file of an array") from error
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if _is_npy(path) else "it does not begin as such a file does"
        raise DataError(
            f"{path} cannot be read as .npy: {reason}", "Write it with numpy.save, without pickle"
        ) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise DataError(f"{path} is an archive of several arrays", "Give a .npy file of one")
    return found


def _is_npy(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _column(path: Path | None, count: int, what: str) -> Tensor | None:
    """(N,) int64 of a .npy file with (N,) or (N, 1) whole numbers of any type.

    Raises:
        DataError: another shape, other numbers, or one below -1.
    """
    if path is None:
        return None
    array = _load(path, mapped=False)
    if array.shape not in ((count,), (count, 1)):
        raise DataError(f"{what} {path} have the shape {array.shape}", f"There are {count} rows: ({count},)")
    array = array.reshape(count)
    if array.dtype.kind not in "iuf" or (array % 1 != 0).any():  # nor are NaN and infinity whole
        raise DataError(f"{what} {path} are {array.dtype}, not all whole", "Give whole numbers, -1 for unknown")
    numbers = array.astype(np.int64)
    if len(numbers) and numbers.min() < -1:
        raise DataError(f"{what} {path} hold {numbers.min()}", "Give -1 for unknown, else 0 or more")
    return torch.from_numpy(numbers)


def _read_ids(path: Path, count: int, option: str) -> tuple[str, ...]:
    try:
        names = tuple(path.read_text(encoding="utf-8").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{option} {path} cannot be read: {error}", "Give a text file with a name a line") from error
    names = names[:-1] if names[-1] == "" else names
    if len(names) != count:
        raise DataError(f"{option} {path} has {len(names)} lines", f"There are {count} rows")
    return names
