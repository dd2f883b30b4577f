"""Figures of each image of a split, computed once by the processes of a run together, and kept in the cache."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.cache import Rows
from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxSource
from effvl_cli.data.files import file_states
from effvl_cli.data.loader import SampleLoader, loader_workers
from effvl_cli.engines.common.batches import LoaderOptions

STORED, CHUNK = 1024, 32  # images whose figures are stored together, and read together
READABLE = "readable"

Figures = tuple[Tensor, ...]
"""Of one image or, with a first dimension, of several: in the order of the fields."""
T = TypeVar("T")


@dataclass(frozen=True)
class FrameRows(Generic[T]):
    """How some figures of an image are made and kept.

    Attributes:
        kind: folder of the cache.
        key: all that they depend on besides the image.
        fields: name, length and type of each.
        sample: from an RGB image to what `rows` takes a list of.
        rows: to (B, length) of each field.
    """

    kind: str
    key: Mapping[str, Any]
    fields: Mapping[str, tuple[int, torch.dtype]]
    sample: Callable[[Any], T]
    rows: Callable[[Sequence[T]], Sequence[Tensor]]

    def of(self, source: BoxSource, indices: Sequence[int], loading: LoaderOptions, run: Run) -> dict[str, Tensor]:
        """(N, length) of each field, zeros for images that cannot be read, and `readable` (N,) bool.

        They are kept by the image's name and the state of its file.

        Args:
            source: images.
            indices: (N,) positions.
            loading: loader processes, and what an unreadable image does.
            run: cache, progress and stop requests.

        Raises:
            DataError: an unreadable image, or too many of them.
        """
        names = _names(source, indices)
        key = {**self.key, "data": source.name, "split": source.split}
        stored, loader = Rows(run.cache.entry(self.kind, key), run.warn), self._loader(source, loading)
        known = stored.load((READABLE, *self.fields))
        missing = _missing(names, known)
        with run.progress(f"looking at {source.split} images", len(names), len(names) - len(missing)) as progress:
            for start in range(0, len(missing), STORED):
                part = missing[start : start + STORED]
                made = self._computed(loader, [indices[k] for k in part], run)
                self._keep(stored, [names[k] for k in part], made, known)
                progress.update(len(names) - len(missing) + start + len(part))
                run.check_stop()  # what is known so far is in the cache
        return self._joined([known[name] for name in names])

    def _loader(self, source: BoxSource, loading: LoaderOptions) -> SampleLoader[T, list[T]]:
        return SampleLoader(
            lambda step: lambda index, epoch: self.sample(source.image(index)),
            list,
            len(source),
            workers=loader_workers(loading.workers, "cpu"),
            on_bad=loading.on_bad,
        )

    def _computed(self, loader: SampleLoader[T, list[T]], indices: Sequence[int], run: Run) -> Figures:
        """Figures of some images, `readable` first, of this process's share and those of the others.

        A process that is asked to stop leaves the rest of its share as images that cannot be read, which are not kept.
        """
        sizes = [1, *(size for size, _ in self.fields.values())]
        mine = np.asarray(indices, dtype=np.int64)[distributed.shard(len(indices))]
        made = torch.zeros(len(mine), sum(sizes))
        place = {int(index): k for k, index in enumerate(mine)}
        for batch, found in loader.once(mine, chunk=CHUNK):
            if run.stop_signal():
                break
            if batch is not None:
                rows = [torch.ones(len(found), 1), *(field.float().cpu() for field in self.rows(batch))]
                made[[place[int(index)] for index in found]] = torch.cat(rows, 1)
        parts = distributed.gather_rows(made, len(indices)).split(sizes, 1)
        kinds = [torch.uint8, *(kind for _, kind in self.fields.values())]
        return tuple(part.to(kind) for part, kind in zip(parts, kinds, strict=True))

    def _keep(self, stored: Rows, names: Sequence[bytes], made: Figures, known: dict[bytes, Figures]) -> None:
        """Store figures of readable images, and know all."""
        known.update((name, tuple(field[row] for field in made)) for row, name in enumerate(names))
        good = made[0][:, 0].nonzero()[:, 0]
        if distributed.is_main() and len(good):
            fields = zip((READABLE, *self.fields), made, strict=True)
            stored.save([names[row] for row in good.tolist()], {name: field[good] for name, field in fields})

    def _joined(self, found: Sequence[Figures]) -> dict[str, Tensor]:
        if not found:
            empty = {name: torch.zeros(0, size, dtype=kind) for name, (size, kind) in self.fields.items()}
            return {READABLE: torch.zeros(0, dtype=torch.bool), **empty}
        readable, *fields = (torch.stack(field) for field in zip(*found, strict=True))
        return {READABLE: readable[:, 0].bool(), **dict(zip(self.fields, fields, strict=True))}


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
