"""Accuracy of dense and pruned towers on the same images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core.chance import refuse_chance
from effvl_cli.core.errors import NumericalError
from effvl_cli.core.metrics import mcnemar, mean_per_class, paired_difference, standard_error, top_k, wilson
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.inference import over_images
from effvl_cli.engines.prune_tokens.context import AnyContext, Judged, Learning
from effvl_cli.engines.prune_tokens.texts import with_prompts
from effvl_cli.techniques.prune_tokens.arm_result import ArmResult
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.selector_table import macs_of, spec_of
from effvl_cli.techniques.prune_tokens.tower import NonFiniteError, WrappedTower, num_keep

GUARDED = 256  # images that are checked before a search
PER_CLASS = frozenset({"caltech101", "fgvc_aircraft"})  # data sets whose papers average over classes


def embed(context: Judged, images: Decoded, vision: WrappedTower | None = None) -> Tensor:
    """Unit embeddings (M, E) on the CPU; of the dense tower when no pruned one is given.

    Raises:
        NumericalError: a selector's scores are not finite; names the images.
    """
    keys = images.keys.to(context.run.device)

    def one_batch(pixels: Tensor, rows: range) -> Tensor:
        output = context.tower.module(pixels) if vision is None else vision(pixels, keys[rows.start : rows.stop])
        return F.normalize(pooled(output), dim=-1)

    try:
        return over_images(
            one_batch,
            images,
            context.run,
            batch_size=context.config.eval_batch_size,
            precision=context.config.precision,
        )
    except NonFiniteError as error:
        names = [name for name, key in zip(images.ids, images.keys.tolist(), strict=True) if key in error.samples]
        raise NumericalError(
            f"scores of {', '.join(names[:5])} are not finite", "The weights or images hold NaN"
        ) from error


def known_images(context: Learning) -> Decoded:
    """The few-shot images, for a long search or training: the dense tower must know their classes.

    Raises:
        ModelError: its accuracy on some of them is hardly better than chance.
    """
    images = context.few_shot()
    some = images.take(torch.linspace(0, len(images) - 1, min(GUARDED, len(images))).long().unique())
    _refuse_chance(context, some, embed(context, some))
    return images


def embed_dense(context: Judged, images: Decoded) -> Tensor:
    """`embed` with the dense tower, the reference for the others.

    Raises:
        ModelError: it is hardly better than chance.
    """
    embeddings = embed(context, images)
    _refuse_chance(context, images, embeddings)
    return embeddings


def _refuse_chance(context: Judged, images: Decoded, embeddings: Tensor) -> None:
    refuse_chance(
        context.run,
        context.network.name,
        float(context.accuracy(embeddings, images.labels).mean()),
        len(context.classes),
        images=f"{len(images)} {images.source.split} images",
        force=context.config.force or context.network.source == "random",  # asked for: --weights none
    )


def pooled(output: Any) -> Tensor:
    """(B, E) float32 of what a tower returns; some also return their tokens."""
    found: Tensor = (output[0] if isinstance(output, tuple) else output).float()
    return found


def result(
    context: AnyContext,
    name: str,
    keep: float,
    images: Decoded,
    embedding: Tensor,
    dense: Tensor,
    prompts: Prompts | None = None,
) -> ArmResult:
    """One row of the results: accuracy and its paired difference to the dense tower on the same images.

    Text prompts in `prompts` make the class weights of the row; the dense tower keeps the untuned ones.
    """
    labels, tuned = images.labels, with_prompts(context, prompts)
    correct, reference = tuned.accuracy(embedding, labels), context.accuracy(dense, labels)
    difference, spread = paired_difference(correct, reference)
    macs = macs_of(context.place, name, keep, prompts)
    merged = None if name == "dense" else spec_of(name).merges
    same = tuned.predictions(embedding) == context.predictions(dense)
    return ArmResult(
        selector=name,
        keep=keep,
        K=num_keep(keep, context.shape.num_patches),
        oracle=name != "dense" and spec_of(name).oracle,
        n=len(images),
        templates=len(context.templates),
        top1=float(correct.mean()),
        top5=float(top_k(embedding @ tuned.classifier.cpu(), labels, 5).mean()),
        top1_per_class=mean_per_class(correct, labels),
        se=standard_error(correct) if name == "dense" else spread,
        delta=difference,
        ci95=wilson(int(correct.sum()), len(images)),
        mcnemar=mcnemar(correct, reference),
        agreement=float(same.float().mean()),
        cosine=float((embedding * dense).sum(1).mean()),
        macs=macs,
        flops=2 * macs,
        merges=merged(context.place, keep) if merged else None,
    )


def record(context: AnyContext, row: ArmResult, metric: str | None = None) -> None:
    """Put a row into the report and its accuracy among the metrics."""
    technique = context.run.report.technique
    technique.setdefault("results", []).append(row.to_dict())
    name = metric or f"top1_{row.selector.replace('-', '_').replace('+', '_')}"
    context.run.report.metric(name, row.top1, split="test", n=row.n, se=row.se)
    if context.config.data in PER_CLASS:
        context.run.report.metric(f"{name}_per_class", row.top1_per_class, split="test", n=row.n)


def record_mac_ratio(context: AnyContext, name: str, keep: float, prompts: Prompts | None = None) -> None:
    """Record the multiply-adds of a pruned tower over the dense one's."""
    ratio = macs_of(context.place, name, keep, prompts) / context.shape.dense()
    context.run.report.metric("mac_ratio", ratio, unit="ratio", higher_is_better=False)


def record_gain(context: AnyContext, name: str, better: Tensor, worse: Tensor) -> None:
    """Paired difference of two towers' accuracies, (M,) 0/1 each, as a metric of its own."""
    difference, spread = paired_difference(better, worse)
    context.run.report.metric(name, difference, split="test", n=len(better), se=spread)


def record_controls(context: AnyContext, images: Decoded, dense: Tensor) -> None:
    """Record controls: accuracy with shuffled class names, and how much of an image the object covers."""
    shuffled = context.classifier.cpu().roll(1, dims=1)  # every class gets another name
    correct = ((dense @ shuffled).argmax(1) == images.labels).float()
    report = context.run.report
    report.metric("top1_shuffled_names", float(correct.mean()), split="test", n=len(images), se=standard_error(correct))
    if hasattr(images.source, "object_cover"):
        cover = torch.as_tensor(images.source.object_cover(images.indices))
        report.metric("object_cover", float(cover.mean()), split="test", n=len(images), se=standard_error(cover))
