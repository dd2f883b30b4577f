"""Plain torch, torchvision or timm code that builds the structure of a network, whole or with blocks removed.

Each source offers guesses, the most readable first; running them shows which one is right.
"""

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torchvision.models import ConvNeXt, EfficientNet, MobileNetV2, RegNet, ResNet, VisionTransformer
from torchvision.models.efficientnet import MBConv
from torchvision.ops import StochasticDepth

from effvl_cli.core.errors import ModelError
from effvl_cli.models import cifar_resnet, small_cnn
from effvl_cli.models.edits import in_words
from effvl_cli.models.network import Network, build
from effvl_cli.models.removed_blocks import REMOVED, removals_of
from effvl_cli.models.torchvision import options_of
from effvl_cli.models.widened import WIDENED
from effvl_cli.techniques.prune_blocks import containers
from effvl_cli.techniques.prune_blocks.stand_ins import FURTHER_INPUTS, STAND_INS, WRAPPED
from effvl_cli.techniques.prune_blocks.surgery import Removal


class NoConstructorError(ModelError):
    """No plain code builds the network; without effvl only its exported program can be loaded."""


@dataclass(frozen=True)
class Code:
    """Python text of one way to build a network.

    Attributes:
        value: the expression.
        imports: lines that it needs.
        definitions: functions and classes that it needs.
        statements: lines that change the value, called `network` there.
    """

    value: str
    imports: Sequence[str]
    definitions: Sequence[str] = ()
    statements: Sequence[str] = ()


def constructors(network: Network) -> Iterator[Code]:
    """Code that may build the network's structure.

    Raises:
        NoConstructorError: its source has no public constructor, or an edit is more than the removal of blocks.
    """
    source, _, name = network.name.partition(":")
    if source not in _SOURCES:
        raise NoConstructorError(f"{network.name} has no constructor outside effvl", "Load its model.pt2")
    if more := in_words([edit for edit in network.edits if edit["kind"] not in (REMOVED, WIDENED)]):
        raise NoConstructorError(f"{network.name} has {more}", "Load its model.pt2")
    removals = removals_of(network.edits)
    if all(edit["kind"] != WIDENED for edit in network.edits):
        return _SOURCES[source](name, network.module, removals)
    if removals:
        raise NoConstructorError(f"{network.name} has {in_words(network.edits)}", "Load its model.pt2")
    narrow = build(network.name, seed=0, num_classes=network.module.num_classes).module
    return (_enlarged(code, narrow, network.module) for code in _SOURCES[source](name, narrow, ()))


def _enlarged(whole: Code, narrow: nn.Module, wide: nn.Module) -> Code:
    """The network as its name builds it, then each tensor of another shape and each number that differs."""
    before = narrow.state_dict()
    shapes = {key: tuple(value.shape) for key, value in wide.state_dict().items() if value.shape != before[key].shape}
    numbers = [
        f"network.get_submodule({json.dumps(path)}).{name} = {value}"
        for path, part in wide.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, int | tuple) and name != "training" and not name.startswith("_")
        if vars(narrow.get_submodule(path)).get(name) != value
    ]
    return replace(
        whole,
        imports=[*whole.imports, "import torch"],
        definitions=[*whole.definitions, inspect.getsource(resize)],
        statements=[*(f"resize(network, {json.dumps(key)}, {shape})" for key, shape in shapes.items()), *numbers],
    )


