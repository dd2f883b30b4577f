"""Cross-entropy training of a classifier."""

from typing import ClassVar

from torch import Tensor

from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.common.classifier import ClassifierTask, cross_entropy, logits_of
from effvl_cli.engines.pretrain.objective import Objective


class SupervisedObjective(Objective):
    """Labels alone."""

    kind: ClassVar[str] = "classifier"
    default_model: ClassVar[str] = "tiny:resnet"

    def task(self, validation: Decoded) -> ClassifierTask:
        """Cross entropy."""
        return ClassifierTask(
            self.network.module,
            self.network.preprocess,
            self.run,
            loss=cross_entropy(self.config.label_smoothing),
            validate=lambda _: self._top1(validation),
        )

    def test(self) -> None:
        """Top-1."""
        images = self.test_images(self.open("test"))
        self.accuracy("top1", self._logits(images), images.labels)

    def _top1(self, images: Decoded) -> dict[str, float]:
        """On validation images, if there are any."""
        if not len(images):
            return {}
        return {"top1_val": float((self._logits(images).argmax(1) == images.labels).float().mean())}

    def _logits(self, images: Decoded) -> Tensor:
        return logits_of(
            self.network.module,
            images,
            self.run,
            batch_size=self.config.eval_batch_size,
            precision=self.config.precision,
        )
