"""A CLIP with tuned prompts from the files of `effvl prompt-tune`, and the edit that such prompts are.

The edit is `{"kind": "prompts", "args": {...}}`: token ids of the class names and of what stands around them, and the
sizes of what was learned. It gives a CLIP a part `prompts`, whose call returns the class features.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.config.options import ModelOptions
from effvl_cli.core import checkpoint
from effvl_cli.core.errors import ModelError
from effvl_cli.models import network as networks
from effvl_cli.models.edits import apply_edits
from effvl_cli.models.openclip_prompts import text_tower
from effvl_cli.models.token_pruned_clip import KIND as PRUNED
from effvl_cli.models.token_pruned_clip import load_pruned
from effvl_cli.techniques.prompt_tune.learner import PromptLearner
from effvl_cli.techniques.prompt_tune.pieces import Pieces, Position

KIND = "prompt-tune"
PROMPTS = "prompts"
_AROUND = ("start", "period", "end")


def prompts_edit(pieces: Pieces, learned: Mapping[str, Tensor], position: Position) -> dict[str, Any]:
    """The edit that tuned prompts are.

    Args:
        pieces: of the class names.
        learned: see `PromptLearner.learned`.
        position: of the name.
    """
    context = learned.get("context")
    args = {
        "names": list(pieces.names),
        "ids": [list(ids) for ids in pieces.ids],
        **{name: list(getattr(pieces, name)) for name in _AROUND},
        "pad": pieces.pad,
        "context_length": pieces.context_length,
        "position": position,
        "context": None if context is None else list(context.shape),
        "name_tokens": "name_tokens" in learned,
    }
    return {"kind": PROMPTS, "args": args}


def repeat(module: nn.Module, edit: Mapping[str, Any]) -> None:
    """Give a CLIP the part `prompts` of an edit, in place; its values are loaded with those of the network."""
    args = edit["args"]
    start, period, end = (tuple(args[name]) for name in _AROUND)
    ids = tuple(map(tuple, args["ids"]))
    pieces = Pieces(tuple(args["names"]), ids, start, period, end, args["pad"], args["context_length"])
    tower = text_tower(module, "this network")
    _check_ids(pieces, tower.vocabulary)
    if not len(pieces.names) == len(pieces.ids) > 0:
        raise ValueError(f"{len(pieces.names)} names and tokens of {len(pieces.ids)}")
    context = None if args["context"] is None else torch.zeros(args["context"])
    module.prompts = PromptLearner(tower, pieces, context, position=args["position"], train_names=args["name_tokens"])


def _check_ids(pieces: Pieces, vocabulary: int) -> None:
    """Refuse ids that the text tower does not know."""
    ids = [*pieces.special, *(token for ids in pieces.ids for token in ids)]
    if not all(isinstance(token, int) and 0 <= token < vocabulary for token in ids):
        raise ValueError(f"token ids outside the vocabulary of {vocabulary}")


def load_tuned(path: str | Path, arm: str, *, weights: str | None = None, download: bool = False) -> Any:
    """The open_clip model of a finished run of `effvl prompt-tune`, with one of its tuned prompts.

    `model.prompts()` gives the unit class features (K, E): `F.normalize(model.encode_image(x), dim=-1) @
    model.prompts().T` are cosines. Everything else is open_clip's, frozen, in evaluation mode on the CPU. Where the run
    began with one of prune-tokens, its `visual` drops patches.

    Args:
        path: run folder, or the checkpoint in it.
        arm: of the run, e.g. "prompt_gce".
        weights: where the weights of the CLIP are now, if not where the run had them.
        download: whether a pretrained tag may reach the network.

    Raises:
        ModelError: no such run or prompts, damaged, or the CLIP's weights are not those of the run.
    """
    file = Path(path) / networks.CHECKPOINT if Path(path).is_dir() else Path(path)
    state, manifest = checkpoint.load_model(file)
    if manifest.get("kind") != KIND:
        raise ModelError(f"{file.parent} holds {manifest.get('kind')!r}, not a run of {KIND}")
    try:
        edit = _edit_of(manifest, arm)
        module = _base(manifest, weights, download=download)
        apply_edits(module, [edit])
        prefix = f"{arm}.learned."
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        own = module.prompts.state_dict()
        checkpoint.check_keys(own, found, what=f"the prompts {arm} and those described beside them")
        module.prompts.load_state_dict(found)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(f"the manifest of {file.parent} is damaged: {error!r}"[:200], "Repeat the run") from error
    return module.eval().requires_grad_(False)


def _edit_of(manifest: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """The edit of an arm.

    Raises:
        ModelError: no such arm, or one without prompts.
    """
    edits: dict[str, dict[str, Any]] = {row["key"]: row["edit"] for row in manifest["arms"] if row.get("edit")}
    if arm not in edits:
        raise ModelError(f"the run has no prompts {arm!r}", f"Give one of {', '.join(edits) or 'another run'}")
    return edits[arm]


def _base(manifest: Mapping[str, Any], weights: str | None, *, download: bool) -> Any:
    """The CLIP that the run began with."""
    source = weights or manifest["weights"]
    folder = Path(source) if source else None
    if folder and (folder / checkpoint.MANIFEST).is_file() and checkpoint.read_manifest(folder)["kind"] == PRUNED:
        module = load_pruned(folder, download=download)
        digest = checkpoint.digest(module.state_dict())
    else:
        network = networks.load(
            manifest["model"],
            source,
            default="",
            kind="clip",
            seed=manifest["seed"],
            download=download,
            options=ModelOptions(weights_key=manifest.get("weights_key")),
        )
        module, digest = network.module, network.weights_sha256
    if digest != manifest["weights_sha256"]:
        raise ModelError(
            f"the prompts belong to other weights than those of {source or 'the package'}", "Give weights="
        )
    return module
