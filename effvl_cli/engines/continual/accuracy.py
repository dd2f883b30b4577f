"""Accuracy of a network on the images of a task."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from effvl_cli.core.errors import NumericalError
from effvl_cli.core.metrics import binomial_error
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.common.classifier import logits_of


@dataclass(frozen=True)
class Accuracy:
    """How accuracies are measured: in fp32, whatever the precision of training.

    Attributes:
        run: device.
        batch_size: images at a time.
    """

    run: Run
    batch_size: int

    def of(self, module: nn.Module, images: Decoded) -> float:
        """Share of the images whose largest logit is that of their class; the same on every process.

        Raises:
            NumericalError: logits that are not finite.
        """
        logits = logits_of(module, images, self.run, batch_size=self.batch_size, precision="fp32")
        if not bool(torch.isfinite(logits).all()):
            raise NumericalError("logits are not finite", "Lower --lr")
        right = int((logits.argmax(1) == images.labels).sum())
        return right / max(1, len(images))


def mean_error(accuracies: Sequence[float], images: Sequence[int]) -> float:
    """Standard error of the mean of accuracies, each on so many images of its own."""
    errors = [binomial_error(value, count) or 0.0 for value, count in zip(accuracies, images, strict=True)]
    return float(sum(error**2 for error in errors) ** 0.5 / len(errors))
