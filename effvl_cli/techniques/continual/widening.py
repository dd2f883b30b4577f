"""A network enlarged in place, layer by layer, and the packed dimensions of its tensors.

Channels of convolutional networks grow by the root of the factor. Vision Transformers keep the width of their tokens:
the hidden units of the MLPs and the heads grow by the factor itself, the width of a head stays.
"""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from .growth import Axis, GrowthError, channels, units

_Layouts = dict[str, dict[int, Axis]]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def widen(module: nn.Module, width: float, round_to: int = 1) -> None:
    """Multiply the parameters of a network's hidden layers by about `width`, in place.

    The changed layers are drawn anew from torch's global generator (He et al., arXiv 1502.01852, eq. 10).

    Args:
        module: a convolutional network without groups, or a ViT with `blocks` of `attn` and `mlp`.
        width: factor, at least 1.
        round_to: sizes are rounded up to multiples of it.

    Raises:
        GrowthError: a kind of layer that cannot be enlarged.
    """
    if _blocks(module):
        for block in _blocks(module):
            _widen_block(block, width, round_to)
    else:
        _widen_convolutions(module, width, round_to)


def layouts(module: nn.Module) -> _Layouts:
    """The packed dimensions of a network's tensors, by name and dimension."""
    found: _Layouts = {}
    for path, block in _named_blocks(module):
        heads = _heads(block.attn)
        size = block.attn.proj.in_features // heads
        packed: Axis = ((3, heads, size),)
        found[f"{path}.attn.qkv.weight"] = {0: packed}
        if block.attn.qkv.bias is not None:
            found[f"{path}.attn.qkv.bias"] = {0: packed}
        found[f"{path}.attn.proj.weight"] = {1: ((heads, size),)}
    first, last = _flattened(module)
    if first and last is not None:
        layer = module.get_submodule(first)
        count = last.out_channels
        if isinstance(layer, nn.Linear) and layer.in_features > count and layer.in_features % count == 0:
            found[f"{first}.weight"] = {1: ((count, layer.in_features // count),)}
    return found


# --- convolutional networks ------------------------------------------------------------------------------------------


def _flattened(module: nn.Module) -> tuple[str, nn.Conv2d | None]:
    """Path of the first linear layer, and the last convolution before it; nothing for a transformer."""
    last: nn.Conv2d | None = None
    if _blocks(module):
        return "", None
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d) and "downsample" not in path and "shortcut" not in path:
            last = part
        if isinstance(part, nn.Linear):
            return path, last
    return "", last


def _widen_convolutions(module: nn.Module, width: float, round_to: int) -> None:
    def grown(count: int) -> int:
        return channels(count, width, round_to)

    first, last = _flattened(module)
    flat = last.out_channels if last is not None else 1
    linear = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    images = True
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            if part.groups != 1:
                raise GrowthError(f"{path} is a convolution in {part.groups} groups")
            inputs = part.in_channels if images else grown(part.in_channels)
            images = False
            _resize_convolution(part, inputs, grown(part.out_channels))
        elif isinstance(part, _NORMS):
            _resize_norm(part, grown(part.num_features))
        elif isinstance(part, nn.Linear):
            before = grown(flat) * (part.in_features // flat) if path == first else grown(part.in_features)
            _resize_linear(part, before, part.out_features if path == linear[-1] else grown(part.out_features))
        elif next(part.parameters(recurse=False), None) is not None:
            raise GrowthError(f"{path} is a {type(part).__name__}")
    _repair_padding(module)


def _repair_padding(module: nn.Module) -> None:
    """Shortcuts of the CIFAR networks append as many zero channels as the block adds."""
    for part in module.modules():
        convolutions = [getattr(part, name, None) for name in ("conv1", "conv2")]
        padding = getattr(part, "padding", None)
        if not (isinstance(padding, tuple) and all(isinstance(conv, nn.Conv2d) for conv in convolutions)):
            continue
        if padding[0]:
            raise GrowthError("shortcuts that pad on both sides move their channels")
        first: Any = convolutions[0]
        last: Any = convolutions[1]
        block: Any = part
        block.padding = (0, last.out_channels - first.in_channels)


def _resize_convolution(layer: nn.Conv2d, inputs: int, outputs: int) -> None:
    layer.in_channels, layer.out_channels = inputs, outputs
    layer.weight = nn.Parameter(layer.weight.new_empty(outputs, inputs, *layer.kernel_size))
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    _resize_bias(layer, outputs)


def _resize_linear(layer: nn.Linear, inputs: int, outputs: int) -> None:
    if (inputs, outputs) == (layer.in_features, layer.out_features):
        return
    deviation = layer.weight.detach().std() * math.sqrt(layer.in_features / inputs)
    layer.in_features, layer.out_features = inputs, outputs
    layer.weight = nn.Parameter(layer.weight.new_empty(outputs, inputs).normal_().mul_(deviation))
    _resize_bias(layer, outputs)


def _resize_bias(layer: Any, outputs: int) -> None:
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.new_zeros(outputs))


def _resize_norm(layer: Any, size: int) -> None:
    layer.num_features = size
    if layer.affine:
        layer.weight = nn.Parameter(layer.weight.new_ones(size))
        layer.bias = nn.Parameter(layer.bias.new_zeros(size))
    if layer.track_running_stats:
        layer.running_mean = layer.running_mean.new_zeros(size)
        layer.running_var = layer.running_var.new_ones(size)


# --- transformers ----------------------------------------------------------------------------------------------------


def _named_blocks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    blocks = getattr(module, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList):
        for index, block in enumerate(blocks):
            if hasattr(block, "attn") and hasattr(block, "mlp") and hasattr(block.attn, "qkv"):
                yield f"blocks.{index}", block


def _blocks(module: nn.Module) -> list[Any]:
    return [block for _, block in _named_blocks(module)]


def _heads(attention: Any) -> int:
    found: int = attention.num_heads if hasattr(attention, "num_heads") else attention.heads
    return found


def _widen_block(block: Any, width: float, round_to: int) -> None:
    attention, mlp = block.attn, block.mlp
    hidden = units(mlp.fc1.out_features, width, round_to)
    if mlp.fc2.in_features != mlp.fc1.out_features:
        raise GrowthError("an MLP with a gate")
    if isinstance(getattr(attention, "norm", None), nn.LayerNorm):
        raise GrowthError("attention with a norm of its output")
    _resize_linear(mlp.fc1, mlp.fc1.in_features, hidden)
    _resize_linear(mlp.fc2, hidden, mlp.fc2.out_features)
    before = _heads(attention)
    size, heads = attention.proj.in_features // before, units(before, width)
    _resize_linear(attention.qkv, attention.qkv.in_features, 3 * heads * size)
    _resize_linear(attention.proj, heads * size, attention.proj.out_features)
    if hasattr(attention, "num_heads"):
        attention.num_heads, attention.attn_dim = heads, heads * size
    else:
        attention.heads = heads
