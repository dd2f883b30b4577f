"""Training of class features on image features: SGD of arXiv 2307.11978, the same for every method."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.config.prompt_tune import PromptTuneConfig
from effvl_cli.core import distributed, loop, optim
from effvl_cli.core.modes import as_found
from effvl_cli.core.phases import Phases
from effvl_cli.data.loader import count_from
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import ImageSource, Subset
from effvl_cli.data.transforms import augment
from effvl_cli.engines.common.batches import Stream, check_divides, loaded
from effvl_cli.engines.prompt_tune.context import Context, Learning, num_epochs
from effvl_cli.engines.prompt_tune.features import AUGMENT, Features, encoder
from effvl_cli.techniques.prompt_tune.robust_losses import Loss, make_loss, mean_absolute_error
from effvl_cli.techniques.prompt_tune.transport import split_loss

Watch = Callable[[nn.Module, int], None]
"""Called with a module and the steps that have trained it."""


@dataclass(frozen=True)
class FeatureBatch:
    """One process's part of a step."""

    features: Tensor
    """(B, D) as the image tower gives them."""
    labels: Tensor
    """(B,) given labels."""
    indices: Tensor
    """(B,) positions among the training images."""


@dataclass(frozen=True)
class TrainingSet:
    """N images to train on, and the labels that training sees.

    Attributes:
        features: of N or more images; None: the image tower makes them anew each epoch.
        rows: (N,) their rows in `features`.
        indices: (N,) positions in the split.
        given: (N,) int64 labels.
        source: the split.
    """

    features: Features | None
    rows: Tensor
    indices: Tensor
    given: Tensor
    source: ImageSource

    def __len__(self) -> int:
        return len(self.given)

    def take(self, rows: Tensor) -> "TrainingSet":
        """Some of the images."""
        return TrainingSet(self.features, self.rows[rows], self.indices[rows], self.given[rows], self.source)


def rate_of(epoch: int, epochs: int, lr: float, warmup_lr: float) -> float:
    """Learning rate of an epoch, as in the official code: 0.5 lr (1 + cos(pi (e - 1) / E)) after one at `warmup_lr`.

    It does not reach zero. E = 50, lr = 0.002: 1e-5, 0.002, 0.001998027, ...
    """
    return warmup_lr if epoch == 0 else lr * optim.half_cosine((epoch - 1) / epochs)


def steps_per_epoch(context: Learning, count: int) -> int:
    """Whole batches in an epoch of `count` images."""
    return count // min(context.config.batch_size, count)


def loss_of(context: Context[PromptTuneConfig], name: str) -> Loss:
    """A loss with the constants of the options."""
    config = context.config
    return make_loss(
        name,  # type: ignore[arg-type]  # one of the option's choices
        gce_q=config.gce_q,
        sce_alpha=config.sce_alpha,
        sce_beta=config.sce_beta,
        phuber_tau=config.phuber_tau,
        ls_eps=config.ls_eps,
    )


class ClassFeatureTask(loop.Task):
    """A loss of the cosines between image features and learned class features.

    Args:
        context: scale, device.
        module: its forward gives unit class features (K, D); it holds what is trained and nothing else.
        loss: of each sample.
        watch: called with the module at the epochs that the caller asked for.
        trusted: (N,) bool; the others have the mean absolute error for a loss.
    """

    def __init__(
        self,
        context: Learning,
        module: nn.Module,
        loss: Loss,
        watch: Watch | None = None,
        trusted: Tensor | None = None,
    ) -> None:
        self.context, self.module, self.loss, self.watched, self.done = context, module, loss, watch, 0
        self.trusted = trusted

    def train_step(self, batch: FeatureBatch, step: int) -> loop.StepOutput:
        """Mean loss of one process's images."""
        device = self.context.run.device
        features, labels = batch.features.to(device), batch.labels.to(device)
        classes = self.module()
        with torch.autocast(device.type, enabled=False):  # logits and loss in float32
            logits = self.context.scale * F.normalize(features.float(), dim=-1) @ classes.float().T
            losses = self._loss_of(batch.indices)(logits, labels)
        logs = {"top1_train": (logits.detach().argmax(1) == labels).float().mean()}
        return loop.StepOutput(losses.mean(), logs)

    def _loss_of(self, indices: Tensor) -> Loss:
        """The loss of some of the training images."""
        if self.trusted is None:
            return self.loss
        return split_loss(self.loss, mean_absolute_error, self.trusted[indices].to(self.context.run.device))

    def after_step(self, step: int, *, counted: bool) -> None:
        """Count the steps."""
        self.done = step + 1

    def evaluate(self) -> dict[str, float]:
        """Nothing is chosen on held-out images; the module is shown to whoever watches it."""
        if self.watched:
            self.watched(self.module, self.done)
        return {}