def resize(network: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Give a tensor of a network another shape; its values are loaded later."""
    path, _, attribute = name.rpartition(".")
    part, tensor = network.get_submodule(path), torch.empty(shape)
    setattr(
        part, attribute, nn.Parameter(tensor) if attribute in dict(part.named_parameters(recurse=False)) else tensor
    )


def _without(whole: Code, removals: Sequence[Removal]) -> Code:
    """The whole network, then each removal as a statement."""
    if not removals:
        return whole
    tools = (containers.prefix_of, containers.set_children, containers.delete_child)
    own = dict.fromkeys(STAND_INS[r.mode] for r in removals if r.mode in (FURTHER_INPUTS, WRAPPED))
    more = ["from typing import Any", "from torch import Tensor"] if own else []
    numbered = f"_NUMBERED = re.compile({containers._NUMBERED.pattern!r})"
    return replace(
        whole,
        imports=[*whole.imports, "import re", "from collections.abc import Mapping", *more],
        definitions=[
            numbered,
            *(inspect.getsource(tool) for tool in tools),
            *(inspect.getsource(kind) for kind in own),
        ],
        statements=[_statement(removal) for removal in removals],
    )


def _statement(removal: Removal) -> str:
    parent, _, name = removal.path_at_step.rpartition(".")
    container = f"network.get_submodule({json.dumps(parent)})"
    if removal.mode == "delete":
        return f"delete_child({container}, {json.dumps(name)})"
    kind = STAND_INS[removal.mode]
    place = "nn." if kind.__module__.startswith("torch.") else ""
    return f"{container}.add_module({json.dumps(name)}, {place}{kind.__name__}())"


# --- torchvision -----------------------------------------------------------------------------------------------------


def _torchvision(name: str, module: Any, removals: Sequence[Removal]) -> Iterator[Code]:
    family = _FAMILIES.get(type(module))
    if removals and family:
        with contextlib.suppress(IndexError):  # an empty stage does not show its block type
            yield family(module)
    options = "".join(f", {key}={value}" for key, value in options_of(name).items())
    call = f"get_model({json.dumps(name)}, weights=None, num_classes={module.num_classes}{options})"
    yield _without(Code(call, ["from torchvision.models import get_model"]), removals)


def _resnet(module: Any) -> Code:
    stages = [module.layer1, module.layer2, module.layer3, module.layer4]
    block = type(module.layer1[0]).__name__
    depths = [len(stage) for stage in stages]
    widths = f"groups={module.groups}, width_per_group={module.base_width}"
    return Code(
        f"ResNet({block}, {depths}, num_classes={module.num_classes}, {widths})",
        [f"from torchvision.models.resnet import {block}, ResNet"],
    )


def _vit(module: Any) -> Code:
    layers = module.encoder.layers
    options = {
        "image_size": module.image_size,
        "patch_size": module.patch_size,
        "num_layers": len(layers),
        "num_heads": layers[0].num_heads,
        "hidden_dim": module.hidden_dim,
        "mlp_dim": module.mlp_dim,
        "num_classes": module.num_classes,
    }
    rows = "".join(f"        {key}={value},\n" for key, value in options.items())
    return Code(f"VisionTransformer(\n{rows}    )", ["from torchvision.models import VisionTransformer"])


def _convnext(module: Any) -> Code:
    stages, below = module.features[1::2], module.features[2::2]
    widths = [(step[1].in_channels, step[1].out_channels) for step in below]
    widths.append((module.classifier[2].in_features, None))
    rows = "".join(
        f"            CNBlockConfig({width}, {after}, {len(stage)}),\n"
        for (width, after), stage in zip(widths, stages, strict=True)
    )
    drop = max((part.p for part in module.modules() if isinstance(part, StochasticDepth)), default=0.0)
    return Code(
        f"ConvNeXt(\n        [\n{rows}        ],\n        stochastic_depth_prob={drop},\n"
        f"        num_classes={module.num_classes},\n    )",
        ["from torchvision.models.convnext import CNBlockConfig, ConvNeXt"],
    )


def _mobilenet(module: Any) -> Code:
    rows: list[list[int]] = []  # expansion, channels, blocks, stride
    for block in module.features[1:-1]:
        if block.use_res_connect:
            rows[-1][2] += 1
        else:
            expansion = block.conv[-2].in_channels // block.conv[0][0].in_channels
            rows.append([expansion, block.out_channels, 1, block.stride])
    setting = "".join(f"            {row},\n" for row in rows)
    return Code(
        f"MobileNetV2(\n        num_classes={module.num_classes},\n"
        f"        inverted_residual_setting=[\n{setting}        ],\n    )",
        ["from torchvision.models import MobileNetV2"],
    )


def _efficientnet(module: Any) -> Code:
    stages = list(module.features.children())[1:-1]
    rows = "".join(f"            {_inverted_residuals(stage)},\n" for stage in stages)
    norm = module.features[0][1]
    rates = [part.p for part in module.modules() if isinstance(part, StochasticDepth)]
    drop = round(rates[-1] * len(rates) / max(1, len(rates) - 1), 9)  # the last of n blocks has n - 1 n-ths of it
    return Code(
        f"EfficientNet(\n        [\n{rows}        ],\n        dropout={module.classifier[0].p},\n"
        f"        stochastic_depth_prob={drop},\n        num_classes={module.num_classes},\n"
        f"        norm_layer=partial(nn.BatchNorm2d, eps={norm.eps}, momentum={norm.momentum}),\n"
        f"        last_channel={module.features[-1][0].out_channels},\n    )",
        [
            "from functools import partial",
            "from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig",
        ],
    )


def _inverted_residuals(stage: Any) -> str:
    """The configuration of a stage of EfficientNet: expansion, kernel, stride, channels before and after, blocks."""
    block = stage[0].block
    convolutions = [part for part in block.modules() if isinstance(part, nn.Conv2d)]
    first, last = convolutions[0], block[-1][0]
    spatial = next(conv for conv in convolutions if conv.kernel_size[0] > 1)
    grown = spatial.out_channels if isinstance(stage[0], MBConv) or len(block) > 1 else first.in_channels
    sizes = (grown // first.in_channels, spatial.kernel_size[0], spatial.stride[0])
    return f"{type(stage[0]).__name__}Config{(*sizes, first.in_channels, last.out_channels, len(stage))}"


def _regnet(module: Any) -> Code:
    stages = [list(stage.children()) for stage in module.trunk_output.children()]
    entries = [stage[0].f for stage in stages]
    widths = [f.c[0].out_channels for f in entries]
    inner = [f.b[0].out_channels for f in entries]
    options = {
        "depths": [len(stage) for stage in stages],
        "widths": widths,
        "group_widths": [n // f.b[0].groups for n, f in zip(inner, entries, strict=True)],
        "bottleneck_multipliers": [n / width for n, width in zip(inner, widths, strict=True)],
        "strides": [f.b[0].stride[0] for f in entries],
    }
    if hasattr(entries[0], "se"):  # squeezed to a share of the channels before the block; the second has the first's
        options["se_ratio"] = round(entries[1].se.fc1.out_channels / widths[0], 2)
    rows = "".join(f"            {key}={value},\n" for key, value in options.items())
    return Code(
        f"RegNet(\n        BlockParams(\n{rows}        ),\n        num_classes={module.num_classes},\n"
        f"        stem_width={module.stem[0].out_channels},\n    )",
        ["from torchvision.models.regnet import BlockParams, RegNet"],
    )


_FAMILIES: dict[type, Callable[[Any], Code]] = {
    ResNet: _resnet,
    VisionTransformer: _vit,
    ConvNeXt: _convnext,
    MobileNetV2: _mobilenet,
    EfficientNet: _efficientnet,
    RegNet: _regnet,
}


# --- timm ------------------------------------------------------------------------------------------------------------


def _timm(name: str, module: Any, removals: Sequence[Removal]) -> Iterator[Code]:
    for option in _depth_options(module) if removals else ():
        yield _created(name, module, f", {option}")
    yield _without(_created(name, module), removals)


def _created(name: str, module: Any, more: str = "") -> Code:
    return Code(f"timm.create_model({json.dumps(name)}, num_classes={module.num_classes}{more})", ["import timm"])


def _depth_options(module: nn.Module) -> Iterator[str]:
    """Arguments by which timm's families take numbers of blocks."""
    parts = dict(module.named_children())
    if "layer1" in parts:
        yield f"layers={[_length(parts[key]) for key in parts if key.startswith('layer')]}"
    for key in ("stages", "layers"):
        stages = list(parts[key].children()) if key in parts else []
        if stages and all(hasattr(stage, "blocks") for stage in stages):
            yield f"depths={[_length(stage.get_submodule('blocks')) for stage in stages]}"
    if "blocks" in parts:
        yield f"depth={_length(parts['blocks'])}"


def _length(container: nn.Module) -> int:
    return len(list(container.children()))


# --- CIFAR -----------------------------------------------------------------------------------------------------------


def _cifar(name: str, module: Any, removals: Sequence[Removal]) -> Iterator[Code]:
    depths = tuple(len(stage) for stage in (module.layer1, module.layer2, module.layer3))
    sizes = f"depths={depths}, num_classes={module.num_classes}, width={module.conv1.out_channels}"
    sizes += ", both=True" * module.both
    yield Code(
        f"CifarResNet({sizes})",
        ["import torch.nn.functional as F", "from collections.abc import Sequence", "from torch import Tensor, nn"],
        [inspect.getsource(part) for part in (cifar_resnet.BasicBlock, cifar_resnet.CifarResNet)],
    )


def _plain(name: str, module: Any, removals: Sequence[Removal]) -> Iterator[Code]:
    """The networks of models/small_cnn.py."""
    stages: list[list[int]] = [[]]
    for layer in module.features:
        if isinstance(layer, nn.MaxPool2d):
            stages.append([])
        elif isinstance(layer, nn.Conv2d):
            stages[-1].append(layer.out_channels)
    last_pool = not stages[-1]
    stages = stages[:-1] if last_pool else stages
    layers = [layer for layer in module.body if isinstance(layer, nn.Linear)]
    flat = isinstance(module.pool, nn.Identity)
    pixels = [*layers, module.head][0].in_features // stages[-1][-1] if flat else 0
    sizes = f"{stages}, {[layer.out_features for layer in layers]}, {module.num_classes}"
    yield Code(
        f"PlainCNN({sizes}, pixels={pixels}, last_pool={last_pool})",
        ["import math", "from collections.abc import Sequence", "from torch import Tensor, nn"],
        [f"VGG_HIDDEN = {small_cnn.VGG_HIDDEN}", inspect.getsource(small_cnn.PlainCNN)],
    )


_SOURCES: dict[str, Callable[[str, Any, Sequence[Removal]], Iterator[Code]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "cifar-resnet": _cifar,
    "smallcnn": _plain,
    "vgg": _plain,
}
