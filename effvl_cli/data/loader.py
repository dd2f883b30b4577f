"""Samples of any kind as batches: seeding, unreadable files, resume and loader processes, once for all.

`make(index, epoch)` defines a sample, and `collate` makes a batch of several; images are one
client (`train_batches` here, `Decoded` in data/decoded.py).
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import BatchSource, ImageSource, Indices
from effvl_cli.data.transforms import Preprocess, Transform

MAX_BAD = 0.01  # share of unreadable files that --on-bad skip tolerates

T = TypeVar("T")
B = TypeVar("B")
Make = Callable[[int, int], T]
"""From (index, epoch) to a sample. It draws from torch's global CPU stream, which is seeded for each sample."""
MakeAt = Callable[[int], Make[T]]
"""From a step to its `Make`, for samples whose shape changes during training."""
Collate = Callable[[Sequence[T]], B]
"""Samples to a batch, in the loader's processes. Few large tensors: each one sent between processes takes a file
descriptor, and a user has about a thousand."""
Key = tuple[int, int, int]
"""Step, epoch and index of a sample."""
StepTransform = Callable[[int], Transform]
"""From a step to its transform, for views whose size changes during training."""


def loader_workers(given: int | None, device_type: str) -> int:
    """Number of loader processes: as given, else none when training on the CPU, else up to eight."""
    if given is not None:
        return given
    if device_type == "cpu":
        return 0
    # in a batch job on a shared machine, only the allotted cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


# --- any sample ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Packed(Generic[B]):
    """A batch of the readable samples among those asked for, or None; their places, and the errors by place."""

    batch: B | None
    places: list[int]
    errors: dict[int, DataError]


class _Samples(Dataset[Any], Generic[T]):
    """Samples by key; an unreadable one is returned as its DataError, not raised across processes."""

    def __init__(self, make_at: MakeAt[T], seed: int) -> None:
        self.make_at, self.seed = make_at, seed

    def __getitem__(self, key: Key) -> T | DataError:
        step, epoch, index = key
        try:
            with seeds.global_stream(self.seed, "augment", epoch, index):
                return self.make_at(step)(index, epoch)
        except DataError as error:
            return error


class BadFiles:
    """Counts unreadable samples and stops the run when they are not tolerated.

    `on_bad` is "error", "skip" or, without a limit, "skip-all" as the user says, or "never" for samples that are all
    needed.
    """

    def __init__(self, on_bad: str, total: int) -> None:
        self.on_bad, self.bad = on_bad, set[int]()
        self.limit = total if on_bad == "skip-all" else max(1, int(MAX_BAD * total))

    def meet(self, error: DataError, index: int) -> None:
        """Count one unreadable sample.

        Raises:
            DataError: that sample, or too many of them.
        """
        if self.on_bad not in ("skip", "skip-all"):
            skip = ", or give --on-bad skip" if self.on_bad == "error" else ": none of these images can be skipped"
            raise DataError(error.message, error.hint or f"Mend or remove it{skip}")
        self.bad.add(index)
        if len(self.bad) > self.limit:
            raise DataError(
                f"more than {MAX_BAD:.0%} of the files are unreadable; the last: {error.message}",
                error.hint or "Mend or remove them",
            )


class SampleLoader(Generic[T, B]):
    """Batches of samples that are made on demand, in this process or in others.

    A sample depends only on (seed, epoch, index), so workers, processes and resumption do not change it.

    Args:
        make_at: gives the `make(index, epoch)` of a step.
        collate: samples to a batch.
        total: number of samples, of which a share may be unreadable.
        seed: of the random numbers that `make` draws.
        workers: loader processes.
        on_bad: "error" or "skip".
    """

    def __init__(
        self,
        make_at: MakeAt[T],
        collate: Collate[T, B],
        total: int,
        *,
        seed: int = 0,
        workers: int = 0,
        on_bad: str = "error",
    ) -> None:
        self._samples, self._collate, self._workers = _Samples(make_at, seed), collate, workers
        self.bad = BadFiles(on_bad, total)

    def endless(
        self, sampler: EpochSampler, *, start_step: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[B, Tensor]]:
        """This process's share of every step from one on: batches, and the (B,) int64 indices of their samples.

        A skipped unreadable sample is replaced by another one of the batch, so that batches keep their
        size.
        """
        queue: list[Tensor] = []  # indices of the batches that loader processes have been asked for

        def keys() -> Iterator[list[Key]]:
            for step in count_from(start_step):
                epoch, indices = sampler.share(step, rank, world)
                queue.append(indices)
                yield [(step, epoch, int(index)) for index in indices]

        for packed in self._packed(keys(), refill=True):
            indices = queue.pop(0)
            for place, error in packed.errors.items():
                self.bad.meet(error, int(indices[place]))
                if packed.batch is None:
                    raise DataError(error.message, "No sample of the batch is readable")
            assert packed.batch is not None
            yield packed.batch, indices[packed.places]

    def once(self, indices: Indices, *, chunk: int) -> Iterator[tuple[B | None, Indices]]:
        """Each sample once, in order, some at a time: a batch of the readable ones, and their indices."""
        lists = [[(0, 0, int(index)) for index in indices[k : k + chunk]] for k in range(0, len(indices), chunk)]
        for keys, packed in zip(lists, self._packed(lists, refill=False), strict=True):
            for place, error in packed.errors.items():
                self.bad.meet(error, keys[place][2])
            yield packed.batch, np.array([keys[place][2] for place in packed.places], dtype=np.int64)

    def _packed(self, keys: Iterable[list[Key]], *, refill: bool) -> Iterator[_Packed[B]]:
        def pack(samples: list[T | DataError]) -> _Packed[B]:
            errors = {place: sample for place, sample in enumerate(samples) if isinstance(sample, DataError)}
            good = [place for place in range(len(samples)) if place not in errors]
            if not good:
                return _Packed(None, [], errors)
            places = good
            if refill:
                places = [good[place % len(good)] if place in errors else place for place in range(len(samples))]
            return _Packed(self._collate([samples[place] for place in places]), places, errors)  # type: ignore[misc]

        return iter(
            DataLoader(
                self._samples,
                batch_sampler=keys,
                num_workers=self._workers,
                collate_fn=pack,
                generator=torch.Generator(),  # otherwise the loader would draw from the global stream
            )
        )


