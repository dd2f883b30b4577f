"""Prompt tuning with pruning active: the towers and the predictor are frozen."""

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core import loop, optim, seeds
from effvl_cli.core.measure import count_parameters
from effvl_cli.core.metrics import paired_difference
from effvl_cli.core.phases import Phases
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import Batch
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import Subset
from effvl_cli.data.transforms import augment
from effvl_cli.engines.common.batches import Stream, check_divides, in_memory, loaded
from effvl_cli.engines.prune_tokens.context import Tuning
from effvl_cli.engines.prune_tokens.evaluation import embed, pooled
from effvl_cli.engines.prune_tokens.prompt_init import initial_prompts
from effvl_cli.engines.prune_tokens.texts import class_texts, class_weights, with_prompts
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, Selector, num_keep

FIRST_EPOCH_RATE = 1e-5  # constant, as in the official code
MIXED_KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


class TuneTask(loop.Task):
    """Cross entropy over the classes, closeness to the dense tower, or both."""

    def __init__(self, context: Tuning, selector: Selector, prompts: Prompts, validation: Decoded | None) -> None:
        self.context, self.module, self.validation = context, prompts, validation
        self.objective = context.config.tune_objective
        self.num_keep = num_keep(context.config.keep, context.shape.num_patches)
        self.vision = PrunedVision(
            context.tower,
            layer=context.layer,
            num_keep=self.num_keep,
            selector=selector,
            prompts=prompts.visual,
            dropped=context.choice.dropped,
            diversity=context.choice.diversity,
        )
        self.texts = None if prompts.text is None else class_texts(context, prompts.text.template)

    def train_step(self, batch: Batch, step: int) -> loop.StepOutput:
        """Loss of one process's images."""
        context = self.context
        self.vision.num_keep = self._keep_at(step)
        batch = batch.to(context.run.device)
        pixels = context.network.preprocess.normalise(batch.images)
        embedding = F.normalize(pooled(self.vision(pixels)), dim=-1)
        terms: dict[str, Tensor] = {}
        if "ce" in self.objective:
            terms["ce"] = F.cross_entropy(context.tau * embedding @ self._class_weights(), batch.labels)
        if "distill" in self.objective:
            with torch.no_grad():
                dense = F.normalize(pooled(context.tower.module(pixels)), dim=-1)
            terms["distill"] = (1 - (embedding * dense).sum(-1)).mean()
        loss = torch.stack(list(terms.values())).sum()
        return loop.StepOutput(loss, {name: value.detach() for name, value in terms.items()})

    def evaluate(self) -> dict[str, float]:
        """Top-1 of the tuned towers on validation images."""
        if self.validation is None:
            return {}
        self.vision.num_keep = self.num_keep
        embedding = embed(self.context, self.validation, self.vision)
        tuned = with_prompts(self.context, self.module)
        return {"top1_val": float(tuned.accuracy(embedding, self.validation.labels).mean())}

    def _class_weights(self) -> Tensor:
        text = self.module.text
        if text is None or self.texts is None:
            return self.context.classifier
        return class_weights(self.context, text, self.texts)

    def _keep_at(self, step: int) -> int:
        """K of a step, the same on every process."""
        config = self.context.config
        if config.tune_keeps == "fixed":
            return self.num_keep
        drawn = torch.randint(len(MIXED_KEEPS), (), generator=seeds.generator(config.seed, "tune-keeps", step))
        return num_keep(MIXED_KEEPS[int(drawn)], self.context.shape.num_patches)


def tune_prompts(context: Tuning, images: Decoded, selector: Selector) -> Prompts:
    """Tune prompts on the few-shot images; the best epoch on validation images is kept."""
    config, run = context.config, context.run
    prompts = initial_prompts(context, images, selector, num_keep(config.keep, context.shape.num_patches))
    validation = context.validation()
    task = TuneTask(context, selector, prompts, validation)
    batches, steps_per_epoch = _stream(context, images)
    steps = config.tune_epochs * steps_per_epoch
    plan = loop.Plan(
        steps=steps,
        rate=lambda step: optim.cosine_after(step, steps, steps_per_epoch, FIRST_EPOCH_RATE / config.tune_lr),
        phase="tuning",
        precision=config.precision,
        eval_every=steps_per_epoch,
        save_every=config.save_every,
        log_every=config.log_every,
        best="top1_val" if validation else None,
    )
    optimizers = optim.build(prompts, "sgd", lr=config.tune_lr, weight_decay=5e-4, momentum=0.9)
    phases = Phases.of(run)
    fitted = phases.train("tuning", prompts, lambda: loop.fit(task, optimizers, batches, run, plan))
    prompts.requires_grad_(False)
    found = phases.once("prompts validated", lambda: _validated(task))
    if validation is not None:
        run.report.metric("top1_val_predictor_tuned", found["top1"], split="val", n=len(validation), se=found["se"])
    run.report.technique["tune"] = {
        "prompts": config.prompts,
        "params": count_parameters(prompts),
        "template": prompts.text.template if prompts.text else None,
        "steps": fitted.steps,
        "best_step": fitted.best_step,
        "top1_val": found["top1"],
        "objective": config.tune_objective,
        "keeps": config.tune_keeps,
        "seconds": fitted.seconds,
    }
    return prompts


@torch.no_grad()
def _validated(task: TuneTask) -> dict[str, float | None]:
    """Accuracy on the val split with its paired error: the basis for choosing between prompts."""
    context, images = task.context, task.validation
    if images is None:
        return {"top1": None, "se": None}
    task.vision.num_keep = task.num_keep
    tuned = with_prompts(context, task.module).accuracy(embed(context, images, task.vision), images.labels)
    spread = paired_difference(tuned, context.accuracy(embed(context, images), images.labels))[1]
    return {"top1": float(tuned.mean()), "se": spread}


def _stream(context: Tuning, images: Decoded) -> tuple[Stream[Batch], int]:
    """Few-shot batches from any step on, and the steps in an epoch."""
    config = context.config
    size = min(config.tune_batch_size, len(images))
    check_divides(size, "--tune-batch-size")
    sampler = EpochSampler(len(images), size, config.seed)
    if config.tune_augment == "none":
        stream = in_memory(sampler, lambda rows: Batch(images[rows], images.labels[rows], rows))
    else:
        transform = augment(config.tune_augment, context.network.preprocess)
        source = Subset(images.source, images.indices)
        stream = loaded(source, sampler, config, context.run, seed=config.seed, transform=transform)
    return stream, sampler.steps_per_epoch
