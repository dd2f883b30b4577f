"""Evaluation of features: nearest neighbours and a linear classifier, by scikit-learn."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.config.pretrain import EvalConfig, PretrainConfig, SearchConfig
from effvl_cli.core import seeds
from effvl_cli.core.feature_judges import knn, linear_probe
from effvl_cli.core.modes import as_found
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.source import ImageSource
from effvl_cli.data.transforms import Preprocess
from effvl_cli.engines.common import batches
from effvl_cli.engines.inference import over_images
from effvl_cli.engines.pretrain.images import open_split

NEIGHBOURS = (1, 20, 200)
MAX_VALIDATION = 2000

Encoder = Callable[[Tensor], Tensor]
Config = EvalConfig | PretrainConfig | SearchConfig


@dataclass(frozen=True)
class Judged:
    """0/1 for each test picture, by figure ("knn1", "knn20", .., "linear")."""

    correct: dict[str, Tensor]


class Probe:
    """A labelled bank from the training split, and pictures to classify."""

    def __init__(self, config: Config, run: Run, preprocess: Preprocess, bank: Decoded, asked: Decoded) -> None:
        self.run, self.preprocess, self.precision = run, preprocess, config.precision
        self.bank, self.asked, self.batch_size = bank, asked, config.eval_batch_size

    @classmethod
    def open(cls, config: Config, run: Run, preprocess: Preprocess, split: str, *, bank: Decoded) -> "Probe":
        """Decode a split: all of the test split, at most `MAX_VALIDATION` of another."""
        limit = None if split == "test" else MAX_VALIDATION
        return cls(config, run, preprocess, bank, decode(config, run, open_split(config, split), preprocess, limit))

    def knn20(self, module: nn.Module) -> float:
        """Accuracy of 20-NN."""
        with as_found(module, training=False):
            bank, asked = self.features(module)
        return float(knn(bank, self.bank.labels, asked, (20,))[20].eq(self.asked.labels).float().mean())

    def judge(self, encode: Encoder) -> Judged:
        """All evaluations on the features of a backbone in evaluation mode."""
        return self._judged(*self.features(encode), linear=True)

    def judge_pixels(self) -> Judged:
        """Nearest neighbours on the pixels themselves."""
        flat = [self._embed(lambda pixels: pixels.flatten(1), images) for images in (self.bank, self.asked)]
        return self._judged(*flat, linear=False)

    def features(self, encode: Encoder) -> tuple[Tensor, Tensor]:
        """Unit features (M, D) of the bank and of the pictures to classify."""
        return self._embed(encode, self.bank), self._embed(encode, self.asked)

    def _embed(self, encode: Encoder, images: Decoded) -> Tensor:
        rows = over_images(
            lambda x, _: encode(x),
            images,
            self.run,
            batch_size=self.batch_size,
            precision=self.precision,
        )
        return F.normalize(rows, dim=1)

    def _judged(self, bank: Tensor, asked: Tensor, *, linear: bool) -> Judged:
        if len(bank) < max(NEIGHBOURS):
            self.run.warn(f"k-NN sees {len(bank)} pictures: where k is larger, all of them vote")
        truth = self.asked.labels
        found = {f"knn{k}": p.eq(truth).float() for k, p in knn(bank, self.bank.labels, asked, NEIGHBOURS).items()}
        if linear:
            found["linear"] = linear_probe(bank, self.bank.labels, asked).eq(truth).float()
        return Judged(found)


def decode(config: Config, run: Run, source: ImageSource, preprocess: Preprocess, limit: int | None) -> Decoded:
    """Pictures of a split as network inputs; with a limit, a random sample of that size."""
    order = np.arange(len(source))
    if limit is not None and limit < len(source):
        order = torch.randperm(len(source), generator=seeds.generator(0, "bank"))[:limit].sort().values.numpy()
    return batches.decode(source, preprocess, order, config, run, noted=False)
