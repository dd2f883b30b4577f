"""Vision Transformers of `effvl pretrain`: `vit:SIZE/PATCH@PIXELS[,mean][,learned][,heads=N]`, e.g. `vit:small/16@224`.

Without labels (`num_classes` 0) they give features. Their weights are a timm state dict, and a timm one loads.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from effvl_cli.core.errors import UsageError
from effvl_cli.core.registry import nearest
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.network import RANDOM_CLASSIFIER, Network
from effvl_cli.models.normalise import STATISTICS
from effvl_cli.techniques.pretrain.patch import sincos_order
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape

SIZES = {  # width, depth, heads, patch, pixels
    "nano": (64, 2, 2, 4, 24),
    "micro": (64, 3, 4, 4, 32),
    "tiny": (192, 12, 3, 16, 224),
    "small": (384, 12, 6, 16, 224),
    "base": (768, 12, 12, 16, 224),
}
MOCO_WIDTH, MOCO_HEADS = 384, 12  # of MoCo-v3's ViT-S
_MEAN, _STD = STATISTICS["imagenet"]
_CROP_RATIO = 0.875  # as timm evaluates
_GRAMMAR = re.compile(r"(?P<size>\w+)(/(?P<patch>\d+))?(@(?P<pixels>\d+))?(?P<more>(,[a-z]+(=\d+)?)*)")


@dataclass(frozen=True)
class _Spec:
    size: str
    shape: ViTShape
    mean: bool
    learned: bool

    @property
    def name(self) -> str:
        """The full name, with every default written out."""
        text = f"vit:{self.size}/{self.shape.patch}@{self.shape.image_size}"
        if self.shape.heads != SIZES[self.size][2]:
            text += f",heads={self.shape.heads}"
        return text + ",mean" * self.mean + ",learned" * self.learned


def with_image_size(name: str, image_size: int) -> str:
    """The name of the same ViT for pictures of another size."""
    spec = _parse(name.removeprefix("vit:"))
    shape = spec.shape
    return _Spec(
        spec.size, ViTShape(shape.width, shape.depth, shape.heads, shape.patch, image_size), spec.mean, spec.learned
    ).name


def build(argument: str, *, num_classes: int | None = None) -> Network:
    """Registry builder; the argument is `SIZE/PATCH@PIXELS[,mean][,learned][,heads=N]`."""
    spec = _parse(argument)
    module = VisionTransformer(
        spec.shape,
        pool="mean" if spec.mean else "cls",
        learned_positions=spec.learned,
        num_classes=num_classes or 0,
    )
    pixels = spec.shape.image_size
    preprocess = Preprocess(
        size=(pixels, pixels), mean=_MEAN, std=_STD, interpolation="bicubic", crop_ratio=_CROP_RATIO
    )
    return Network(spec.name, "classifier" if num_classes else "backbone", module, preprocess, adapt=_adapt)


def _parse(argument: str) -> _Spec:
    found = _GRAMMAR.fullmatch(argument)
    if not found:
        raise UsageError(f"vit:{argument} cannot be read", "Write vit:SIZE/PATCH@PIXELS[,mean], e.g. vit:small/16@224")
    size = found["size"]
    if size not in SIZES:
        raise UsageError(f"unknown size {size!r} of a vit", nearest(size, SIZES) or f"The sizes are {', '.join(SIZES)}")
    words = dict.fromkeys(("heads", "mean", "learned"), "")
    for word in filter(None, found["more"].split(",")):
        key, _, value = word.partition("=")
        if key not in words or (key == "heads") != bool(value):
            raise UsageError(f"unknown part {word!r} of vit:{argument}", "Known are mean, learned and heads=N")
        words[key] = value or "yes"
    width, depth, heads, patch, pixels = SIZES[size]
    patch, pixels, heads = int(found["patch"] or patch), int(found["pixels"] or pixels), int(words["heads"] or heads)
    if not patch or pixels < patch or pixels % patch:
        raise UsageError(
            f"vit:{argument}: {pixels} px are not whole patches of {patch} px", "Give a patch that divides"
        )
    if not heads or width % heads:
        raise UsageError(f"vit:{argument}: width {width} is not a multiple of {heads} heads", "Give other heads")
    return _Spec(size, ViTShape(width, depth, heads, patch, pixels), bool(words["mean"]), bool(words["learned"]))


def _adapt(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A backbone leaves the file's head out; a classifier takes it, or its own random one where the file has none.

    MoCo-v3's ViT-S has 12 heads where the usual one has 6, which the shapes of its tensors do not show.
    """
    if of_moco(state) and network.module.shape.width == MOCO_WIDTH:
        _set_heads(network, MOCO_HEADS)
    own: Mapping[str, Tensor] = network.module.state_dict()
    head = {key: own[key] for key in own if key.startswith("head.")}
    theirs = {key: state[key] for key in head if key in state}
    if head and not theirs:
        network.notes.append(RANDOM_CLASSIFIER)
    body = {key: value for key, value in state.items() if not key.startswith("head.")}
    return {**body, **(theirs or head)}


def of_moco(state: Mapping[str, Tensor]) -> bool:
    """Whether a ViT was trained by the code that MoCo-v3's authors released: its fixed positions have rows first."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3 or len(table) != 1:
        return False
    return sincos_order(table[0, 1:], math.isqrt(table.shape[1] - 1)) is True


def _set_heads(network: Network, heads: int) -> None:
    module = network.module
    if module.shape.heads == heads:
        return
    module.shape = replace(module.shape, heads=heads)
    for block in module.blocks:
        block.attn.heads = heads
    spec = _parse(network.name.removeprefix("vit:"))
    network.name = replace(spec, shape=module.shape).name
    network.notes.append(f"positions start with the rows, as in MoCo-v3: taken as {network.name}")
