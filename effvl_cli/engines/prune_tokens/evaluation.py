"""Accuracy of dense and pruned towers on the same images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core.errors import ModelError, NumericalError
from effvl_cli.core.metrics import mcnemar, paired_difference, standard_error, top_k, wilson
from effvl_cli.engines.inference import over_images
from effvl_cli.engines.prune_tokens.setup import Images, Setup
from effvl_cli.techniques.prune_tokens.selectors import ClsAttentionSelector, RandomSelector
from effvl_cli.techniques.prune_tokens.tower import NonFiniteError, PrunedVision, Selector, num_keep

ORACLES = frozenset({"golden"})


def selector_of(name: str, setup: Setup, predictor: Selector | None) -> Selector:
    """A selector by its name; `golden` needs rankings and is made where they are.

    Raises:
        ModelError: the tower cannot have it.
    """
    if name == "predictor":
        if predictor is None:
            raise ModelError("selector predictor has no predictor", "Train one: effvl prune-tokens predict")
        return predictor
    if name == "cls-attn":
        if setup.shape.num_prefix == 0:
            raise ModelError(f"selector cls-attn: {setup.network.name} has no CLS token", "Use --selector predictor")
        return ClsAttentionSelector()
    return RandomSelector(setup.config.seed)


def prune(setup: Setup, selector: Selector, keep: float, prompts: Any = None) -> PrunedVision:
    """The tower with that share of its patches kept."""
    kept = num_keep(keep, setup.shape.num_patches)
    return PrunedVision(setup.tower, layer=setup.layer, num_keep=kept, selector=selector, prompts=prompts).eval()


def embed(setup: Setup, images: Images, vision: PrunedVision | None = None) -> Tensor:
    """Unit embeddings (M, E) on the CPU; of the dense tower when no pruned one is given.

    Raises:
        NumericalError: a selector's scores are not finite; names the images.
    """
    keys = images.keys.to(setup.run.device)

    def one_batch(pixels: Tensor, rows: range) -> Tensor:
        output = setup.tower.module(pixels) if vision is None else vision(pixels, keys[rows.start : rows.stop])
        return F.normalize((output[0] if isinstance(output, tuple) else output).float(), dim=-1)

    try:
        return over_images(
            one_batch,
            images.pixels,
            setup.network.preprocess,
            setup.run,
            batch_size=getattr(setup.config, "eval_batch_size", 128),
            precision=setup.config.precision,
        )
    except NonFiniteError as error:
        names = [name for name, key in zip(images.ids, images.keys.tolist(), strict=True) if key in error.samples]
        raise NumericalError(
            f"scores of {', '.join(names[:5])} are not finite", "The weights or images hold NaN"
        ) from error


def result(
    setup: Setup, name: str, keep: float, images: Images, embedding: Tensor, dense: Tensor, prompts: int = 0
) -> dict[str, Any]:
    """One row of the results: accuracy and its paired difference to the dense tower on the same images."""
    labels = images.labels
    correct, reference = setup.accuracy(embedding, labels), setup.accuracy(dense, labels)
    difference, spread = paired_difference(correct, reference)
    macs = macs_of(setup, name, keep, prompts)
    same = setup.predictions(embedding) == setup.predictions(dense)
    return {
        "selector": name,
        "keep": keep,
        "K": num_keep(keep, setup.shape.num_patches),
        "oracle": name in ORACLES,
        "n": len(images),
        "templates": len(setup.templates),
        "top1": float(correct.mean()),
        "top5": float(top_k(embedding @ setup.classifier.cpu(), labels, 5).mean()),
        "se": standard_error(correct) if name == "dense" else spread,
        "delta": difference,
        "ci95": list(wilson(int(correct.sum()), len(images))),
        "mcnemar": list(mcnemar(correct, reference)),
        "agreement": float(same.float().mean()),
        "cosine": float((embedding * dense).sum(1).mean()),
        "macs": macs,
        "flops": 2 * macs,
    }


def macs_of(setup: Setup, name: str, keep: float, prompts: int = 0) -> int:
    """Multiply-adds of an image through the pruned tower, its selector included."""
    shape = setup.shape
    kept = num_keep(keep, shape.num_patches)
    if name == "dense" or (kept == shape.num_patches and not prompts):
        return shape.dense()
    selector = 0
    if name.startswith("predictor"):
        selector = shape.mixer(setup.run.report.technique["predictor"]["width"])
    elif name == "cls-attn":
        selector = shape.cls_attention()
    return shape.pruned(kept, setup.layer, prompts) + selector


def record(setup: Setup, row: dict[str, Any], metric: str | None = None) -> None:
    """Put a row into the report and its accuracy among the metrics."""
    technique = setup.run.report.technique
    technique.setdefault("results", []).append(row)
    name = metric or f"top1_{row['selector'].replace('-', '_').replace('+', '_')}"
    setup.run.report.metric(name, row["top1"], split="test", n=row["n"], se=row["se"])


def record_gain(setup: Setup, name: str, better: Tensor, worse: Tensor, labels: Tensor) -> None:
    """Paired difference of two towers' accuracies as a metric of its own."""
    difference, spread = paired_difference(setup.accuracy(better, labels), setup.accuracy(worse, labels))
    setup.run.report.metric(name, difference, split="test", n=len(labels), se=spread)


def record_controls(setup: Setup, images: Images, dense: Tensor) -> None:
    """What the figures are to be read against: shuffled class names, and how much of an image the object covers."""
    shuffled = setup.classifier.cpu().roll(1, dims=1)  # every name on another class
    correct = ((dense @ shuffled).argmax(1) == images.labels).float()
    report = setup.run.report
    report.metric("top1_shuffled_names", float(correct.mean()), split="test", n=len(images), se=standard_error(correct))
    if hasattr(images.source, "object_cover"):
        cover = torch.as_tensor(images.source.object_cover(images.indices))
        report.metric("object_cover", float(cover.mean()), split="test", n=len(images), se=standard_error(cover))
