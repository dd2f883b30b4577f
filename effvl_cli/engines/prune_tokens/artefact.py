"""The predictor and the prompts on disk, and the tower that they belong to."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from effvl_cli.config.prune_tokens import KeepOptions
from effvl_cli.core.checkpoint import check_settings
from effvl_cli.engines.prune_tokens.context import AnyContext, C, Context, artefact_fields
from effvl_cli.engines.prune_tokens.texts import with_prompts
from effvl_cli.models import token_pruned_clip
from effvl_cli.models.network import CHECKPOINT
from effvl_cli.models.token_pruned_clip import Artefact, modules_of, read
from effvl_cli.techniques.prune_tokens.dropped import Choice
from effvl_cli.techniques.prune_tokens.predictor import Predictor
from effvl_cli.techniques.prune_tokens.prompts import Prompts


def save(
    context: AnyContext,
    predictor: Predictor | None,
    prompts: Prompts | None,
    *,
    ranking: dict[str, Any],
    prompted: bool = False,
    any_keep: bool = False,
) -> None:
    """Write `checkpoint.safetensors` and its manifest into the run folder.

    Args:
        context: what they belong to.
        predictor: None where only rankings were made.
        prompts: None without tuning.
        ranking: key of the rankings.
        prompted: whether the predictor was trained on states that the prompts had changed.
        any_keep: whether the prompts were tuned for any keep rate.
    """
    parts = Artefact(predictor, prompts, {"predictor": {"prompted": prompted}})
    state, manifest = contents(context, parts, any_keep, ranking)
    context.run.save_model(state, manifest)
    if predictor is not None:
        edit = {"layer": context.layer, **{name: manifest[name] for name in ("keep", "choice", "predictor")}}
        context.run.report.edit("tokens-kept", **edit, prompts=manifest["prompts"])


def contents(
    context: AnyContext, parts: Artefact, any_keep: bool, ranking: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Predictor, prompts and class weights as tensors, and the manifest that describes them."""
    config = context.config
    return token_pruned_clip.contents(
        parts,
        fields=artefact_fields(context),
        base={"weights": config.weights, "weights_key": config.weights_key, "seed": config.seed},
        ranking=ranking,
        keep=config.keep if isinstance(config, KeepOptions) else None,
        any_keep=any_keep,
        choice=context.choice if parts.predictor else None,
        class_weights=with_prompts(context, parts.prompts).classifier,
        about={
            "classes": list(context.classes),
            "templates": list(context.templates),
            "preprocess": context.network.preprocess.to_dict(),
        },
    )


def load(context: AnyContext, folder: Path) -> Artefact:
    """Read a run's predictor and prompts.

    Raises:
        ModelError: none there, damaged, or of another tower; the message lists the differing fields.
    """
    state, manifest = read(folder / CHECKPOINT)
    what = f"the predictor of {folder} has"
    check_settings(what, manifest["fields"], artefact_fields(context))
    check_settings(what, manifest["preprocess"], context.network.preprocess.to_dict())
    predictor, prompts = modules_of(state, manifest)
    for module in (predictor, prompts):
        if module is not None:
            module.to(context.run.device)
    if predictor is not None:
        about = {**manifest["predictor"], "macs": predictor.macs(context.shape.num_patches), "from": str(folder)}
        context.run.report.technique["predictor"] = about
    saved = Artefact(predictor, prompts, manifest)
    if saved.prompted:
        context.run.warn(f"the predictor of {folder} was trained with its prompts: without them it may do worse")
    return saved


def as_saved(context: Context[C], saved: Artefact) -> Context[C]:
    """The context with a run's predictor and, where --dropped is auto, with what that run does with scored patches."""
    config, choice = context.config, context.choice
    if config.dropped == "auto":
        diversity = saved.choice.diversity if config.diversity is None else config.diversity
        choice = Choice(saved.choice.dropped, diversity)
    return dataclasses.replace(context, predictor=saved.predictor, choice=choice)
