"""Accuracy of dense and pruned towers on the same images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.config.prune_tokens import BenchConfig, EvalConfig, VizConfig
from effvl_cli.core.chance import refuse_chance
from effvl_cli.core.errors import ModelError, NumericalError, UsageError
from effvl_cli.core.metrics import mcnemar, mean_per_class, paired_difference, standard_error, top_k, wilson
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.inference import over_images
from effvl_cli.engines.prune_tokens.context import AnyContext, Context, Judged, Learning, Selecting
from effvl_cli.engines.prune_tokens.texts import with_prompts
from effvl_cli.techniques.prune_tokens.evit import EvitSelector
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.selectors import (
    CenterSelector,
    ClsAttentionSelector,
    GridSelector,
    NormSelector,
    RandomSelector,
    TaylorSelector,
)
from effvl_cli.techniques.prune_tokens.taylor import PROBES
from effvl_cli.techniques.prune_tokens.tome import MergedVision, merge_schedule
from effvl_cli.techniques.prune_tokens.tower import NonFiniteError, PrunedVision, Selector, WrappedTower, num_keep

GUARDED = 256  # images that are looked at before a search
ORACLES = frozenset({"golden"})  # know what no deployed selector can
OFFLINE = frozenset({"taylor"})  # cost more than they save
CLS_ARMS = frozenset({"cls-attn", "evit"})
PER_CLASS = frozenset({"caltech101", "fgvc_aircraft"})  # data sets whose papers average over classes


def selector_of(name: str, context: Selecting, predictor: Selector | None) -> Selector:
    """A selector by its name; `golden` needs rankings and is made where they are, and `tome` selects nothing.

    Raises:
        ModelError: the tower cannot have it.
    """
    refuse_missing(name, context, predictor)
    previous = context.config.cls_block == "prev"
    made: dict[str, Callable[[], Selector | None]] = {
        "predictor": lambda: predictor,
        "cls-attn": lambda: ClsAttentionSelector(previous=previous),
        "evit": lambda: EvitSelector(previous=previous),
        "random": lambda: RandomSelector(context.config.seed),
        "grid": GridSelector,
        "center": CenterSelector,
        "norm": NormSelector,
        "taylor": TaylorSelector,
    }
    selector = made[name]()
    assert selector is not None
    return selector


def possible(context: AnyContext, names: Sequence[str]) -> list[str]:
    """Those selectors that the tower can have: without a CLS token there is no attention of it."""
    return [name for name in dict.fromkeys(names) if context.shape.num_prefix or name not in CLS_ARMS]


def asked_for(context: Context[EvalConfig | VizConfig | BenchConfig]) -> list[str]:
    """The selectors of --selector, each once; of its default, those that the tower can have."""
    names = context.config.selector
    return possible(context, names) if names == type(context.config).selector else list(dict.fromkeys(names))


def refuse_missing(name: str, context: Selecting, predictor: Selector | None) -> None:
    """Check that the tower has what a selector reads.

    Raises:
        ModelError: it has not.
        UsageError: --cls-block prev, and no block runs before the pruning.
    """
    if name == "predictor" and predictor is None:
        raise ModelError("selector predictor has no predictor", "Train one: effvl prune-tokens predict")
    if name in CLS_ARMS:
        if context.shape.num_prefix == 0:
            raise ModelError(f"selector {name}: {context.network.name} has no CLS token", "Use --selector predictor")
        if context.config.cls_block == "prev" and context.layer == 0:
            raise UsageError("--cls-block is prev, and --layer 0 has no block before it", "Give --layer 1 or more")
    if name == "taylor" and not context.tower.pools_prefix_only:
        raise ModelError(
            f"selector taylor: {context.network.name} reads its embedding off patches", "Use --selector predictor"
        )


def prune(context: AnyContext, selector: Selector, keep: float, prompts: Prompts | None = None) -> PrunedVision:
    """The tower with that share of its patches kept, and visual prompts in it."""
    kept = num_keep(keep, context.shape.num_patches)
    visual = prompts.visual if prompts else None
    return PrunedVision(context.tower, layer=context.layer, num_keep=kept, selector=selector, prompts=visual).eval()


def arm(context: Selecting, name: str, keep: float, predictor: Selector | None) -> WrappedTower:
    """The tower that a selector's name stands for: patches dropped, or for `tome` merged at the same cost."""
    if name != "tome":
        return prune(context, selector_of(name, context, predictor), keep)
    cost, budget = (
        macs_of(context, "tome", keep),
        context.shape.pruned(num_keep(keep, context.shape.num_patches), context.layer),
    )
    if cost > 1.02 * budget:
        context.run.warn(
            f"tome at keep {keep:g}: a block merges at most half of its patches, so it costs {cost / budget:.2f} times "
            "what dropping costs"
        )
    return MergedVision(context.tower, layer=context.layer, schedule=merges(context, keep)).eval()


