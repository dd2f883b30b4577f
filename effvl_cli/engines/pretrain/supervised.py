"""Cross-entropy training of a classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core.loop import StepOutput, Task
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import Batch
from effvl_cli.engines.inference import over_images
from effvl_cli.models.network import Network


class SupervisedTask(Task):
    """Cross entropy with label smoothing (Szegedy et al., arXiv 1512.00567, sec. 7)."""

    def __init__(self, network: Network, run: Run, *, label_smoothing: float, validation: Decoded) -> None:
        self.network, self.module, self.run = network, network.module, run
        self.label_smoothing = label_smoothing
        self.validation = validation

    def train_step(self, batch: Batch, step: int) -> StepOutput:
        """Mean loss of one process's images."""
        batch = batch.to(self.run.device)
        logits = self.module(self.network.preprocess.normalise(batch.images))
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        return StepOutput(loss, {"top1_train": (logits.detach().argmax(1) == batch.labels).float().mean()})

    def evaluate(self) -> dict[str, float]:
        """Top-1 on validation images."""
        images = self.validation
        if not len(images):
            return {}
        return {"top1_val": float((self.logits(images).argmax(1) == images.labels).float().mean())}

    def logits(self, images: Decoded) -> Tensor:
        """(M, C)."""
        self.module.eval()
        with torch.no_grad():
            return over_images(lambda x, _: self.module(x), images, self.run, batch_size=256)
