"""What every phase of prune-blocks works with: the network to prune, and the scoring and test images."""

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from effvl_cli.config.options import RunOptions
from effvl_cli.config.prune_blocks import (
    EMBEDDED,
    ApplyConfig,
    PruneBlocksConfig,
    ScoreConfig,
    ScoreOptions,
)
from effvl_cli.core import bench, seeds
from effvl_cli.core.chance import refuse_chance
from effvl_cli.core.errors import DataError, ModelError, NumericalError, UsageError
from effvl_cli.core.metrics import top_k
from effvl_cli.core.run import Run
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.fewshot import few_shot
from effvl_cli.data.source import ImageSource, Indices, digest
from effvl_cli.engines.common.batches import decode
from effvl_cli.engines.common.classifier import logits_of
from effvl_cli.models import network as networks

EMBEDDED_MODEL = "cifar-resnet:26,width=8"
MAX_SCORED = 10_000  # scoring images without --score-size
FEW_SCORED = 5_000  # with fewer images top-1 often picks another unit than it would on all
BATCH = 256


JudgedConfig = PruneBlocksConfig | ScoreConfig | ApplyConfig
R_co = TypeVar("R_co", bound=RunOptions, covariant=True)
C_co = TypeVar("C_co", bound=JudgedConfig, covariant=True)
C = TypeVar("C", bound=JudgedConfig)


@dataclass
class NetworkContext(Generic[R_co]):
    """A network and its run, for verbs that need no data.

    Attributes:
        config: options of the job or verb.
        run: folder, device, report.
        network: as loaded; its `module` is the original network, on the device.
    """

    config: R_co
    run: Run
    network: networks.Network

    @property
    def module(self) -> nn.Module:
        """The original network."""
        found: nn.Module = self.network.module
        return found

    def noise(self, batch: int) -> Tensor:
        """(batch, 3, H, W) normal images on the device, always the same."""
        return bench.noise(self.network.preprocess.size, self.run.device)(batch)


