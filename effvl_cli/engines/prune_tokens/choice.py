"""What is done with dropped patches where --dropped is auto: what changes embeddings of validation images least."""

import dataclasses
from typing import Any

from effvl_cli.core.metrics import paired_difference, standard_error
from effvl_cli.core.phases import Phases
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.prune_tokens.context import Context, P
from effvl_cli.engines.prune_tokens.evaluation import embed
from effvl_cli.engines.prune_tokens.selectors import prune
from effvl_cli.techniques.prune_tokens.dropped import Choice, choices
from effvl_cli.techniques.prune_tokens.predictor import Predictor


def validated(context: Context[P], training: Decoded, module: Predictor) -> Context[P]:
    """The context with a trained predictor, and what is done with the patches that it scores.

    Accuracy on the val split, dense and pruned, goes into the report: the basis for choosing between predictors.

    Args:
        context: tower and options.
        training: ranked images, which judge where there is no val split; their labels are not asked for.
        module: the predictor.
    """
    config, run = context.config, context.run
    context = dataclasses.replace(context, predictor=module)
    tried, validation = choices(config.dropped, config.diversity), context.validation()
    if validation is None and len(tried) == 1:
        return context
    images = training if validation is None else validation
    found = Phases.of(run).once("predictor validated", lambda: _figures(context, images, module, tried))
    best = min(found["tried"], key=lambda row: row["damage"])
    if len(tried) > 1:
        run.report.technique["dropped"] = {"images": len(images), "chosen": best["dropped"], "tried": found["tried"]}
    if validation is not None:
        run.report.metric("top1_val_dense", found["top1"], split="val", n=len(images), se=found["se"])
        run.report.metric("top1_val_predictor", best["top1"], split="val", n=len(images), se=best["se"])
    return dataclasses.replace(context, choice=Choice(best["dropped"], best["diversity"]))


def _figures(context: Context[P], images: Decoded, module: Predictor, tried: tuple[Choice, ...]) -> dict[str, Any]:
    """Accuracies, and half the mean squared distance of each choice's embeddings from the dense ones."""
    embeddings = embed(context, images)
    dense = context.accuracy(embeddings, images.labels)
    rows = []
    for choice in tried:
        vision = prune(dataclasses.replace(context, choice=choice), module, context.config.keep)
        pruned = embed(context, images, vision)
        correct = context.accuracy(pruned, images.labels)
        damage = float((pruned - embeddings).double().square().sum(1).mean() / 2)
        figures = {"damage": damage, "top1": float(correct.mean()), "se": paired_difference(correct, dense)[1]}
        rows.append(dataclasses.asdict(choice) | figures)
    return {"top1": float(dense.mean()), "se": standard_error(dense), "tried": rows}
