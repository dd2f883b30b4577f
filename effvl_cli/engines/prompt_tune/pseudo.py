"""Pseudo-labels: training images with the class that zero-shot CLIP sees in them (`--unsupervised`)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError, EffvlError
from effvl_cli.data import load
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.prompt_tune.arms import Comparing
from effvl_cli.engines.prompt_tune.features import features_of
from effvl_cli.engines.prompt_tune.label_sets import LabelSet
from effvl_cli.engines.prompt_tune.noise_records import ENDLESS_SHOTS
from effvl_cli.engines.prompt_tune.noisy_shots import NoisyShots
from effvl_cli.models import network as networks
from effvl_cli.models.openclip import logit_scale_value
from effvl_cli.techniques.prompt_tune.class_head import ClassHead
from effvl_cli.techniques.prompt_tune.pseudo_labels import averaged, pseudo_labels


def training_source(context: Comparing) -> ImageSource:
    """The training images: those of `--unlabelled`, or of the data.

    Raises:
        DataError: there are none.
    """
    config = context.config
    if not config.unlabelled:
        return context.source("train")
    return load(config.unlabelled, "train", root=config.data_root, seed=0, option="--unlabelled")


def pseudo_set(context: Comparing, source: ImageSource) -> LabelSet:
    """Chosen training images with their predicted classes; true labels are only reported on.

    Raises:
        DataError: no image is chosen.
    """
    config = context.config
    count = ENDLESS_SHOTS * len(context.classes) if source.endless else len(source)
    indices, logits = _logits(context, source, np.arange(count, dtype=np.int64))
    generator = seeds.generator(config.seed, "pseudo-labels")
    found = pseudo_labels(logits, config.select, config.num_select, config.tau, generator)
    if not len(found.rows):
        raise DataError(f"--tau is {config.tau}, and no training image is predicted as surely", "Lower it")
    chosen = indices[found.rows.numpy()]
    clean, given = None if config.unlabelled else np.asarray(source.labels[chosen]), found.labels.numpy()
    wrong = 0.0 if clean is None else float((clean != given).mean())
    labels = LabelSet(NoisyShots(chosen, clean, given, wrong, f"pseudo-{config.select}"), "")
    _report(context, labels)
    return labels


def _logits(context: Comparing, source: ImageSource, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], Tensor]:
    """Zero-shot logits of readable images, averaged over the models."""
    config, run = context.config, context.run
    if not config.pseudo_models:
        found = features_of(context.network, source, indices, config, run)
        return found.indices, ClassHead(context.classifier.cpu(), scale=context.scale)(found.first)
    parts = []
    for spec in config.pseudo_models:
        network = _network(context, spec)
        network.module.to(run.device).eval().requires_grad_(False)
        classifier = networks.zero_shot_classifier(network, context.classes, context.templates, run.device, run.warn)
        found = features_of(network, source, indices, config, run)
        head = ClassHead(classifier.T.cpu(), scale=float(logit_scale_value(network.module)))
        parts.append(head(found.first))
    return found.indices, averaged(parts)


def _network(context: Comparing, spec: str) -> networks.Network:
    """The network of an entry of `--pseudo-models`.

    Raises:
        EffvlError: it cannot be had; names the entry.
    """
    config, (model, _, weights) = context.config, spec.partition("=")
    try:
        return networks.load(
            model,
            weights or None,
            default="",
            kind="clip",
            seed=config.seed,
            download=config.download,
            log=context.run.log,
        )
    except EffvlError as error:
        raise type(error)(f"--pseudo-models {spec}: {error.message}", error.hint) from error


def _report(context: Comparing, labels: LabelSet) -> None:
    report, shots = context.run.report, labels.shots
    right = torch.from_numpy(~shots.flipped).double()  # of no meaning where true labels are not known
    counts = torch.bincount(labels.given, minlength=len(context.classes))
    sums = right.new_zeros(len(counts)).index_add(0, labels.given, right)
    rows: list[dict[str, Any]] = [
        {"label": label, "name": name, "n": int(n), "acc": shots.if_known(float(total / n)) if n else None}
        for label, (name, n, total) in enumerate(zip(context.classes, counts, sums, strict=True))
    ]
    config = context.config
    few = [row["name"] for row in rows if row["n"] < config.num_select]
    report.technique["pseudo"] = {
        "select": config.select,
        "models": list(config.pseudo_models) or [context.network.name],
        "n": len(right),
        "acc": shots.if_known(float(right.mean())),
        "fewer_than_asked": few if config.select != "threshold" else [],
        "per_class": rows,
    }
    report.metric("top1_pseudo_labels", shots.if_known(float(right.mean())), split="train", n=len(right))
    empty = [row["name"] for row in rows if not row["n"]]
    if empty:
        context.run.warn(f"{len(empty)} classes have no pseudo-label: {', '.join(empty[:5])}")