def count_from(start: int) -> Iterator[int]:
    """`start`, `start + 1` and so on without end."""
    while True:
        yield start
        start += 1


# --- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One process's part of a step."""

    images: Tensor
    """(B, 3, H, W) uint8."""
    labels: Tensor
    """(B,) int64."""
    indices: Tensor
    """(B,) int64 positions in the split."""
    captions: list[str] | None = None
    picture_sizes: Tensor | None = None
    """(B, 2) heights and widths of the pictures that `images` were squeezed into shape from; None: they are as read."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("images", "labels", "indices")}
        return dataclasses.replace(self, **moved)


def image_loader(
    source: ImageSource,
    transform_at: StepTransform,
    *,
    total: int | None = None,
    seed: int = 0,
    workers: int = 0,
    on_bad: str = "error",
) -> SampleLoader[Tensor, Tensor]:
    """A loader of one tensor per image, (B, 3, H, W) uint8 or whatever the transforms return.

    Unreadable images are counted against `total`, by default the size of the split.
    """

    def make_at(step: int) -> Make[Tensor]:
        transform = transform_at(step)
        return lambda index, epoch: transform(source.image(index))

    return SampleLoader(make_at, _stacked, total or len(source), seed=seed, workers=workers, on_bad=on_bad)


def _stacked(images: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(images))


def train_batches(
    source: ImageSource,
    transform: Transform | None,
    sampler: EpochSampler,
    *,
    transform_at: StepTransform | None = None,
    seed: int,
    start_step: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    on_bad: str = "error",
) -> Iterator[Batch]:
    """Endless stream of this process's images from a step on; `transform_at` is for one that changes with the step."""
    preprocess = getattr(transform, "__self__", None)
    if isinstance(preprocess, Preprocess) and makes_at_once(source, preprocess):
        yield from _made_batches(source, sampler, start_step, rank, world)

    def constant(step: int) -> Transform:
        assert transform is not None
        return transform

    loader = image_loader(source, transform_at or constant, seed=seed, workers=workers, on_bad=on_bad)
    for images, indices in loader.endless(sampler, start_step=start_step, rank=rank, world=world):
        captions = None if source.captions is None else [source.captions[int(k)] for k in indices]
        labels = torch.from_numpy(np.asarray(source.labels[indices.numpy()]))
        yield Batch(images, labels, indices, captions)


def makes_at_once(source: ImageSource, preprocess: Preprocess) -> bool:
    """Whether a source makes many images at once, of the requested size."""
    if not isinstance(source, BatchSource) or not len(source):
        return False
    return bool(source.images(np.array([0]))[0].shape[:2] == preprocess.size)


def _made_batches(source: Any, sampler: EpochSampler, start_step: int, rank: int, world: int) -> Iterator[Batch]:
    for step in count_from(start_step):
        _, indices = sampler.share(step, rank, world)
        places = indices.numpy()
        images = torch.from_numpy(source.images(places)).permute(0, 3, 1, 2).contiguous()
        yield Batch(images, torch.from_numpy(source.labels[places]), indices)


def noise_batch(size: tuple[int, int], count: int, device: torch.device) -> Batch:
    """Images of noise (count, 3, H, W) uint8, all of class 0."""
    images = torch.randint(256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator())
    nothing = torch.zeros(count, dtype=torch.int64)
    return Batch(images.to(device), nothing.to(device), nothing.to(device))
