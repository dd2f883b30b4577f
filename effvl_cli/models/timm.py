"""Classifiers of timm: `timm:NAME` or `timm:NAME.TAG`, e.g. `timm:resnet50`. Their state dicts load as they are."""

import math
from pathlib import Path
from typing import Any, Literal

import timm
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor

from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.registry import nearest
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.hub import hub, reached
from effvl_cli.models.network import Network
from effvl_cli.models.vit import MOCO_HEADS, MOCO_WIDTH, of_moco

_FILES = ("model.safetensors", "pytorch_model.bin")  # in a repository on the Hugging Face hub


def build(argument: str, *, num_classes: int | None = None) -> Network:
    """Registry builder; the argument is a name of `timm.list_models`, with or without a tag, which sets preprocessing.

    Raises:
        UsageError: nothing has that name or that tag.
    """
    name, _, tag = argument.partition(".")
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models()) or "Give a name of timm's classifiers, e.g. timm:resnet50"
        raise UsageError(f"unknown classifier {argument!r} of timm", hint)
    if tag and tag not in _tags(name):
        raise UsageError(f"unknown tag {tag!r} of timm:{name}", _tags_hint(name, tag))
    config = get_pretrained_cfg(argument) or PretrainedCfg(architecture=name)
    classes = num_classes or config.num_classes or 1000
    module = timm.create_model(argument, pretrained=False, num_classes=classes)
    network = Network(f"timm:{argument}", "classifier", module, _preprocess(config), adapt=_adapt)
    network.fetch = lambda tag, download: _fetch(network, name, tag, download)
    return network


def _adapt(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A timm state dict loads as it is.

    Raises:
        ModelError: MoCo-v3's ViT-S, which would load but compute something else.
    """
    heads = getattr(getattr(next(iter(getattr(network.module, "blocks", ())), None), "attn", None), "num_heads", None)
    if heads and of_moco(state) and state["pos_embed"].shape[-1] == MOCO_WIDTH and heads != MOCO_HEADS:
        raise ModelError(
            f"these are weights of MoCo-v3's ViT-S, which has {MOCO_HEADS} heads, and {network.name} has {heads}",
            "Give --model vit:small/16@224",
        )
    return state


def _preprocess(config: PretrainedCfg) -> Preprocess:
    """timm's evaluation transform at the size of training."""
    if config.crop_mode == "border":
        raise ModelError(f"timm:{config.architecture} pads its images, which is not supported", "Choose another model")
    height, width = config.input_size[1:]
    crop_mode: Literal["shortest", "squash"] = "squash" if config.crop_mode == "squash" else "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic" if config.interpolation == "bicubic" else "bilinear"
    return Preprocess(
        size=(height, width),
        mean=_three(config.mean),
        std=_three(config.std),
        interpolation=interpolation,
        resize_mode=crop_mode,
        crop_ratio=height / math.floor(height / config.crop_pct),  # timm rounds the resized side down
    )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _tags(name: str) -> list[str]:
    """Tags of the weights that timm knows; without network access."""
    return [known.partition(".")[2] for known in timm.list_models(f"{name}.*", pretrained=True)]


def _tags_hint(name: str, tag: str) -> str:
    tags = _tags(name)
    return nearest(tag, tags) or f"Its tags are: {', '.join(tags) or '-'}"


def _fetch(network: Network, name: str, tag: str, download: bool) -> Path:
    """File of a pretrained tag: from the local cache, or over the network if that is allowed.

    The tag's own preprocessing replaces the default one.

    Raises:
        ModelError: unknown tag, or neither cached nor allowed to be downloaded.
    """
    config = get_pretrained_cfg(f"{name}.{tag}") if tag in _tags(name) else None
    if config is None:
        raise ModelError(f"no file and no pretrained tag of {network.name}: --weights {tag}", _tags_hint(name, tag))
    if not config.hf_hub_id:
        raise ModelError(f"--weights {tag} of {network.name} is not on the hub", f"Give --weights FILE: {config.url}")
    path = _cached(config.hf_hub_id)
    if path is None and download:
        path = _downloaded(config.hf_hub_id, network.name, tag)
    if path is None:
        raise ModelError(
            f"--weights {tag} of {network.name} is not in the local cache", "Give --download, or --weights FILE"
        )
    network.preprocess = _preprocess(config)
    return path


def _cached(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, filename) for filename in _FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _downloaded(repository: str, name: str, tag: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with reached(hub()):
            try:
                return Path(hf_hub_download(repository, _FILES[0]))
            except EntryNotFoundError:
                return Path(hf_hub_download(repository, _FILES[1]))
    except Exception as error:  # any network failure is one line for the user
        reason = str(error).splitlines()[0]
        raise ModelError(f"cannot download {name} {tag}: {reason}", "Give --weights FILE instead") from error
