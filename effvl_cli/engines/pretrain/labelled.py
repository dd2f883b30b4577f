"""Training with texts or labels, measured once on the test split."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.config.pretrain import PretrainConfig
from effvl_cli.core import distributed, loop, optim, seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.core.measure import count_macs
from effvl_cli.core.metrics import standard_error
from effvl_cli.core.run import Run
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import loader_workers, train_batches
from effvl_cli.data.prompts import choose_templates
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import ImageSource
from effvl_cli.data.transforms import augment
from effvl_cli.engines.pretrain.clip import ClipTask, image_to_text_recall, zero_shot_logits
from effvl_cli.engines.pretrain.rates import decay_curve, rate_curve
from effvl_cli.engines.pretrain.supervised import SupervisedTask
from effvl_cli.models import network as networks

DEFAULTS = {"clip": "tiny:clip", "supervised": "tiny:resnet"}
MAX_VALIDATION = 2000  # images looked at while training


def run(config: PretrainConfig, run: Run) -> None:
    """Train, evaluate, save."""
    source = _source(config, "train")
    network = networks.load(
        config.model,
        config.weights or "none",
        default=DEFAULTS[str(config.method)],
        kind="clip" if config.method == "clip" else "classifier",
        seed=config.seed,
        num_classes=len(source.classes),
        download=config.download,
        options=config,
        log=run.log,
    )
    network.module.to(run.device)
    templates = choose_templates(config.templates, source.templates)
    task = _task(config, run, source, network, templates)
    fitted = _fit(config, run, source, network, task)
    run.report.model(network.name, network.source, network.module)
    for edit in network.edits:
        run.report.edit(edit["kind"], **{"blocks": edit["args"]} if "args" in edit else {})
    run.report.data(source)
    run.report.technique.update(method=config.method, steps=fitted.steps, best_step=fitted.best_step)
    image = torch.zeros(1, 3, *network.preprocess.size, device=run.device)
    run.report.efficiency["macs_per_image"] = count_macs(getattr(network.module, "visual", network.module), image)
    if fitted.steps > fitted.resumed_at:
        images = (fitted.steps - fitted.resumed_at) * config.batch_size
        run.report.efficiency["images_per_s"] = images / fitted.seconds
    _test(config, run, source, network, task, templates)
    _save(config, run, source, network, templates)


def _source(config: PretrainConfig, split: str, data: str | None = None) -> ImageSource:
    return load(data or config.data, split, root=config.data_root, seed=config.seed)


def _task(
    config: PretrainConfig, run: Run, source: ImageSource, network: networks.Network, templates: tuple[str, ...]
) -> Any:
    held_out = _source(config, "val")
    count = min(len(held_out), MAX_VALIDATION)
    order = torch.randperm(len(held_out), generator=seeds.generator(0, "validation"))[:count].sort().values
    validation = _decoded(config, run, held_out, network, order.numpy())
    if config.method == "supervised":
        return SupervisedTask(network, run, label_smoothing=config.label_smoothing, validation=validation)
    return ClipTask(
        network, source, templates, run, seed=config.seed, token_keep=config.keep or 1.0, validation=validation
    )


def _fit(config: PretrainConfig, run: Run, source: ImageSource, network: networks.Network, task: Any) -> loop.FitResult:
    batches, steps_per_epoch = _stream(config, run, source, network)
    if config.steps is None and source.endless:
        raise UsageError(f"--epochs of endless data ({config.data})", "Give --steps")
    steps = config.steps or int(config.epochs or 0) * steps_per_epoch
    curve = rate_curve(config)
    optimizers = optim.build(
        network.module,
        config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        decay_all=config.decay_all,
    )
    plan = loop.Plan(
        steps=steps,
        rate=lambda step: curve(step / steps),
        decay=decay_curve(config, lambda step: step / steps),
        accumulate=config.accumulate,
        clip_grad=config.clip_grad,
        clip_mode=config.clip_mode,
        precision=config.precision,
        eval_every=config.eval_every or (steps_per_epoch if config.epochs else 0),
        save_every=config.save_every,
        log_every=config.log_every,
    )
    return loop.fit(task, optimizers, batches, run, plan)


def _stream(
    config: PretrainConfig, run: Run, source: ImageSource, network: networks.Network
) -> tuple[Callable[[int], Iterator[Any]], int]:
    """Training batches from any micro-batch on, and the optimizer steps in an epoch."""
    world = distributed.world()
    share = config.accumulate * world.size
    if config.batch_size % share:
        raise UsageError(
            f"--batch-size {config.batch_size} is no multiple of --accumulate {config.accumulate} x {world.size} ranks",
            f"Give --batch-size {config.batch_size + share - config.batch_size % share}",
        )
    sampler = EpochSampler(len(source), config.batch_size // config.accumulate, config.seed)
    transform = augment(config.augment, network.preprocess)

    def batches(start: int) -> Iterator[Any]:
        return train_batches(
            source,
            transform,
            sampler,
            seed=config.seed,
            start_step=start,
            rank=world.rank,
            world=world.size,
            workers=loader_workers(config.workers, run.device.type),
            on_bad=config.on_bad,
        )

    return batches, max(1, sampler.steps_per_epoch // config.accumulate)


def _test(
    config: PretrainConfig,
    run: Run,
    source: ImageSource,
    network: networks.Network,
    task: Any,
    templates: tuple[str, ...],
) -> None:
    """The test split, once."""
    if not source.classes:
        test = _source(config, "test")
        images = _decoded(config, run, test, network)
        run.report.data(test, num_samples=len(images), bad_files=images.bad_files)
        _figure(run, "recall1_image_to_text", image_to_text_recall(network, images, run))
        return
    for data in (config.data, *(config.eval_data if config.method == "clip" else ())):
        test = _source(config, "test", data)
        images = _decoded(config, run, test, network)
        run.report.data(test, num_samples=len(images), bad_files=images.bad_files)
        suffix = "" if data == config.data else f"_{data.partition(':')[2] or data}"
        if config.method == "supervised":
            logits = task.logits(images)
        else:
            own = templates if data == config.data else test.templates
            logits = zero_shot_logits(network, images, test.classes, own, run)
            shuffled = torch.arange(len(test.classes)).roll(1)  # every name on another class
            _accuracy(run, f"top1_shuffled_names{suffix}", logits[:, shuffled], images.labels)
        _accuracy(run, f"top1{suffix}", logits, images.labels)


def _decoded(
    config: PretrainConfig,
    run: Run,
    source: ImageSource,
    network: networks.Network,
    indices: NDArray[np.int64] | None = None,
) -> Decoded:
    workers = loader_workers(config.workers, run.device.type)
    return Decoded.read(source, network.preprocess, indices, workers=workers, on_bad=config.on_bad)


def _accuracy(run: Run, name: str, logits: Tensor, labels: Tensor) -> None:
    _figure(run, name, (logits.argmax(1) == labels).float())


def _figure(run: Run, name: str, correct: Tensor) -> None:
    run.report.metric(name, float(correct.mean()), split="test", n=len(correct), se=standard_error(correct))


def _save(
    config: PretrainConfig, run: Run, source: ImageSource, network: networks.Network, templates: tuple[str, ...]
) -> None:
    manifest = {
        **network.describe(),
        "classes": list(source.classes),
        "templates": list(templates),
        "data": config.data,
        "method": config.method,
    }
    run.save_model(network.module.state_dict(), manifest)
