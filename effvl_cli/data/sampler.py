"""Which samples a step sees: a pure function of the step, so that nothing has to be stored to resume."""

from functools import lru_cache

import torch
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.data.source import ENDLESS


class EpochSampler:
    """Shuffled epochs of whole batches; the remainder of an epoch that does not fill a batch is left out.

    Args:
        num_samples: size of the data; `ENDLESS` or more is taken in order, without epochs.
        batch_size: over all processes.
        seed: of the shuffling; epoch e is shuffled by (seed, "shuffle", e).

    Raises:
        UsageError: the data do not fill one batch.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int) -> None:
        if num_samples < batch_size:
            raise UsageError(
                f"--batch-size {batch_size} is more than the {num_samples} samples", f"Give {num_samples} or less"
            )
        self.batch_size, self.seed = batch_size, seed
        self.endless = num_samples >= ENDLESS
        self.steps_per_epoch = num_samples // batch_size
        self._order = lru_cache(maxsize=2)(lambda epoch: self._shuffle(num_samples, epoch))

    def _shuffle(self, num_samples: int, epoch: int) -> Tensor:
        return torch.randperm(num_samples, generator=seeds.generator(self.seed, "shuffle", epoch))

    def at(self, step: int) -> tuple[int, Tensor]:
        """Epoch and (batch_size,) sample numbers of a step."""
        if self.endless:
            return 0, torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epoch, place = divmod(step, self.steps_per_epoch)
        return epoch, self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]

    def share(self, step: int, rank: int, world: int) -> tuple[int, Tensor]:
        """Epoch and this process's contiguous part of the step's samples."""
        epoch, indices = self.at(step)
        size = self.batch_size // world
        return epoch, indices[rank * size : (rank + 1) * size]
