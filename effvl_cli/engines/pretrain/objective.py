"""Parts of labelled training: an objective, its network, and the figures that evaluate it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from effvl_cli.config.pretrain import PretrainConfig
from effvl_cli.core.loop import Task
from effvl_cli.core.metrics import standard_error
from effvl_cli.core.run import Run
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.source import ImageSource, Indices
from effvl_cli.engines.common.batches import decode
from effvl_cli.models.network import Network


@dataclass(frozen=True)
class Objective:
    """One way to train with texts or labels.

    Attributes:
        kind: of the network.
        default_model: name where none is given.
        config: options.
        run: folder, device, report.
        source: training split.
        network: on the device.
        templates: around class names.
    """

    kind: ClassVar[str]
    default_model: ClassVar[str]

    config: PretrainConfig
    run: Run
    source: ImageSource
    network: Network
    templates: tuple[str, ...]

    def task(self, validation: Decoded) -> Task:
        """What the loop trains."""
        raise NotImplementedError

    def probe(self) -> Task:
        """The same without validation images, to time a step on noise images of the first class."""
        return self.task(self.decode(self.source, np.arange(0)))

    def test(self) -> None:
        """Put the figures of the test split into the report."""
        raise NotImplementedError

    def decode(self, source: ImageSource, indices: Indices | None = None) -> Decoded:
        """A split, or some images of it, as network inputs."""
        return decode(source, self.network.preprocess, indices, self.config, self.run, noted=False)

    def test_images(self, source: ImageSource) -> Decoded:
        """A test split, noted in the report."""
        return decode(source, self.network.preprocess, None, self.config, self.run)

    def open(self, split: str, data: str | None = None) -> ImageSource:
        """A split of --data, or of another data set."""
        return load(data or self.config.data, split, root=self.config.data_root, seed=self.config.seed)

    def accuracy(self, name: str, logits: Tensor, labels: Tensor) -> None:
        """Top-1 of the test split."""
        self.figure(name, (logits.argmax(1) == labels).float())

    def figure(self, name: str, correct: Tensor) -> None:
        """Mean of 0/1 for each test image."""
        self.run.report.metric(name, float(correct.mean()), split="test", n=len(correct), se=standard_error(correct))
