"""Decoded batches for training, and whole decoded splits for evaluation."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError
from effvl_cli.core.report import physical_memory
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import BatchSource, ImageSource, Indices
from effvl_cli.data.transforms import Preprocess, Transform

MAX_BAD = 0.01  # share of unreadable images that --on-bad skip puts up with
MEMORY_SHARE = 0.5  # of the machine's, for one decoded split


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

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("images", "labels", "indices")}
        return dataclasses.replace(self, **moved)


Key = tuple[int, int, int]
"""Step, epoch and index of a sample."""
StepTransform = Callable[[int], Transform]
"""The transform of a step, for views whose size changes while training."""


class _Decoded(Dataset):
    """Samples by key; an unreadable one is returned as its DataError, not raised across processes."""

    def __init__(self, source: ImageSource, transform_at: StepTransform, seed: int) -> None:
        self.source, self.transform_at, self.seed = source, transform_at, seed

    def __getitem__(self, key: Key) -> Tensor | DataError:
        step, epoch, index = key
        try:
            image = self.source.image(index)
        except DataError as error:
            return error
        with seeds.global_stream(self.seed, "augment", epoch, index):
            return self.transform_at(step)(image)


Packed = tuple[Tensor, dict[int, DataError]]
"""(B, 3, H, W) uint8, blank where unreadable, and the errors by place; no images at all when none is readable."""


def _pack(samples: list[Tensor | DataError]) -> Packed:
    """One tensor a batch: each that crosses processes takes a file descriptor, and a user has about a thousand."""
    errors = {place: sample for place, sample in enumerate(samples) if isinstance(sample, DataError)}
    images = [sample for sample in samples if isinstance(sample, Tensor)]
    if not images:
        return torch.empty(0, dtype=torch.uint8), errors
    blank = torch.zeros_like(images[0])
    return torch.stack([blank if isinstance(sample, DataError) else sample for sample in samples]), errors


def _decode(
    source: ImageSource, transform_at: StepTransform, seed: int, keys: Iterable[list[Key]], workers: int
) -> Iterator[Packed]:
    """Decoded samples for lists of keys."""
    return iter(
        DataLoader(
            _Decoded(source, transform_at, seed),
            batch_sampler=keys,
            num_workers=workers,
            collate_fn=_pack,
            generator=torch.Generator(),  # else the loader would draw from the global stream
        )
    )


def loader_workers(given: int | None, device_type: str) -> int:
    """Loader processes: as given, else none beside a CPU that computes, else up to eight."""
    if given is not None:
        return given
    if device_type == "cpu":
        return 0
    # of a batch job on a shared machine, only the allotted cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


class _BadFiles:
    """Counts unreadable images and stops the run when they are not to be put up with."""

    def __init__(self, on_bad: str, total: int) -> None:
        self.on_bad, self.limit, self.bad = on_bad, max(1, int(MAX_BAD * total)), set[int]()

    def meet(self, error: DataError, index: int) -> None:
        """One unreadable image.

        Raises:
            DataError: that one, or that there are too many.
        """
        if self.on_bad == "error":
            raise DataError(error.message, error.hint or "Mend or remove it, or give --on-bad skip")
        self.bad.add(index)
        if len(self.bad) > self.limit:
            raise DataError(
                f"more than {MAX_BAD:.0%} of the images are unreadable; the last: {error.message}", error.hint
            )


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
    """Endless stream of this process's batches from a step on; `transform_at` is for one that changes with the step.

    A sample's augmentation depends on (seed, epoch, index) alone, so workers, processes and resumption do not show. An
    unreadable image that is skipped leaves its place to another sample of the batch, so that batches keep their size.
    """
    steps = _count_from(start_step)
    preprocess = getattr(transform, "__self__", None)
    if isinstance(source, BatchSource) and isinstance(preprocess, Preprocess):
        first = source.images(np.array([0]))[0]
        if first.shape[:2] == preprocess.size:
            yield from _made_batches(source, sampler, steps, rank, world)
    again = _BadFiles(on_bad, len(source))
    queue: list[Tensor] = []  # indices of the batches that loader processes have been asked for

    def keys() -> Iterator[list[Key]]:
        for step in steps:
            epoch, indices = sampler.share(step, rank, world)
            queue.append(indices)
            yield [(step, epoch, int(index)) for index in indices]

    def constant(step: int) -> Transform:
        assert transform is not None
        return transform

    for decoded in _decode(source, transform_at or constant, seed, keys(), workers):
        indices = queue.pop(0)
        yield _batch(source, decoded, indices, again)


def _count_from(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


def _made_batches(source: Any, sampler: EpochSampler, steps: Iterator[int], rank: int, world: int) -> Iterator[Batch]:
    for step in steps:
        _, indices = sampler.share(step, rank, world)
        places = indices.numpy()
        images = torch.from_numpy(source.images(places)).permute(0, 3, 1, 2).contiguous()
        yield Batch(images, torch.from_numpy(source.labels[places]), indices)


def _batch(source: ImageSource, decoded: Packed, indices: Tensor, bad: _BadFiles) -> Batch:
    images, errors = decoded
    places = indices.clone()
    good = [place for place in range(len(indices)) if place not in errors]
    for place, error in errors.items():
        bad.meet(error, int(indices[place]))
        if not good:
            raise DataError(error.message, "No image of the batch is readable")
        stand_in = good[place % len(good)]
        images[place], places[place] = images[stand_in], indices[stand_in]
    captions = None if source.captions is None else [source.captions[int(k)] for k in places]
    labels = torch.from_numpy(np.asarray(source.labels[places.numpy()]))
    return Batch(images, labels, places, captions)


def eval_images(
    source: ImageSource,
    preprocess: Preprocess,
    indices: Indices,
    *,
    workers: int = 0,
    on_bad: str = "error",
    chunk: int = 64,
) -> tuple[Tensor, Indices]:
    """Decode images once, in memory.

    Returns:
        (M, 3, H, W) uint8, and the (M,) indices that were readable.

    Raises:
        DataError: unreadable images, or more than fit into half of the machine's memory.
    """
    height, width = preprocess.size
    needed, room = len(indices) * 3 * height * width, MEMORY_SHARE * physical_memory()
    if needed > room:
        raise DataError(
            f"{len(indices)} images of {width}x{height} px take {needed / 1e9:.0f} GB, and half of the memory is "
            f"{room / 1e9:.0f} GB",
            "Use a machine with more memory, a network with smaller images, or a folder with fewer images",
        )
    if isinstance(source, BatchSource) and len(indices):
        made = source.images(indices[:1])[0]
        if made.shape[:2] == preprocess.size:
            parts = [source.images(indices[k : k + chunk]) for k in range(0, len(indices), chunk)]
            return torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous(), indices
    out = torch.empty(len(indices), 3, height, width, dtype=torch.uint8)
    bad, filled, kept = _BadFiles(on_bad, len(indices)), 0, []
    lists = [[(0, 0, int(i)) for i in indices[k : k + chunk]] for k in range(0, len(indices), chunk)]
    decoded = _decode(source, lambda _: preprocess.to_uint8, 0, lists, workers)
    for keys, (images, errors) in zip(lists, decoded, strict=True):
        for place, (*_, index) in enumerate(keys):
            if place in errors:
                bad.meet(errors[place], index)
            else:
                out[filled] = images[place]
                kept.append(index)
                filled += 1
    return out[:filled], np.array(kept, dtype=np.int64)
