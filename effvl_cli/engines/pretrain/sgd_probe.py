"""Linear probe by SGD on augmented pictures: several rates at once on the same features, the best by validation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.config.pretrain import EvalConfig
from effvl_cli.core import loop, seeds
from effvl_cli.core.optim import Optimizers, RateCurve
from effvl_cli.core.run import Run
from effvl_cli.data.loader import Batch
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import ImageSource
from effvl_cli.data.transforms import Preprocess, augment
from effvl_cli.engines.common.batches import check_divides, loaded
from effvl_cli.engines.pretrain.probes import Encoder, Probe
from effvl_cli.models.network import Network
from effvl_cli.techniques.pretrain.heads import LinearHeads

MOMENTUM = 0.9
REFERENCE_BATCH = 256  # batch size that the rates are given for


class ProbeTask(loop.Task):
    """Cross entropy of all heads; the backbone is frozen."""

    def __init__(
        self, heads: LinearHeads, encode: Encoder, preprocess: Preprocess, run: Run, validation: Probe
    ) -> None:
        self.module = heads
        self.encode, self.preprocess, self.run = encode, preprocess, run
        self.features = validation.features(encode)[1].to(run.device)
        self.labels = validation.asked.labels.to(run.device)

    def train_step(self, batch: Batch, step: int) -> loop.StepOutput:
        """Sum over the heads, whose gradients are independent."""
        batch = batch.to(self.run.device)
        with torch.no_grad():
            features = F.normalize(self.encode(self.preprocess.normalise(batch.images)).float(), dim=1)
        logits = self.module(features * features.shape[1] ** 0.5)
        return loop.StepOutput(torch.stack([F.cross_entropy(rows, batch.labels) for rows in logits]).sum())

    def accuracies(self) -> Tensor:
        """(G,) on validation pictures."""
        logits = self.module(self.features * self.features.shape[1] ** 0.5)
        found: Tensor = (logits.argmax(2) == self.labels).float().mean(1)
        return found

    def evaluate(self) -> dict[str, float]:
        """Of the best head."""
        return {"top1_val": float(self.accuracies().max())}


def sgd_probe(
    config: EvalConfig,
    run: Run,
    network: Network,
    encode: Encoder,
    source: ImageSource,
    validation: Probe,
    test: Probe,
) -> tuple[Tensor, float]:
    """Train on the whole training split.

    Returns:
        0/1 for each test picture, and the rate that was best on validation pictures.
    """
    width = validation.features(encode)[1].shape[1]
    with seeds.global_stream(config.seed, "probe"):
        heads = LinearHeads(len(config.sgd_lr), width, len(source.classes)).to(run.device)
    task = ProbeTask(heads, encode, network.preprocess, run, validation)
    size = min(config.sgd_batch_size, len(source))
    check_divides(size, "--sgd-batch-size")
    sampler = EpochSampler(len(source), size, config.seed)
    steps = config.sgd_epochs * sampler.steps_per_epoch
    scale = sampler.batch_size / REFERENCE_BATCH
    groups = [
        {"params": list(head.parameters()), "lr": rate * scale}
        for head, rate in zip(heads.heads, config.sgd_lr, strict=True)
    ]
    curve = RateCurve()

    transform = augment("rrc-flip", network.preprocess)
    batches = loaded(source, sampler, config, run, seed=config.seed, transform=transform)
    optimizers = Optimizers([torch.optim.SGD(groups, lr=config.sgd_lr[0], momentum=MOMENTUM)])
    plan = loop.Plan(steps=steps, rate=lambda step: curve(step / steps), phase="probe", precision=config.precision)
    loop.fit(task, optimizers, batches, run, plan)
    heads.eval()
    with torch.no_grad():
        best = int(task.accuracies().argmax())
        features = test.features(encode)[1].to(run.device)
        logits = heads.heads[best](features * width**0.5)
    return (logits.argmax(1).cpu() == test.asked.labels).float(), config.sgd_lr[best]
