"""A pruned CLIP from the files of `effvl prune-tokens`: predictor, prompts, and which model they belong to."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from effvl_cli.config.options import ModelOptions
from effvl_cli.core import checkpoint
from effvl_cli.core.errors import ModelError
from effvl_cli.models import network as networks
from effvl_cli.models.openclip_tower import tower_of
from effvl_cli.techniques.prune_tokens.dropped import Choice, Dropped
from effvl_cli.techniques.prune_tokens.keeping import check_diversity
from effvl_cli.techniques.prune_tokens.predictor import Predictor, make_predictor
from effvl_cli.techniques.prune_tokens.prompts import CoupledPrompts, Prompts, VisualPrompts
from effvl_cli.techniques.prune_tokens.text_prompts import TextPrompts
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, num_keep

KIND = "prune-tokens"
CLASS_WEIGHTS = "class_weights"
_NONE = type(None)
_SIZES = ("layer", "patches", "prefix", "width")
# What every manifest holds, and the types.
MANIFEST: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("fields", "base", "ranking", "preprocess"), (dict,)),
    **{"predictor": (dict, _NONE), "prompts": (dict, _NONE), "keep": (float, int, _NONE)},
    **{f"fields.{name}": (str,) for name in ("model", "weights")},
    **{f"fields.{name}": (int,) for name in _SIZES},
    **{"base.weights": (str, _NONE), "base.seed": (int,)},
}
VISUAL = ("num_tokens", "depth", "start", "pre_norm")
TEXT = ("num_tokens", "depth", "width", "first", "template")
"""What a manifest says about the prompts of each tower."""


@dataclass(frozen=True)
class Artefact:
    """The files of a run of prune-tokens."""

    predictor: Predictor | None
    prompts: Prompts | None
    manifest: dict[str, Any]

    @property
    def any_keep(self) -> bool:
        """Whether the prompts were tuned for any keep rate."""
        return self.prompts is not None and self.manifest["prompts"]["any_keep"]

    @property
    def choice(self) -> Choice:
        """What the run does with scored patches."""
        return choice_of(self.manifest)

    @property
    def prompted(self) -> bool:
        """Whether the predictor was trained on states that the prompts had changed."""
        return bool((self.manifest["predictor"] or {}).get("prompted"))

    def tuned_for(self, keeps: Sequence[float]) -> list[float]:
        """The keep rates among `keeps` that the prompts were tuned for: one number of patches, or any."""
        if self.prompts is None:
            return []
        patches = self.manifest["fields"]["patches"]
        tuned = num_keep(self.manifest["keep"], patches)
        return [keep for keep in keeps if self.any_keep or num_keep(keep, patches) == tuned]


def load_pruned(path: str | Path, *, weights: str | None = None, download: bool = False) -> Any:
    """The open_clip model of a finished run of `effvl prune-tokens`, or of its `export`, ready to encode images.

    Its `visual` drops patches (a `PrunedVision`), and has the visual prompts if there are any; everything else is
    open_clip's, in evaluation mode on the CPU. The buffer `class_weights` (E, C) holds the unit embeddings of the
    run's classes, tuned text prompts included: `F.normalize(model.encode_image(x), dim=-1) @ model.class_weights`.
    `model.visual.preprocess_cfg` says how the run prepared images: of open_clip.transform,
    `image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)`.

    Args:
        path: run folder, or the checkpoint in it.
        weights: where the weights of the untouched model are now, if not where the run had them.
        download: whether a pretrained tag may reach the network.

    Raises:
        ModelError: no such run, one without a predictor, damaged, or the model's weights are not those of the run.
    """
    file = Path(path) / networks.CHECKPOINT if Path(path).is_dir() else Path(path)
    state, manifest = read(file)
    predictor, prompts = modules_of(state, manifest)
    if predictor is None:
        raise ModelError(f"{path} holds rankings but no predictor", "Train one: effvl prune-tokens predict")
    fields = manifest["fields"]
    network = _base(manifest, weights, download=download)
    if network.weights_sha256[: len(fields["weights"])] != fields["weights"]:
        raise ModelError(
            f"{path} belongs to other weights of {network.name} than those of {network.source}", "Give weights="
        )
    model = network.module.eval().requires_grad_(False)
    tower = tower_of(model, network.name)
    try:
        model.visual = PrunedVision(
            tower,
            layer=fields["layer"],
            num_keep=num_keep(manifest["keep"], fields["patches"]),
            selector=predictor,
            prompts=prompts.visual if prompts else None,
            **dataclasses.asdict(choice_of(manifest)),
        ).eval()
        model.register_buffer(CLASS_WEIGHTS, state[CLASS_WEIGHTS], persistent=False)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the manifest of {path} fits no such tower: {error}", "Repeat the run") from error
    set_model_preprocess_cfg(model, _preprocess_cfg(manifest, file))
    return model


def choice_of(manifest: Mapping[str, Any]) -> Choice:
    """What a run does with scored patches; older ones do not say.

    Raises:
        ValueError, TypeError: there is no such choice.
    """
    found = Choice(**manifest.get("choice", {}))
    if found.dropped not in get_args(Dropped):
        raise ValueError(f"dropped patches are to {found.dropped!r}")
    check_diversity(found.diversity)
    return found


def _base(manifest: Mapping[str, Any], weights: str | None, *, download: bool) -> networks.Network:
    """The untouched model, of the same network of the same file as the run had it."""
    base = manifest["base"]
    return networks.load(
        manifest["fields"]["model"],
        weights or base["weights"],
        default="",
        kind="clip",
        seed=base["seed"],
        options=ModelOptions(weights_key=base.get("weights_key"), download=download),  # older runs have no key
    )


def _preprocess_cfg(manifest: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """How the run prepared images, in open_clip's words."""
    preprocess = networks.preprocess_of(manifest, file)
    known = {field.name for field in dataclasses.fields(PreprocessCfg)}
    ours = {key: value for key, value in dataclasses.asdict(preprocess).items() if key in known}
    return dataclasses.asdict(PreprocessCfg(**ours))


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a checkpoint of prune-tokens.

    Raises:
        ModelError: missing, damaged, or another technique's.
    """
    state, manifest = checkpoint.load_model(file)
    _check(manifest, file.parent)
    return state, manifest


def ranking_of(folder: Path) -> dict[str, Any]:
    """Key of the rankings of a run of prune-tokens, whose tensors need not be there.

    Raises:
        ModelError: no manifest, a damaged one, or another technique's.
    """
    manifest = checkpoint.read_manifest(folder)
    _check(manifest, folder)
    found: dict[str, Any] = manifest["ranking"]
    return found


def _check(manifest: Mapping[str, Any], folder: Path) -> None:
    if manifest.get("kind") != KIND:
        raise ModelError(f"{folder} holds {manifest.get('kind')!r}, not a run of prune-tokens")
    for name, kinds in MANIFEST.items():
        outer, _, inner = name.partition(".")
        holder, key = (manifest[outer], inner) if inner else (manifest, outer)
        if key not in holder:
            raise ModelError(f"the manifest of {folder} lacks {name}", "Repeat the run")
        if not isinstance(holder[key], kinds) or isinstance(holder[key], bool):
            raise ModelError(f"the manifest of {folder} has no usable {name}", "Copy it again, or repeat the run")


def modules_of(state: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> tuple[Predictor | None, Prompts | None]:
    """The predictor and the prompts, frozen and in evaluation mode, each if it is there.

    Raises:
        ModelError: the manifest describes none, or does not fit the tensors.
    """
    try:
        choice_of(manifest)
        return _described(state, manifest)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # torch: sizes that no tensor has
        reason = next(iter(str(error).splitlines()), "")
        raise ModelError(
            f"the manifest beside the checkpoint is damaged: {type(error).__name__} {reason}", "Repeat the run"
        ) from error


def _described(state: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> tuple[Predictor | None, Prompts | None]:
    fields, predictor, prompts = manifest["fields"], None, None
    if manifest["predictor"]:
        predictor = make_predictor(
            manifest["predictor"]["kind"],
            num_patches=fields["patches"],
            num_prefix=fields["prefix"],
            dim=fields["width"],
            width=manifest["predictor"]["width"],
        )
        _fill(predictor, state, "predictor.")
    if manifest["prompts"]:
        prompts = _empty_prompts(manifest["prompts"], fields["width"])
        _fill(prompts, state, "prompts.")
    return predictor, prompts


def contents(
    parts: Artefact,
    *,
    fields: Mapping[str, Any],
    base: Mapping[str, Any],
    ranking: Mapping[str, Any],
    keep: float | None,
    any_keep: bool,
    class_weights: Tensor,
    about: Mapping[str, Any],
    choice: Choice | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Predictor, prompts and class weights as tensors, and the manifest that tells what they are; see `read`.

    Args:
        parts: the predictor and the prompts.
        fields: what they must agree on with a tower.
        base: weights and seed of the untouched model.
        ranking: key of the rankings.
        keep: share of the patches that is kept, of a predictor.
        any_keep: whether the prompts were tuned for any keep rate.
        class_weights: (E, Y) unit class embeddings, tuned text prompts included.
        about: classes, templates, preprocessing.
        choice: what is done with scored patches; None where there is no predictor.
    """
    state: dict[str, Tensor] = {}
    for prefix, module in (("predictor", parts.predictor), ("prompts", parts.prompts)):
        if module is not None:
            state |= {f"{prefix}.{key}": value for key, value in module.state_dict().items()}
    if parts.predictor is not None:
        state[CLASS_WEIGHTS] = class_weights
    predictor = parts.predictor
    manifest = {
        "kind": KIND,
        "fields": fields,
        "base": base,
        "ranking": ranking,
        "predictor": {"kind": predictor.kind, "width": predictor.width, "prompted": parts.prompted}
        if predictor
        else None,
        "prompts": describe_prompts(parts.prompts, any_keep=any_keep) if parts.prompts else None,
        "keep": keep,
        "choice": dataclasses.asdict(choice) if choice else {},
        **about,
    }
    return state, manifest


