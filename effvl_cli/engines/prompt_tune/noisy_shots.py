"""Training images with true and given labels."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from effvl_cli.techniques.prompt_tune.noise import transition_matrix

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class NoisyShots:
    """N images of a training split.

    Attributes:
        indices: (N,) int64 positions in the split, sorted, none twice.
        clean: (N,) int64 true labels; None where they are not known.
        given: (N,) int64 labels that training sees.
        rate: of wrong labels, as asked for; 0 where nothing was asked and true labels are not known.
        model: of noise.
        remark: what the user should know, or "".
    """

    indices: NDArray[np.int64]
    clean: NDArray[np.int64] | None
    given: NDArray[np.int64]
    rate: float
    model: str
    remark: str = ""

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def flipped(self) -> NDArray[np.bool_]:
        """(N,) whether the given label is not the true one; all False where true labels are not known."""
        if self.clean is None:
            return np.zeros(len(self), dtype=np.bool_)
        found: NDArray[np.bool_] = self.clean != self.given
        return found

    @property
    def rate_realised(self) -> float:
        """Share of wrong labels; 0 where true labels are not known."""
        return float(self.flipped.mean()) if len(self) else 0.0

    def transition(self, num_classes: int) -> NDArray[np.float64] | None:
        """(K, K) shares of given labels (columns) among the images of each true class (rows); None: not known."""
        if self.clean is None:
            return None
        found: NDArray[np.float64] = transition_matrix(
            torch.from_numpy(self.clean), torch.from_numpy(self.given), num_classes
        ).numpy()
        return found

    def if_known(self, value: T) -> T | None:
        """What depends on true labels: null where they are not known."""
        return None if self.clean is None else value