def train_module(
    context: Learning,
    module: nn.Module,
    train: TrainingSet,
    loss: Loss,
    lr: float,
    phase: str,
    *,
    watch: Watch | None = None,
    watched: Callable[[int], frozenset[int]] | None = None,
    trusted: Tensor | None = None,
) -> loop.FitResult:
    """Train a module in place, or load it where an earlier attempt has finished.

    Args:
        context: options.
        module: see `ClassFeatureTask`.
        train: images and labels.
        loss: of each sample.
        lr: peak learning rate.
        phase: name, unique in the run.
        watch: called with the module and the steps done.
        watched: epochs, of so many, after which it is called.
        trusted: (N,) bool; the others are trained with the mean absolute error; None: all.
    """
    config, epochs = context.config, num_epochs(context)
    size = min(config.batch_size, len(train))
    check_divides(size, "--batch-size")
    sampler = EpochSampler(len(train), size, config.seed)
    per_epoch = sampler.steps_per_epoch
    plan = loop.Plan(
        steps=epochs * per_epoch,
        rate=lambda step: rate_of(step // per_epoch, epochs, lr, config.warmup_lr) / lr,
        phase=phase,
        precision=config.precision,
        eval_at=frozenset(epoch * per_epoch for epoch in watched(epochs)) if watched else frozenset(),
        save_every=config.save_every,
        log_every=config.log_every,
    )
    optimizers = optim.build(
        module,
        "sgd",
        lr=lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        decays=optim.everything,
    )
    task = ClassFeatureTask(context, module, loss, watch, trusted)
    batches = batches_of(context, train, sampler)
    return Phases.of(context.run).train(phase, module, lambda: loop.fit(task, optimizers, batches, context.run, plan))


def batches_of(context: Learning, train: TrainingSet, sampler: EpochSampler) -> Stream[FeatureBatch]:
    """Batches of features from any step on.

    With kept views, an image shows another one each epoch: number (epoch + position) modulo V.
    """
    if train.features is None:
        return _encoded(context, train, sampler)
    values, world = train.features.values, distributed.world()
    num_views = values.shape[1]

    def stream(start: int) -> Iterator[FeatureBatch]:
        for step in count_from(start):
            epoch, numbers = sampler.share(step, world.rank, world.size)
            views = (epoch + train.indices[numbers]) % num_views
            features = values[train.rows[numbers], views].float()
            yield FeatureBatch(features, train.given[numbers], numbers)

    return stream


def _encoded(context: Learning, train: TrainingSet, sampler: EpochSampler) -> Stream[FeatureBatch]:
    """Features that the image tower makes of new random crops."""
    network, run, config = context.network, context.run, context.config
    source = Subset(train.source, train.indices.numpy())
    transform = augment(AUGMENT, network.preprocess)
    images = loaded(source, sampler, config, run, seed=config.seed, transform=transform)
    encode = encoder(network)

    def stream(start: int) -> Iterator[FeatureBatch]:
        for batch in images(start):
            pixels = network.preprocess.normalise(batch.images.to(run.device))
            with (
                as_found(network.module, training=False),
                torch.no_grad(),
                loop.autocast(run.device, config.precision),
            ):
                features = encode(pixels).float()
            yield FeatureBatch(features, train.given[batch.indices], batch.indices)

    return stream
