"""Training of the predictor on golden rankings."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from effvl_cli.config.prune_tokens import PredictConfig, PruneTokensConfig
from effvl_cli.core import loop, optim, seeds
from effvl_cli.core.measure import count_parameters
from effvl_cli.core.phases import Phases
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.engines.common.batches import Stream, check_divides, in_memory
from effvl_cli.engines.inference import over_images
from effvl_cli.engines.prune_tokens.context import Predicting
from effvl_cli.techniques.prune_tokens.losses import Loss, loss_of
from effvl_cli.techniques.prune_tokens.predictor import Predictor, dropped_overlap, kendall_tau, make_predictor, split
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.ranking import mirrored
from effvl_cli.techniques.prune_tokens.selectors import GridSelector
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, num_keep

FEW = 32
FINAL_RATE = 0.1  # of the peak learning rate, as in the official code


class PredictorTask(loop.Task):
    """Golden ranks from token states, which are computed once."""

    def __init__(
        self, module: Predictor, inputs: Tensor, ranks: Tensor, validation: Tensor, num_kept: int, loss: Loss
    ) -> None:
        self.module, self.inputs, self.ranks = module, inputs, ranks
        self.validation, self.num_kept, self.loss = validation, num_kept, loss

    def train_step(self, batch: Tensor, step: int) -> loop.StepOutput:
        """Loss of some ranked images, given by their positions."""
        scores = self.module(self.inputs[batch].float())
        return loop.StepOutput(self.loss(scores, self.ranks[batch], step))

    def evaluate(self) -> dict[str, float]:
        """Agreement with the golden ranking on held-out images."""
        rows = self.validation
        scores, ranks = self.module(self.inputs[rows].float()), self.ranks[rows]
        figures = {"tau": float(kendall_tau(scores, ranks).mean())}
        if self.num_kept < ranks.shape[1]:
            figures["overlap"] = float(dropped_overlap(scores, ranks, self.num_kept).mean())
        return figures


@dataclass(frozen=True)
class TrainedPredictor:
    """A predictor, and how well it agrees with the golden ranking of held-out images."""

    module: Predictor
    tau: float
    overlap: float | None


def train_predictor(
    context: Predicting, images: Decoded, ranks: Tensor, prompts: Prompts | None = None
) -> TrainedPredictor:
    """Train on nine tenths of the ranked images; the epoch that agrees best with the ranking of the rest is kept.

    Args:
        context: tower and options.
        images: that were ranked.
        ranks: (M, N).
        prompts: those in the tower that computes the states.
    """
    config, run = context.config, context.run
    if len(images) < FEW:
        run.warn(f"only {len(images)} ranked images: the predictor will be inaccurate; give more --shots")
    if config.scorer == "label":
        run.warn(
            "--scorer label uses the label, which a predictor cannot see: its rankings have objects at both ends, and "
            "a predictor may do worse than random; use it with --selector golden, or train with another --scorer"
        )
    shape = context.shape
    with seeds.global_stream(config.seed, "predictor"):
        module = make_predictor(
            config.predictor,
            num_patches=shape.num_patches,
            num_prefix=shape.num_prefix,
            dim=shape.width,
            width=config.predictor_width,
        )
    module.to(run.device)
    training, validation = split(images.labels, seeds.generator(config.seed, "predictor-validation"))
    kept = num_keep(config.keep, shape.num_patches)
    budgets = sorted({num_keep(keep, shape.num_patches) for keep in config.predictor_keeps or (config.keep,)})
    loss = loss_of(  # each step draws new pairs, the same for all images on all processes
        config.predictor_loss, shape.num_patches, budgets, lambda step: seeds.generator(config.seed, "pairs", step)
    )

    @cache
    def task() -> PredictorTask:
        """The task for training and agreement; a resumed run that has both does not build it."""
        inputs, golden = (part.to(run.device) for part in _examples(context, images, module, prompts, ranks))
        return PredictorTask(module, inputs, golden, validation.to(run.device), kept, loss)

    @torch.no_grad()
    def agreement() -> dict[str, float]:
        return task().evaluate()

    mirror = training + len(images)  # behind all that are not mirrored; of validation images none
    seen = torch.cat([training, mirror]) if config.predictor_flip else training
    batches, steps_per_epoch = _stream(config, seen)
    steps, phase = config.predictor_epochs * steps_per_epoch, "predictor-prompted" if prompts else "predictor"
    plan = loop.Plan(
        steps=steps,
        rate=lambda step: optim.cosine(step, steps, floor=FINAL_RATE),
        phase=phase,
        eval_every=steps_per_epoch,
        save_every=config.save_every,
        log_every=config.log_every,
        best="overlap" if kept < shape.num_patches else "tau",
    )
    optimizers = optim.build(module, "adam", lr=config.predictor_lr, weight_decay=config.predictor_weight_decay)
    phases = Phases.of(run)
    fitted = phases.train(phase, module, lambda: loop.fit(task(), optimizers, batches, run, plan))
    module.requires_grad_(False)
    figures = phases.once(f"{phase} agreement", agreement)
    run.report.technique["predictor_prompted" if prompts else "predictor"] = {
        "kind": module.kind,
        "width": module.width,
        "params": count_parameters(module),
        "macs": module.macs(shape.num_patches),
        "loss": config.predictor_loss,
        "overlap": {str(kept): figures.get("overlap")},
        "tau": figures["tau"],
        "best_step": fitted.best_step,
        "steps": fitted.steps,
        "trained_on": len(training),
        "seconds": fitted.seconds,
    }
    return TrainedPredictor(module, figures["tau"], figures.get("overlap"))


def _stream(config: PruneTokensConfig | PredictConfig, training: Tensor) -> tuple[Stream[Tensor], int]:
    """Positions of ranked images from any step on, and the steps in an epoch."""
    size = min(config.predictor_batch_size, len(training))
    check_divides(size, "--predictor-batch-size")
    sampler = EpochSampler(len(training), size, config.seed)
    return in_memory(sampler, lambda rows: training[rows]), sampler.steps_per_epoch


def _examples(
    context: Predicting, images: Decoded, module: Predictor, prompts: Prompts | None, ranks: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs and golden ranks of the ranked images, with --predictor-flip those of their mirror images behind them."""
    inputs = predictor_inputs(context, images, module, prompts)
    if not context.config.predictor_flip:
        return inputs, ranks
    mirror = predictor_inputs(context, images, module, prompts, flip=True)
    return torch.cat([inputs, mirror]), torch.cat([ranks, mirrored(ranks, context.tower.grid)])


def predictor_inputs(
    context: Predicting, images: Decoded, module: Predictor, prompts: Prompts | None, *, flip: bool = False
) -> Tensor:
    """(M, ...) float16: the predictor's inputs for every ranked image, or for its mirror image."""
    shape, visual = context.shape, prompts.visual if prompts else None
    vision = PrunedVision(  # whose selector is never asked: all patches are kept
        context.tower, layer=context.layer, num_keep=shape.num_patches, selector=GridSelector(), prompts=visual
    )
    rows = shape.num_prefix + shape.num_patches
    return over_images(
        lambda x, _: module.inputs(vision.states(x.flip(-1) if flip else x)[:, :rows]),
        images,
        context.run,
        batch_size=64,
    ).half()
