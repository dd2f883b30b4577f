"""The predictor and the prompts on disk, and what they belong to."""

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
from effvl_cli.techniques.prune_tokens.predictor import MixerPredictor
from effvl_cli.techniques.prune_tokens.prompts import VisualPrompts

KIND = "prune-tokens"


@dataclass(frozen=True)
class Artefact:
    """What a run of prune-tokens leaves."""

    predictor: MixerPredictor | None
    prompts: VisualPrompts | None
    manifest: dict[str, Any]


def save(
    setup: Setup,
    predictor: MixerPredictor | None,
    prompts: VisualPrompts | None,
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
        "predictor": {"kind": "mixer", "width": predictor.width} if predictor else None,
        "prompts": {"num_tokens": prompts.num_tokens, "depth": prompts.depth, "start": prompts.start}
        if prompts
        else None,
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
        width = manifest["predictor"]["width"]
        predictor = MixerPredictor(setup.shape.num_patches, setup.shape.num_prefix, width)
        _fill(predictor, state, "predictor.")
    if manifest["prompts"]:
        about = manifest["prompts"]
        empty = torch.zeros(about["depth"], setup.shape.width)
        prompts = VisualPrompts(empty, about["num_tokens"], start=about["start"])
        _fill(prompts, state, "prompts.")
    for module in (predictor, prompts):
        if module is not None:
            module.to(setup.run.device).eval().requires_grad_(False)
    if predictor is not None:
        setup.run.report.technique["predictor"] = {"width": predictor.width, "from": str(folder)}
    return Artefact(predictor, prompts, manifest)


def _fill(module: torch.nn.Module, state: dict[str, Tensor], prefix: str) -> None:
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    checkpoint.check_keys(module.state_dict(), part, what=f"the saved {prefix[:-1]} and the one described beside it")
    module.load_state_dict(part)
