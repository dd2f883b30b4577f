"""Fixed positives from a file that `cpr-mine mine` wrote."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core.errors import DataError
from effvl_cli.data.clips import ClipSource

FIELDS = ("indices", "valid", "ids")


def read_positives(file: str, source: ClipSource) -> Tensor:
    """(M, k) int64 numbers of the clips that are positives of each of the data's M clips; -1 for none.

    Raises:
        DataError: missing, unreadable, of other data, or with a clip that the data do not have.
    """
    try:
        with np.load(Path(file), allow_pickle=False) as found:
            indices, valid, ids = (found[name] for name in FIELDS)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"--positives {file} cannot be read: {error}", "Give positives.npz of `effvl cpr-mine mine`"
        ) from error
    if indices.ndim != 2 or indices.shape != valid.shape or len(indices) != len(ids):
        raise DataError(f"--positives {file} has indices of shape {indices.shape}, and {len(ids)} ids")
    place = {str(name): number for number, name in enumerate(source.ids)}
    unknown = [str(name) for name in ids if str(name) not in place]
    if unknown:
        raise DataError(
            f"--positives {file} has {len(unknown)} clips that {source.name} has not, e.g. {unknown[0]}",
            "Mine the embeddings of this data set, e.g. with `effvl cpr-mine embed`",
        )
    if indices.size and (indices.min() < -1 or indices.max() >= len(ids)):
        raise DataError(f"--positives {file} has indices outside of its {len(ids)} clips")
    own = torch.tensor([place[str(name)] for name in ids])
    listed = torch.full((len(source), indices.shape[1]), -1, dtype=torch.int64)
    given = torch.from_numpy(indices.astype(np.int64))
    keep = torch.from_numpy(valid.astype(bool)) & (given >= 0)
    listed[own] = torch.where(keep, own[given.clamp(min=0)], -1)
    return listed
