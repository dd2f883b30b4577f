"""Models of open_clip, by the names of its model configurations."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import transformer
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.convert import convert_state_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from effvl_cli.core.errors import MissingPackageError, ModelError, UsageError
from effvl_cli.core.registry import nearest
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.hub import hub, reached
from effvl_cli.models.network import Network

_OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")
_SIZES = (
    *("visual.conv1.weight", "visual.class_embedding", "visual.trunk.patch_embed.proj.weight"),
    *("token_embedding.weight", "text.token_embedding.weight"),
)


def build(name: str, *, num_classes: int | None = None) -> Network:
    """An open_clip model with random weights.

    Raises:
        UsageError: no configuration has that name.
        MissingPackageError: its text tower or tokenizer comes from a package that is not installed.
    """
    if name not in open_clip.list_models():
        hint = nearest(name, open_clip.list_models()) or "`effvl list models openclip` lists them"
        raise UsageError(f"unknown open_clip model {name!r}", hint)
    try:
        tokenize = open_clip.get_tokenizer(name)
        with _quiet():
            module = open_clip.create_model(name, pretrained=None, pretrained_hf=False, device="cpu")
    except ImportError as error:
        package = error.name or "transformers"
        raise MissingPackageError(
            f"{name} needs {package}, which is not installed", f"pip install {package}"
        ) from error
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"open_clip cannot build {name}: {reason}", "It may need a text model") from error
    notes: list[str] = []

    def fetch(tag: str, download: bool) -> Path:
        path = _fetch(name, tag, download)
        if use_quick_gelu(module, bool(get_pretrained_cfg(name, tag).get("quick_gelu"))):
            notes.append(f"activations changed to those that {name} {tag} was trained with")
        return path

    return Network(
        name=f"openclip:{name}",
        kind="clip",
        module=module,
        preprocess=preprocess_of(module),
        tokenize=tokenize,
        fetch=fetch,
        adapt=adapt_weights,
        notes=notes,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence open_clip's warning about random weights: ours are loaded later, and the report names them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def preprocess_of(module: nn.Module) -> Preprocess:
    """What open_clip's own evaluation transform does, as data."""
    config = open_clip.model.get_model_preprocess_cfg(module)
    size = config.get("size", 224)
    return Preprocess(
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(config.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        std=tuple(config.get("std") or open_clip.OPENAI_DATASET_STD),
        interpolation=config.get("interpolation", "bicubic"),
        resize_mode=config.get("resize_mode", "shortest"),
    )


def adapt_weights(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`adapt` for a network."""
    return adapt(network.module, state)


def adapt(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict in one of the common formats to this module's own.

    OpenAI's files have three extra scalars; their networks were trained with QuickGELU, so the activations are
    changed to it. Half precision becomes float32; position embeddings are resized as open_clip does on loading.
    """
    if any(key in state for key in _OPENAI_SCALARS):
        state = {key: value for key, value in state.items() if key not in _OPENAI_SCALARS}
        use_quick_gelu(module)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    state = convert_state_dict(module, state)
    if "positional_embedding" in state and not hasattr(module, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for scalar in ("logit_scale", "logit_bias"):
        own = getattr(module, scalar, None)
        if scalar in state and own is not None and state[scalar].numel() == own.numel():
            state[scalar] = state[scalar].reshape(own.shape)
    if _same_patches(module, state):
        resize_pos_embed(state, module)
        resize_text_pos_embed(state, module)
    return state


def _same_patches(module: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether patches, vocabulary and widths agree; only then may positions be resized."""
    own = module.state_dict()
    keys = [key for key in _SIZES if key in own]
    return all(key in state and state[key].shape == own[key].shape for key in keys)


def use_quick_gelu(module: nn.Module, quick: bool = True) -> bool:
    """Replace every GELU by OpenAI's approximation x * sigmoid(1.702 x), or the other way round.

    Towers of timm and transformers have their own activations, whatever a tag says, as in open_clip.

    Returns:
        Whether there was anything to replace.
    """
    old, new = (nn.GELU, transformer.QuickGELU) if quick else (transformer.QuickGELU, nn.GELU)
    changed = False
    for name, child in module.named_children():
        if isinstance(child, old):
            setattr(module, name, new())
            changed = True
        elif not isinstance(child, TimmModel | HFTextEncoder):
            changed |= use_quick_gelu(child, quick)
    return changed


def _fetch(name: str, tag: str, download: bool) -> Path:
    """File of a pretrained tag: from the local caches, or over the network if that is allowed.

    Raises:
        ModelError: unknown tag, or neither cached nor allowed to be downloaded.
    """
    config = get_pretrained_cfg(name, tag)
    if not config:
        tags = list_pretrained_tags_by_model(name)
        hint = nearest(tag, tags) or f"Give a file, a run folder, none, or a tag: {', '.join(tags) or '-'}"
        raise ModelError(f"no file and no pretrained tag of {name}: --weights {tag}", hint)
    cached = _cached(config)
    if cached is not None:
        return cached
    if not download:
        raise ModelError(f"--weights {tag} of {name} is not in the local cache", "Give --download, or --weights FILE")
    try:
        with reached(hub() if config.get("hf_hub") else config["url"]):
            return Path(download_pretrained(config))
    except Exception as error:  # any network failure is one line for the user
        reason = str(error).splitlines()[0]
        raise ModelError(f"cannot download {name} {tag}: {reason}", "Give --weights FILE instead") from error


def _cached(config: dict[str, str]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    repository, _, filename = config.get("hf_hub", "").rpartition("/")
    names = [filename] if filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    for candidate in names if repository else ():
        found = try_to_load_from_cache(repository, candidate)
        if isinstance(found, str):
            return Path(found)
    url = config.get("url", "")
    path = Path.home() / ".cache" / "clip" / os.path.basename(url)  # noqa: PTH119 - of a URL
    return path if url and path.is_file() else None


def logit_scale_value(module: Any) -> Tensor:
    """tau = exp(logit_scale), a scalar tensor without gradient."""
    with torch.no_grad():
        found: Tensor = module.logit_scale.exp().reshape(())
        return found
