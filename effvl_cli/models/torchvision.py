"""Classifiers of torchvision: `torchvision:NAME`, e.g. `torchvision:resnet50`. Their state dicts load as they are."""

import re
from typing import Any, Literal

import torchvision
from torch import Tensor
from torchvision.models import get_model, get_model_weights, list_models

from effvl_cli.core.errors import UsageError
from effvl_cli.core.registry import nearest
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.network import Network

# The original weights of a network, or those for the size it is built for: later ones are evaluated differently.
_REFERENCE = ("IMAGENET1K_V1", "IMAGENET1K_SWAG_LINEAR_V1")
_PLAIN = Preprocess(
    size=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", crop_ratio=0.875
)
# Auxiliary heads serve training only, and add outputs. The released weights of both expect inputs in -1..1.
_AUXILIARY = ("googlenet", "inception_v3")
_NO_AUXILIARY = {"aux_logits": False, "transform_input": True, "init_weights": True}
_AUXILIARY_KEY = re.compile(r"(aux1|aux2|AuxLogits)\.")
# The released DenseNet files write denselayer1.norm.1.weight for denselayer1.norm1.weight.
_DENSENET_KEY = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)")


def build(argument: str, *, num_classes: int | None = None) -> Network:
    """Registry builder; the argument is a name of `torchvision.models.list_models`.

    Raises:
        UsageError: no classifier has that name.
    """
    known = list_models(module=torchvision.models)
    if argument not in known:
        hint = nearest(argument, known) or "Give a name of torchvision's classifiers, e.g. torchvision:resnet50"
        raise UsageError(f"unknown classifier {argument!r} of torchvision", hint)
    module = get_model(argument, weights=None, num_classes=num_classes or 1000, **options_of(argument))
    module.num_classes = num_classes or 1000
    return Network(f"torchvision:{argument}", "classifier", module, _preprocess(argument), adapt=_adapt)


def options_of(name: str) -> dict[str, Any]:
    """Arguments of torchvision's constructor besides the number of classes."""
    return _NO_AUXILIARY if name in _AUXILIARY else {}


def _preprocess(name: str) -> Preprocess:
    """The evaluation transform of the reference weights, which torchvision knows without fetching them."""
    weights = get_model_weights(name).__members__
    tag = next((tag for tag in _REFERENCE if tag in weights), None)
    if tag is None:
        return _PLAIN
    theirs = weights[tag].transforms()
    size, resized = theirs.crop_size[0], theirs.resize_size[0]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic" if theirs.interpolation.value == "bicubic" else "bilinear"
    return Preprocess(
        size=(size, size),
        mean=tuple(theirs.mean),
        std=tuple(theirs.std),
        interpolation=interpolation,
        crop_ratio=size / resized,
    )


def _adapt(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop auxiliary heads, and convert the old DenseNet names of released files."""
    return {_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items() if not _AUXILIARY_KEY.match(key)}