@dataclass
class Context(NetworkContext[C_co]):
    """The same with data: scoring and test images.

    Attributes:
        data: name of the data set.
    """

    data: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the logits."""
        return self.train.classes

    @cached_property
    def train(self) -> ImageSource:
        """Training images for fine-tuning; scoring images are never among them, except with --score-split train."""
        source = self._open("train")
        self.run.report.data(source)
        return source

    @cached_property
    def scoring(self) -> Decoded:
        """The scoring images; none may be unreadable, because counts of different runs must match.

        Raises:
            DataError: a class without an image.
            UsageError: --score-size is more than there are.
        """
        source, indices = self._scoring_indices()
        split = decode(source, self.network.preprocess, indices, self.config, self.run, on_bad="never")
        self.run.report.technique["ids_sha256"] = digest(split.ids)
        return split

    def count(self, split: Literal["score", "test"]) -> int:
        """Number of images of a split, without decoding them."""
        return len(self._scoring_indices()[1] if split == "score" else self._open("test"))

    def _scoring_indices(self) -> tuple[ImageSource, Indices]:
        config = self.config
        source = self._open({"holdout": "val"}.get(config.score_split, config.score_split))
        found = np.bincount(source.labels, minlength=len(self.classes))
        if not found.all():
            name = self.classes[int(found.argmin())]
            raise DataError(f"{source.name} has no {source.split} image of class {name!r}", "Add some, or drop it")
        if config.score_size and config.score_size > found.min():
            raise UsageError(
                f"--score-size is {config.score_size}, and a class has {found.min()} images", f"Give 1 to {found.min()}"
            )
        size = config.score_size or max(1, MAX_SCORED // len(self.classes))
        everything = not config.score_size and len(source) <= MAX_SCORED
        return source, np.arange(len(source)) if everything else few_shot(source, size, config.seed)

    @cached_property
    def test(self) -> Decoded:
        """The test images."""
        source = self._open("test")
        return decode(source, self.network.preprocess, None, self.config, self.run)

    def first_images(self) -> Tensor:
        """(B, 3, H, W): the first scoring images, normalised, on the device."""
        size = self.config.score_batch_size
        return self.network.preprocess.normalise(self.scoring[:size].to(self.run.device))

    @cached_property
    def recalibration(self) -> list[Tensor]:
        """Batches (B, 3, H, W) of --bn-recal training images, normalised, on the device; the same each time.

        Raises:
            UsageError: there are not that many.
        """
        if self.config.bn_recal > len(self.train):
            raise UsageError(
                f"--bn-recal is {self.config.bn_recal}, and there are {len(self.train)} training images",
                f"Give 1 to {len(self.train)}",
            )
        order = torch.randperm(len(self.train), generator=seeds.generator(self.config.seed, "bn-recal"))
        places = np.sort(order[: self.config.bn_recal].numpy())
        pixels = decode(self.train, self.network.preprocess, places, self.config, self.run, noted=False).pixels
        parts = [part for part in pixels.split(BATCH) if len(part) > 1 or len(pixels) == 1]  # one has no variance
        return [self.network.preprocess.normalise(part.to(self.run.device)) for part in parts]

    def accuracy(self, module: nn.Module, split: Decoded) -> dict[str, float]:
        """`top1`, `top5`, `loss` of a network on a split, the same on every process.

        Raises:
            NumericalError: logits that are not finite.
        """
        config = self.config
        logits = logits_of(module, split, self.run, batch_size=config.eval_batch_size, precision=config.precision)
        if not bool(torch.isfinite(logits).all()):
            raise NumericalError(
                f"logits of {self.network.name} are not finite", "Check its weights, or lower --finetune-lr"
            )
        loss = nn.functional.cross_entropy(logits.double(), split.labels)
        top1, top5 = (float(top_k(logits, split.labels, k).mean()) for k in (1, 5))
        return {"top1": top1, "top5": top5, "loss": float(loss)}

    def refuse_chance(self, top1: float) -> None:
        """Check the accuracy of the original network on the scoring images.

        Raises:
            ModelError: it is hardly better than chance, without --force.
        """
        refuse_chance(
            self.run,
            self.network.name,
            top1,
            len(self.classes),
            images="the scoring images",
            force=self.config.force,
        )

    def _open(self, split: str) -> ImageSource:
        return load(self.data, split, root=self.config.data_root, seed=0)


Judged = Context[JudgedConfig]
Scoring = Context[PruneBlocksConfig | ScoreConfig]
Tuning = Context[PruneBlocksConfig | ApplyConfig]


def build_context(
    config: C, run: Run, *, weights: str | None, model: str | None, data: str | None = None, new_head: bool = False
) -> Context[C]:
    """Open the data and the network.

    Args:
        config: options.
        run: of these.
        weights: run folder, file or tag; "none": random ones.
        model: registry name; None: that of the weights, else the embedded one.
        data: data set; None: the one that the weights were trained on.
        new_head: whether the classifier of the weights is left out.

    Raises:
        UsageError: data without classes, or no data.
        ModelError: weights that do not fit.
        DataError: a classifier with another number of classes.
    """
    name = data or networks.manifest_of(weights).get("data")
    if name is None:
        raise UsageError("no --data, and the weights do not name their training data", "Give --data")
    source = load(name, "train", root=config.data_root, seed=0)
    if not source.classes:
        raise UsageError(f"--data {name} has no class labels", "prune-blocks measures classification: give labels")
    if source.endless:
        raise UsageError(f"--data {name} is endless", "Give a data set of a fixed size, e.g. digits or folder:PATH")
    network = networks.load(
        model,
        weights,
        default=EMBEDDED_MODEL if name == EMBEDDED else "",
        kind="classifier",
        seed=config.seed,
        classes=source.classes,
        new_head=new_head,
        options=config,
        log=run.log,
        warn=run.warn,
    )
    if networks.RANDOM_CLASSIFIER in network.notes and not new_head:
        raise ModelError(f"--weights {weights} have no classifier", "`effvl prune-blocks --new-head` trains one first")
    network.module.to(run.device).eval()
    run.report.model(network.name, network.source, network.module)
    return Context(config, run, network, name)


def note_leaks(context: Judged) -> None:
    """Report, with a warning, whether the scoring images were trained on or are the test images."""
    technique, config = context.run.report.technique, context.config
    ours = context.network.source == "random" or context.network.manifest.get("data") == context.data
    seen = not ours or config.score_split == "train"
    technique.update(leak=int(config.score_split == "test"), holdout_seen_by_pretraining=int(seen))
    if config.score_split == "test":
        context.run.warn("LEAK: the test images decide what is removed; no figure of this run is a result")
    elif seen:
        context.run.warn(
            "the scoring images were trained on: accuracies on them are optimistic, but their differences are paired"
        )
    direct = isinstance(config, ScoreOptions) and (config.criterion, config.metric) == ("direct", "top1")
    if direct and len(context.scoring) < FEW_SCORED:
        context.run.warn(
            f"{len(context.scoring)} scoring images: below {FEW_SCORED}, --metric loss ranks more stably than top1"
        )
