"""Streams of training batches, of which every process takes its share."""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.errors import UsageError
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import Batch, StepTransform, loader_workers, train_batches
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import ImageSource, Indices
from effvl_cli.data.transforms import Preprocess, Transform

T = TypeVar("T")
Stream = Callable[[int], Iterator[T]]
"""`stream(k)` gives the batches of this process from micro-batch k on."""


class LoaderOptions(Protocol):
    """The options of a loader."""

    @property
    def workers(self) -> int | None:
        """Loader processes."""

    @property
    def on_bad(self) -> str:
        """What to do with an unreadable image."""


def check_divides(batch_size: int, option: str, *, accumulate: int = 1, least: int = 1) -> None:
    """Check that every process gets the same number of samples in each backward pass, and at least `least`.

    Args:
        batch_size: samples of a step, over all processes.
        option: the option that sets it, e.g. "--batch-size".
        accumulate: backward passes of a step.
        least: samples that a backward pass needs on each process.

    Raises:
        UsageError: they do not; the message names the nearest size that would.
    """
    size = distributed.world().size
    share = accumulate * size
    if batch_size % share == 0 and batch_size >= least * share:
        return
    passes = f" in {accumulate} passes each" if accumulate > 1 else ""
    wanted = f" of at least {least}" if least > 1 else ""
    processes = f"{size} process{'es' if size > 1 else ''}"
    better = max(least * share, -(-batch_size // share) * share)
    raise UsageError(
        f"{option} {batch_size} gives {processes}{passes} no equal share{wanted}", f"Give {option} {better}"
    )


def share_of(sampler: EpochSampler, step: int) -> Tensor:
    """Sample numbers (batch_size / world,) of this process in a step."""
    world = distributed.world()
    return sampler.share(step, world.rank, world.size)[1]


def in_memory(sampler: EpochSampler, batch_of: Callable[[Tensor], T]) -> Stream[T]:
    """Batches made from the numbers of their samples, without a loader."""

    def stream(start: int) -> Iterator[T]:
        step = start
        while True:
            yield batch_of(share_of(sampler, step))
            step += 1

    return stream


def loaded(
    source: ImageSource,
    sampler: EpochSampler,
    options: LoaderOptions,
    run: Run,
    *,
    seed: int,
    transform: Transform | None = None,
    transform_at: StepTransform | None = None,
) -> Stream[Batch]:
    """Batches that the loader decodes and augments; `transform_at` is for views that change with the step."""
    world = distributed.world()

    def stream(start: int) -> Iterator[Batch]:
        return train_batches(
            source,
            transform,
            sampler,
            transform_at=transform_at,
            seed=seed,
            start_step=start,
            rank=world.rank,
            world=world.size,
            workers=loader_workers(options.workers, run.device.type),
            on_bad=options.on_bad,
        )

    return stream


def decode(
    source: ImageSource,
    preprocess: Preprocess,
    indices: Indices | None,
    options: LoaderOptions,
    run: Run,
    *,
    on_bad: str | None = None,
    noted: bool = True,
) -> Decoded:
    """Images of a split as a network sees them.

    Args:
        source: the split.
        preprocess: geometry.
        indices: (M,) positions; None: all.
        options: loader processes, and what unreadable images do.
        run: whose device and report.
        on_bad: in place of --on-bad.
        noted: whether the report says how many there are.

    Raises:
        DataError: an unreadable image, or too many.
    """
    workers = loader_workers(options.workers, run.device.type)
    images = Decoded.read(source, preprocess, indices, workers=workers, on_bad=on_bad or options.on_bad)
    if noted:
        run.report.data(source, num_samples=len(images), bad_files=images.bad_files)
    return images
