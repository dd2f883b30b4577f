"""Training of a classifier on labelled images."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.core.loop import StepOutput, Task
from effvl_cli.core.modes import as_found
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import Batch
from effvl_cli.data.transforms import Preprocess
from effvl_cli.engines.inference import over_images

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images (B, 3, H, W) normalised, logits (B, C), labels (B,)) to a scalar."""


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """Cross entropy with label smoothing (Szegedy et al., arXiv 1512.00567, sec. 7)."""
    return lambda images, logits, labels: F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


class ClassifierTask(Task):
    """A loss of the logits, and figures on held-out images.

    Args:
        module: maps images to logits.
        preprocess: normalisation.
        run: device.
        loss: of a batch.
        validate: figures of the module, the same on every process.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess,
        run: Run,
        *,
        loss: Loss,
        validate: Callable[[nn.Module], dict[str, float]],
    ) -> None:
        self.module, self.preprocess, self.run = module, preprocess, run
        self.loss, self.validate = loss, validate

    def train_step(self, batch: Batch, step: int) -> StepOutput:
        """Mean loss of one process's images."""
        batch = batch.to(self.run.device)
        images = self.preprocess.normalise(batch.images)
        logits = self.module(images)
        logs = {"top1_train": (logits.detach().argmax(1) == batch.labels).float().mean()}
        return StepOutput(self.loss(images, logits, batch.labels), logs)

    def evaluate(self) -> dict[str, float]:
        """Validation figures from the engine's function."""
        return self.validate(self.module)


def logits_of(module: nn.Module, images: Decoded, run: Run, *, batch_size: int, precision: str) -> Tensor:
    """Logits (M, C) float32 in evaluation mode, the same on every process."""
    with as_found(module, training=False), torch.no_grad():
        return over_images(lambda x, _: module(x), images, run, batch_size=batch_size, precision=precision)
