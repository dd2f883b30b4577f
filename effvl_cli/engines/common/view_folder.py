"""A folder of embeddings of the same samples in several views, which `cpr-mine mine` takes.

VIEW.npy     (N, D) float32, one for each view; a name like "flow:dis" is written flow-dis.npy
ids.txt      N names, one a line; row k of every array is the sample of line k
labels.npy   (N,) int64, -1 unknown; missing where nothing is labelled
groups.npy   (N,) int64, equal for samples of one source; missing where each sample is its own
views.json   which file holds which view, a digest of the names, and what made them
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.errors import DataError, ModelError
from effvl_cli.core.files import write_bytes, write_json, write_text
from effvl_cli.core.run import Run
from effvl_cli.data.source import digest

VIEWS, IDS, LABELS, GROUPS = "views.json", "ids.txt", "labels.npy", "groups.npy"


@dataclass(frozen=True)
class ViewFolder:
    """What a folder holds; the arrays are not read.

    Attributes:
        views: path of each view's array, in the order in which they were written.
        ids: N names.
        ids_digest: of the names.
        labels: path, or None.
        groups: path, or None.
        about: the rest of `views.json`, e.g. "data", "split" and, under "of", what made each view.
    """

    views: Mapping[str, Path]
    ids: tuple[str, ...]
    ids_digest: str
    labels: Path | None
    groups: Path | None
    about: Mapping[str, Any]


def file_of(view: str) -> str:
    """Name of the file of a view."""
    return f"{view.replace(':', '-').replace('/', '-')}.npy"


def write_views(
    run: Run,
    arrays: Mapping[str, NDArray[np.float32]],
    ids: Sequence[str],
    *,
    labels: NDArray[np.int64] | None = None,
    groups: NDArray[np.int64] | None = None,
    about: Mapping[str, Any],
) -> None:
    """Write the folder, into the run's own.

    Args:
        run: whose folder.
        arrays: (N, D) of each view.
        ids: N names without line breaks.
        labels: (N,); None where there are none.
        groups: (N,); None where each sample is its own.
        about: what made them, as JSON values.
    """
    for view, rows in arrays.items():
        run.write(file_of(view), _write_array, np.ascontiguousarray(rows, dtype=np.float32))
    for name, column in ((LABELS, labels), (GROUPS, groups)):
        if column is not None:
            run.write(name, _write_array, np.ascontiguousarray(column, dtype=np.int64))
    run.write(IDS, write_text, "".join(f"{name}\n" for name in ids))
    files = {view: file_of(view) for view in arrays}
    run.write(VIEWS, write_json, {"files": files, "ids_digest": digest(ids), **about})


def _write_array(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_views(folder: Path) -> ViewFolder:
    """What a folder that `write_views` wrote holds.

    Raises:
        ModelError: there is no `views.json`, or it is damaged.
        DataError: a file that it names is missing, or the names are not those that it describes.
    """
    about = read_about(folder)
    views = {view: folder / name for view, name in about.pop("files").items()}
    try:
        ids = tuple((folder / IDS).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{folder / IDS} cannot be read: {error}", "Repeat the command that wrote the folder"
        ) from error
    missing = [path for path in views.values() if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]} is missing", "Repeat the command that wrote the folder")
    known = about.pop("ids_digest")
    if digest(ids) != known:
        raise DataError(f"{folder / IDS} is not the file that {VIEWS} describes", "Copy the whole folder again")
    labels, groups = (folder / name if (folder / name).is_file() else None for name in (LABELS, GROUPS))
    return ViewFolder(views, ids, known, labels, groups, about)


def read_about(folder: Path) -> dict[str, Any]:
    """`views.json` of a folder: "files", "ids_digest" and what made them.

    Raises:
        ModelError: missing or damaged.
    """
    try:
        found = json.loads((folder / VIEWS).read_text(encoding="utf-8"))
        files, known = found["files"], found["ids_digest"]
        if not (isinstance(known, str) and all(isinstance(name, str) for name in files.values()) and files):
            raise ValueError("files or ids_digest is no text")
        if any(Path(name).name != name for name in files.values()):
            raise ValueError("a file lies elsewhere")
    except FileNotFoundError as error:
        hint = f"It holds no embeddings: `effvl cpr-mine embed {folder}` writes those of a run's encoders"
        raise ModelError(f"{folder} holds no {VIEWS}", hint) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder / VIEWS} cannot be used: {error}", "Copy it again") from error
    return dict(found)


def digest_beside(array: Path) -> str | None:
    """Digest of the names that `views.json` beside an array gives; None where the array does not belong to one.

    Raises:
        ModelError: it is damaged.
    """
    if not (array.parent / VIEWS).is_file():
        return None
    about = read_about(array.parent)
    return str(about["ids_digest"]) if array.name in about["files"].values() else None
