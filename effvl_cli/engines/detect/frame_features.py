"""What tags and near-duplicates are told by: figures of each image, from the cache where they were computed before."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.cache import Rows
from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxSource
from effvl_cli.data.files import file_states
from effvl_cli.data.loader import SampleLoader, loader_workers
from effvl_cli.engines.common.batches import LoaderOptions
from effvl_cli.techniques.detect.dedup import dhash, phash, standardised
from effvl_cli.techniques.detect.tagging import STATISTICS, lightness

FORMAT = 1  # raised whenever the figures change, so that older ones are not reused
STORED, CHUNK = 1024, 32  # images whose figures are stored together, and read together
Figures = tuple[Tensor, ...]
"""Of one image or, with a first dimension, of several: in the order and types of FIELDS."""
FIELDS = {
    "readable": (1, torch.uint8),
    "lightness": (len(STATISTICS), torch.float32),
    "dhash": (64, torch.uint8),
    "phash": (63, torch.uint8),
    "vector": (640, torch.float16),
}


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Figures of N images; of an image that cannot be read they are zeros.

    Attributes:
        lightness: (N, 3) float32, see `techniques.detect.tagging.STATISTICS`.
        dhash: (N, 64) bool.
        phash: (N, 63) bool.
        vector: (N, 640) float32, the standardised small image.
        readable: (N,) bool.
    """

    lightness: Tensor
    dhash: Tensor
    phash: Tensor
    vector: Tensor
    readable: Tensor


def frame_features(source: BoxSource, indices: Sequence[int], loading: LoaderOptions, run: Run) -> FrameFeatures:
    """Figures of some images.

    An image is decoded once for all of them; they are kept in the cache by the image's name and the state of its file.

    Args:
        source: images.
        indices: (N,) positions.
        loading: loader processes, and what an unreadable image does.
        run: cache, progress and stop requests.

    Raises:
        DataError: an unreadable image, or too many of them.
    """
    names = _names(source, indices)
    rows = Rows(run.cache.entry("frames", {"format": FORMAT, "data": source.name, "split": source.split}), run.warn)
    known = rows.load(tuple(FIELDS))
    missing = _missing(names, known)
    with run.progress(f"looking at {source.split} images", len(names), len(names) - len(missing)) as progress:
        for start in range(0, len(missing), STORED):
            part = missing[start : start + STORED]
            made = _computed(source, [indices[k] for k in part], loading)
            _keep(rows, [names[k] for k in part], made, known)
            progress.update(len(names) - len(missing) + start + len(part))
            run.check_stop()  # what is known so far is in the cache
    return _joined([known[name] for name in names])


def _names(source: BoxSource, indices: Sequence[int]) -> list[bytes]:
    """A digest of each image: its name, with the state of its file or, of a drawn one, what the data set is."""
    records = [source.records[index] for index in indices]
    paths = [record.path for record in records]
    states = iter(file_states(path for path in paths if path is not None))
    drawn = source.fingerprint() if None in paths else ""
    about = [drawn if path is None else f"{path} {next(states)}" for path in paths]
    texts = (f"{record.source}\0{record.file}\0{state}" for record, state in zip(records, about, strict=True))
    return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]


def _missing(names: Sequence[bytes], known: Mapping[bytes, Figures]) -> list[int]:
    """Positions of the names that are not known to every process, each name once."""
    first = {name: k for k, name in reversed(list(enumerate(names)))}
    here = torch.tensor([[float(name in known)] for name in first]).reshape(-1, 1)
    everywhere = distributed.all_reduce_sum(here)[:, 0] >= distributed.world().size
    return sorted(k for k, there in zip(first.values(), everywhere.tolist(), strict=True) if not there)


def _computed(source: BoxSource, indices: Sequence[int], loading: LoaderOptions) -> Figures:
    """Figures of some images, computed by the processes of the run together; zeros for the unreadable."""
    loader: SampleLoader[Figures, Figures] = SampleLoader(
        lambda step: lambda index, epoch: figures(source.image(index)),
        _stacked,
        len(source),
        workers=loader_workers(loading.workers, "cpu"),
        on_bad=loading.on_bad,
    )
    mine = np.asarray(indices, dtype=np.int64)[distributed.shard(len(indices))]
    made = torch.zeros(len(mine), sum(size for size, _ in FIELDS.values()))
    row = {int(index): k for k, index in enumerate(mine)}
    for batch, found in loader.once(mine, chunk=CHUNK):
        if batch is not None:
            made[[row[int(index)] for index in found]] = torch.cat([field.float() for field in batch], 1)
    parts = distributed.gather_rows(made, len(indices)).split([size for size, _ in FIELDS.values()], 1)
    return tuple(part.to(kind) for part, (_, kind) in zip(parts, FIELDS.values(), strict=True))


def figures(image: Image.Image) -> Figures:
    """Those of one RGB image."""
    luma = torch.from_numpy(np.array(image.convert("L")))
    found = (torch.ones(1), torch.tensor(lightness(luma)), dhash(luma), phash(luma), standardised(luma))
    return tuple(part.to(kind) for part, (_, kind) in zip(found, FIELDS.values(), strict=True))


def _stacked(samples: Sequence[Figures]) -> Figures:
    return tuple(torch.stack(field) for field in zip(*samples, strict=True))


def _keep(rows: Rows, names: Sequence[bytes], made: Figures, known: dict[bytes, Figures]) -> None:
    """Store figures of readable images, and know all."""
    known.update((name, tuple(field[row] for field in made)) for row, name in enumerate(names))
    good = made[0][:, 0].nonzero()[:, 0]
    if distributed.is_main() and len(good):
        rows.save([names[row] for row in good.tolist()], {name: f[good] for name, f in zip(FIELDS, made, strict=True)})


def _joined(found: Sequence[Figures]) -> FrameFeatures:
    if not found:
        found = [tuple(torch.zeros(size, dtype=kind) for size, kind in FIELDS.values())]
    readable, *rest = _stacked(found)
    lightness, dhash, phash, vector = rest
    return FrameFeatures(lightness, dhash.bool(), phash.bool(), vector.float(), readable[:, 0].bool())
