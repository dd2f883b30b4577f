"""Which images of a data set with boxes an epoch takes, and in which batches.

Where sources have ratios, the source of each slot of an epoch is drawn by (seed, "source", epoch), and the images of a
source come in permutations by (seed, "images", source, epoch), one after another. Processes and workers change nothing.
Images of one orientation share batches, so that little of a batch is padding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.data.boxes import BoxSource, SourceInfo
from effvl_cli.data.sampler import EpochSampler


class MixedSampler(EpochSampler):
    """Batches of an epoch: slots filled from the sources by their ratios, grouped by orientation.

    Args:
        source: images with boxes.
        batch_size: over all processes.
        seed: of the draws.
        epoch_size: slots of an epoch; None: the number of images, or with ratios that of the first source that is drawn
            from, divided by its share.

    Raises:
        UsageError: an epoch does not fill one batch, or no source is drawn from.
    """

    def __init__(self, source: BoxSource, batch_size: int, seed: int, epoch_size: int | None = None) -> None:
        self.members = [_members(source, info) for info in source.sources]
        self.shares = shares(source.sources, [len(rows) for rows in self.members])
        self.wide = torch.tensor([record.width >= record.height for record in source.records])
        super().__init__(epoch_size or natural_size(self.members, self.shares), batch_size, seed)

    def _shuffle(self, num_samples: int, epoch: int) -> Tensor:
        """(N,) positions in the source, of which each whole batch is of one orientation where possible."""
        slots = self.draws(num_samples, epoch)
        if self.shares is None and self.wide[slots].all():
            return slots
        return grouped(slots, self.wide[slots], self.batch_size)

    def draws(self, num_samples: int, epoch: int) -> Tensor:
        """(N,) positions in the source, slot by slot."""
        if self.shares is None:
            return torch.cat(self._permutations(torch.cat(self.members), num_samples, epoch, 0))[:num_samples]
        generator = seeds.generator(self.seed, "source", epoch)
        probabilities = torch.tensor(self.shares, dtype=torch.float64)
        chosen = torch.multinomial(probabilities, num_samples, replacement=True, generator=generator)
        slots = torch.empty(num_samples, dtype=torch.int64)
        for number, rows in enumerate(self.members):
            places = torch.nonzero(chosen == number).flatten()
            if len(places):
                slots[places] = torch.cat(self._permutations(rows, len(places), epoch, number))[: len(places)]
        return slots

    def _permutations(self, rows: Tensor, wanted: int, epoch: int, number: int) -> list[Tensor]:
        """Permutations of a source's images, as many as are needed."""
        generator = seeds.generator(self.seed, "images", number, epoch)
        return [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-wanted // len(rows)))]


def shares(sources: Sequence[SourceInfo], sizes: Sequence[int]) -> list[float] | None:
    """Share of the draws of each source; None where none has a ratio: all images alike.

    A source without a ratio beside others that have one has ratio 0, as has one without images.

    Raises:
        UsageError: all ratios are 0.
    """
    if all(info.ratio is None for info in sources):
        return None
    ratios = [(info.ratio or 0.0) * (size > 0) for info, size in zip(sources, sizes, strict=True)]
    if not sum(ratios):
        raise UsageError("the ratio of every source of --data is 0 or it has no images", "Give one a ratio above 0")
    return [ratio / sum(ratios) for ratio in ratios]


def natural_size(members: Sequence[Tensor], parts: Sequence[float] | None) -> int:
    """Slots of an epoch in which the first source that is drawn from is seen about once."""
    if parts is None:
        return sum(len(rows) for rows in members)
    size, share = next((len(rows), share) for rows, share in zip(members, parts, strict=True) if share)
    return max(1, round(size / share))


def grouped(slots: Tensor, wide: Tensor, batch_size: int) -> Tensor:
    """The same slots in another order: batches of wide ones and of tall ones as they fill, then what is left.

    Args:
        slots: (N,) int64.
        wide: (N,) bool.
        batch_size: slots of a batch.
    """
    waiting: dict[bool, list[int]] = {True: [], False: []}
    found: list[int] = []
    for slot, kind in zip(slots.tolist(), wide.tolist(), strict=True):
        waiting[kind].append(slot)
        if len(waiting[kind]) == batch_size:
            found += waiting[kind]
            waiting[kind] = []
    return torch.tensor(found + waiting[True] + waiting[False], dtype=torch.int64)


def _members(source: BoxSource, info: SourceInfo) -> Tensor:
    """Positions of a source's images."""
    return torch.tensor([k for k, record in enumerate(source.records) if record.source == info.name], dtype=torch.int64)
