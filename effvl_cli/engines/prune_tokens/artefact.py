"""The predictor and the prompts on disk, and what they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from effvl_cli.core import checkpoint, distributed
from effvl_cli.core.errors import ModelError
from effvl_cli.engines.prune_tokens.rankings import key_of
from effvl_cli.engines.prune_tokens.setup import Setup, artefact_fields, refuse_other
from effvl_cli.models.network import CHECKPOINT
from effvl_cli.techniques.prune_tokens.predictor import Predictor, make_predictor
from effvl_cli.techniques.prune_tokens.prompts import CoupledPrompts, Prompts, VisualPrompts
from effvl_cli.techniques.prune_tokens.text_prompts import TextPrompts

KIND = "prune-tokens"


@dataclass(frozen=True)
class Artefact:
    """What a run of prune-tokens leaves."""

    predictor: Predictor | None
    prompts: Prompts | None
    manifest: dict[str, Any]

    def tuned_for(self, keeps: Sequence[float]) -> list[float]:
        """Those of some keep rates that the prompts were tuned for: one, or any."""
        if self.prompts is None:
            return []
        return [keep for keep in keeps if self.manifest["prompts"]["any_keep"] or keep == self.manifest["keep"]]


def save(
    setup: Setup,
    predictor: Predictor | None,
    prompts: Prompts | None,
    *,
    ranking: dict[str, Any] | None = None,
) -> None:
    """Write `checkpoint.safetensors` and its manifest into the run folder."""
    if not distributed.is_main():
        return
    state: dict[str, Tensor] = {}
    for prefix, module in (("predictor", predictor), ("prompts", prompts)):
        if module is not None:
            state |= {f"{prefix}.{key}": value for key, value in module.state_dict().items()}
    manifest = {
        "kind": KIND,
        "fields": artefact_fields(setup),
        "ranking": ranking or key_of(setup, "train"),
        "predictor": {"kind": predictor.kind, "width": predictor.width} if predictor else None,
        "prompts": _describe(prompts, setup.config) if prompts else None,
        "keep": getattr(setup.config, "keep", None),
        "classes": list(setup.classes),
        "templates": list(setup.templates),
        "preprocess": setup.network.preprocess.to_dict(),
        "run": setup.run.report.run_id,
    }
    path = setup.run.folder / CHECKPOINT
    checkpoint.save_model(path, state, manifest)
    setup.run.report.artifact(path)
    if predictor is not None:
        edit = {"layer": setup.layer, "keep": manifest["keep"], "predictor": manifest["predictor"]}
        setup.run.report.edit("tokens-kept", **edit, prompts=manifest["prompts"])


def load(setup: Setup, folder: Path) -> Artefact:
    """Read a run's predictor and prompts.

    Raises:
        ModelError: none there, damaged, or of another tower; the message lists the differing fields.
    """
    state, manifest = checkpoint.load_model(folder / CHECKPOINT)
    if manifest.get("kind") != KIND:
        raise ModelError(f"{folder} holds {manifest.get('kind')!r}, not a run of prune-tokens")
    refuse_other(f"the predictor of {folder}", manifest["fields"], artefact_fields(setup))
    predictor = prompts = None
    if manifest["predictor"]:
        about, shape = manifest["predictor"], setup.shape
        predictor = make_predictor(
            about["kind"],
            num_patches=shape.num_patches,
            num_prefix=shape.num_prefix,
            dim=shape.width,
            width=about["width"],
        )
        _fill(predictor, state, "predictor.")
    if manifest["prompts"]:
        prompts = _empty_prompts(manifest["prompts"], setup.shape.width)
        _fill(prompts, state, "prompts.")
    for module in (predictor, prompts):
        if module is not None:
            module.to(setup.run.device).eval().requires_grad_(False)
    if predictor is not None:
        about = {**manifest["predictor"], "macs": predictor.macs(setup.shape.num_patches), "from": str(folder)}
        setup.run.report.technique["predictor"] = about
    return Artefact(predictor, prompts, manifest)


def _describe(prompts: Prompts, config: Any) -> dict[str, Any]:
    """What `_empty_prompts` needs, and whether any keep rate was tuned for."""
    visual, text = prompts.visual, prompts.text
    return {
        "visual": {"num_tokens": visual.num_tokens, "depth": visual.depth, "start": visual.start} if visual else None,
        "text": {
            "num_tokens": text.num_tokens,
            "depth": text.depth,
            "width": text.width,
            "first": text.first,
            "template": text.template,
        }
        if text
        else None,
        "coupled": isinstance(visual, CoupledPrompts),
        "any_keep": config.tune_keeps == "mix",
    }


def _empty_prompts(about: dict[str, Any], width: int) -> Prompts:
    """Prompts of the kind and sizes that a manifest describes, their values still to be loaded."""
    text = None
    if about["text"]:
        sizes = (about["text"][name] for name in ("depth", "num_tokens", "width"))
        text = TextPrompts(torch.zeros(*sizes), first=about["text"]["first"], template=about["text"]["template"])
    if about["visual"] is None:
        return Prompts(None, text)
    start, empty = about["visual"]["start"], torch.zeros(about["visual"]["depth"], width)
    if about["coupled"] and text is not None:
        return Prompts(CoupledPrompts(text, empty, start=start))
    return Prompts(VisualPrompts(empty, about["visual"]["num_tokens"], start=start), text)


def _fill(module: torch.nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    checkpoint.check_keys(module.state_dict(), part, what=f"the saved {prefix[:-1]} and the one described beside it")
    module.load_state_dict(part)