def merges(context: AnyContext, keep: float) -> tuple[int, ...]:
    """Tokens that `tome` merges in each block from p on."""
    kept = num_keep(keep, context.shape.num_patches)
    return merge_schedule(context.shape, context.tower.num_heads, kept, context.layer)


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
    """The few-shot images, for a search or a training that takes long: the dense tower has to know their classes.

    Raises:
        ModelError: its accuracy on some of them is hardly better than chance.
    """
    images = context.few_shot()
    some = images.take(torch.linspace(0, len(images) - 1, min(GUARDED, len(images))).long().unique())
    _refuse_chance(context, some, embed(context, some))
    return images


def embed_dense(context: Judged, images: Decoded) -> Tensor:
    """`embed` with the dense tower, whose accuracy the others are read against.

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
    return (output[0] if isinstance(output, tuple) else output).float()


def result(
    context: AnyContext,
    name: str,
    keep: float,
    images: Decoded,
    embedding: Tensor,
    dense: Tensor,
    prompts: Prompts | None = None,
) -> dict[str, Any]:
    """One row of the results: accuracy and its paired difference to the dense tower on the same images.

    Text prompts in `prompts` make the class weights of the row; the dense tower keeps the untuned ones.
    """
    labels, tuned = images.labels, with_prompts(context, prompts)
    correct, reference = tuned.accuracy(embedding, labels), context.accuracy(dense, labels)
    difference, spread = paired_difference(correct, reference)
    macs = macs_of(context, name, keep, prompts)
    same = tuned.predictions(embedding) == context.predictions(dense)
    row = {
        "selector": name,
        "keep": keep,
        "K": num_keep(keep, context.shape.num_patches),
        "oracle": name in ORACLES,
        "n": len(images),
        "templates": len(context.templates),
        "top1": float(correct.mean()),
        "top5": float(top_k(embedding @ tuned.classifier.cpu(), labels, 5).mean()),
        "top1_per_class": mean_per_class(correct, labels),
        "se": standard_error(correct) if name == "dense" else spread,
        "delta": difference,
        "ci95": list(wilson(int(correct.sum()), len(images))),
        "mcnemar": list(mcnemar(correct, reference)),
        "agreement": float(same.float().mean()),
        "cosine": float((embedding * dense).sum(1).mean()),
        "macs": macs,
        "flops": 2 * macs,
    }
    return row | {"merges": list(merges(context, keep))} if name == "tome" else row


def macs_of(context: AnyContext, name: str, keep: float, prompts: Prompts | None = None) -> int:
    """Multiply-adds of an image through the pruned tower, its selector included; none runs where all is kept."""
    shape = context.shape
    kept = num_keep(keep, shape.num_patches)
    rows, start = (prompts.num_rows, prompts.start) if prompts else (0, None)
    if name == "dense" or kept == shape.num_patches:
        return shape.pruned(shape.num_patches, context.layer, rows, start)
    if name == "tome":
        return shape.merged(merges(context, keep), context.layer, context.tower.num_heads)
    if name.startswith("predictor") and context.predictor is not None:
        return shape.pruned(kept, context.layer, rows, start) + context.predictor.macs(shape.num_patches)
    if name == "evit":
        return shape.pruned(kept, context.layer, 1) + shape.evit()
    selector = {
        "cls-attn": shape.cls_attention,
        "norm": lambda: shape.num_patches * shape.width,
        "taylor": lambda: shape.taylor(context.layer, min(PROBES, shape.embed_dim)),
    }
    return shape.pruned(kept, context.layer) + selector.get(name, int)()


def record(context: AnyContext, row: dict[str, Any], metric: str | None = None) -> None:
    """Put a row into the report and its accuracy among the metrics."""
    technique = context.run.report.technique
    technique.setdefault("results", []).append(row)
    name = metric or f"top1_{row['selector'].replace('-', '_').replace('+', '_')}"
    context.run.report.metric(name, row["top1"], split="test", n=row["n"], se=row["se"])
    if context.config.data in PER_CLASS:
        context.run.report.metric(f"{name}_per_class", row["top1_per_class"], split="test", n=row["n"])


def record_mac_ratio(context: AnyContext, name: str, keep: float, prompts: Prompts | None = None) -> None:
    """Multiply-adds of a pruned tower over the dense one's as a metric."""
    ratio = macs_of(context, name, keep, prompts) / context.shape.dense()
    context.run.report.metric("mac_ratio", ratio, unit="ratio", higher_is_better=False)


def record_gain(context: AnyContext, name: str, better: Tensor, worse: Tensor, labels: Tensor) -> None:
    """Paired difference of two towers' accuracies as a metric of its own."""
    difference, spread = paired_difference(context.accuracy(better, labels), context.accuracy(worse, labels))
    context.run.report.metric(name, difference, split="test", n=len(labels), se=spread)


def record_controls(context: AnyContext, images: Decoded, dense: Tensor) -> None:
    """What the figures are to be read against: shuffled class names, and how much of an image the object covers."""
    shuffled = context.classifier.cpu().roll(1, dims=1)  # every name on another class
    correct = ((dense @ shuffled).argmax(1) == images.labels).float()
    report = context.run.report
    report.metric("top1_shuffled_names", float(correct.mean()), split="test", n=len(images), se=standard_error(correct))
    if hasattr(images.source, "object_cover"):
        cover = torch.as_tensor(images.source.object_cover(images.indices))
        report.metric("object_cover", float(cover.mean()), split="test", n=len(images), se=standard_error(cover))