def describe_prompts(prompts: Prompts, *, any_keep: bool) -> dict[str, Any]:
    """What a manifest says about prompts, and whether they were tuned for any keep rate."""
    visual, text = prompts.visual, prompts.text
    return {
        "visual": {name: getattr(visual, name) for name in VISUAL} if visual else None,
        "text": {name: getattr(text, name) for name in TEXT} if text else None,
        "coupled": isinstance(visual, CoupledPrompts),
        "any_keep": any_keep,
    }


def _empty_prompts(about: Mapping[str, Any], width: int) -> Prompts:
    """Prompts of the kind and sizes that a manifest describes, before their values are loaded."""
    text = None
    if about["text"]:
        sizes = (about["text"][name] for name in ("depth", "num_tokens", "width"))
        if not isinstance(about["text"]["template"], str) or "{}" not in about["text"]["template"]:
            raise ValueError("the template of the text prompts has no place for a name")
        text = TextPrompts(torch.zeros(*sizes), first=about["text"]["first"], template=about["text"]["template"])
    if about["visual"] is None:
        return Prompts(None, text)
    visual = about["visual"]
    if not isinstance(visual["start"], int) or visual["start"] < 0:
        raise ValueError(f"visual prompts begin at block {visual['start']!r}")
    empty = torch.zeros(visual["depth"], width)
    place = {"start": visual["start"], "pre_norm": visual.get("pre_norm", False)}  # older runs do not have it
    if about["coupled"] and text is not None:
        return Prompts(CoupledPrompts(text, empty, **place))
    return Prompts(VisualPrompts(empty, visual["num_tokens"], **place), text)


def _fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    checkpoint.check_keys(module.state_dict(), part, what=f"the saved {prefix[:-1]} and the one described beside it")
    module.load_state_dict(part)
    module.eval().requires_grad_(False)
