"""Training of the predictor on golden rankings."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from effvl_cli.core import distributed, loop, optim, seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.core.measure import count_parameters
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.engines.inference import over_images
from effvl_cli.engines.prune_tokens.setup import Images, Setup
from effvl_cli.techniques.prune_tokens.predictor import (
    MixerPredictor,
    dropped_overlap,
    kendall_tau,
    listwise_loss,
    pooled_inputs,
)
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, num_keep

VALIDATION_SHARE = 10  # one ranked image in so many
FEW = 32
FINAL_RATE = 0.1  # of the peak learning rate, as in the official code


class PredictorTask(loop.Task):
    """Listwise regression of golden ranks from pooled token states, which are computed once."""

    def __init__(
        self, module: MixerPredictor, inputs: Tensor, ranks: Tensor, validation: Tensor, num_kept: int
    ) -> None:
        self.module, self.inputs, self.ranks = module, inputs, ranks
        self.validation, self.num_kept = validation, num_kept

    def train_step(self, batch: Tensor, step: int) -> loop.StepOutput:
        """Loss of some ranked images, given by their positions."""
        scores = self.module(self.inputs[batch].float())
        return loop.StepOutput(listwise_loss(scores, self.ranks[batch]))

    def evaluate(self) -> dict[str, float]:
        """Agreement with the golden ranking on held-out images."""
        rows = self.validation
        scores, ranks = self.module(self.inputs[rows].float()), self.ranks[rows]
        figures = {"tau": float(kendall_tau(scores, ranks).mean())}
        if self.num_kept < ranks.shape[1]:
            figures["overlap"] = float(dropped_overlap(scores, ranks, self.num_kept).mean())
        return figures


def train_predictor(setup: Setup, images: Images, ranks: Tensor) -> MixerPredictor:
    """Train on nine tenths of the ranked images; the epoch that overlaps best with the ranking of the rest is kept."""
    config, run = setup.config, setup.run
    if len(images) < FEW:
        run.warn(f"only {len(images)} ranked images: the predictor will be poor; give more --shots")
    with seeds.global_stream(config.seed, "predictor"):
        module = MixerPredictor(setup.shape.num_patches, setup.shape.num_prefix, config.predictor_width)
    module.to(run.device)
    inputs = _inputs(setup, images).to(run.device)
    training, validation = split(len(images), config.seed)
    kept = num_keep(config.keep, setup.shape.num_patches)
    task = PredictorTask(module, inputs, ranks.to(run.device), validation.to(run.device), kept)
    batches, steps_per_epoch = _stream(config, training)
    steps = config.predictor_epochs * steps_per_epoch
    plan = loop.Plan(
        steps=steps,
        rate=lambda step: optim.cosine(step, steps, floor=FINAL_RATE),
        phase="predictor",
        eval_every=steps_per_epoch,
        save_every=config.save_every,
        log_every=config.log_every,
        best="overlap" if kept < setup.shape.num_patches else "tau",
    )
    optimizers = optim.build(module, "adam", lr=config.predictor_lr, weight_decay=config.predictor_weight_decay)
    fitted = loop.fit(task, optimizers, batches, run, plan)
    module.eval().requires_grad_(False)
    with torch.no_grad():
        figures = task.evaluate()
    run.report.technique["predictor"] = {
        "kind": "mixer",
        "width": config.predictor_width,
        "params": count_parameters(module),
        "macs": setup.shape.mixer(config.predictor_width),
        "loss": "listwise",
        "overlap": {str(kept): figures.get("overlap")},
        "tau": figures["tau"],
        "best_step": fitted.best_step,
        "steps": fitted.steps,
        "trained_on": len(training),
        "seconds": fitted.seconds,
    }
    return module


def split(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to train on and to validate on; with a single image, that one is both."""
    order = torch.randperm(count, generator=seeds.generator(seed, "predictor-validation"))
    held_out = max(1, count // VALIDATION_SHARE)
    if count == 1:
        return order, order
    return order[held_out:].sort().values, order[:held_out].sort().values


def _stream(config: Any, training: Tensor) -> tuple[Any, int]:
    here = distributed.world()
    size = min(config.predictor_batch_size, len(training))
    if size % here.size:
        raise UsageError(
            f"a predictor batch of {size} is no multiple of {here.size} processes", "Change --predictor-batch-size"
        )
    sampler = EpochSampler(len(training), size, config.seed)

    def batches(start: int) -> Iterator[Tensor]:
        step = start
        while True:
            yield training[sampler.share(step, here.rank, here.size)[1]]
            step += 1

    return batches, sampler.steps_per_epoch


def _inputs(setup: Setup, images: Images) -> Tensor:
    """(M, P+N, w) float16: what the predictor reads, for every ranked image."""
    vision = PrunedVision(setup.tower, layer=setup.layer, num_keep=setup.shape.num_patches, selector=_Nothing())
    width = setup.config.predictor_width
    return over_images(
        lambda x, _: pooled_inputs(vision.states(x), width),
        images.pixels,
        setup.network.preprocess,
        setup.run,
        batch_size=64,
    ).half()


class _Nothing:
    def score(self, states: Tensor, context: Any) -> Tensor:
        """Never asked: all patches are kept."""
        raise AssertionError("no patch is dropped here")
