"""The residual networks for CIFAR of He et al. (arXiv 1512.03385): `cifar-resnet:DEPTH[,width=W][,pad=both]`.

B images, C channels, H and W the sides of a feature map.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.core.errors import UsageError
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.network import Network
from effvl_cli.models.normalise import STATISTICS

WIDTH = 16  # channels of the first stage; each later one has twice as many
_MEAN, _STD = STATISTICS["cifar10"]  # the paper subtracts the mean of each pixel instead
_SYNTAX = "Write cifar-resnet:DEPTH, e.g. cifar-resnet:56, optionally followed by ,width=8 or ,pad=both"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of sec. 4.1).

    The paper does not say where the zero channels go: after the others, or, with `both`, half of them on each side.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, both: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, more = stride, outputs - inputs
        self.padding = (more // 2, more - more // 2) if both else (0, more)

    def shortcut(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel, with channels of zeros: (B, C, H, W) to the block's output shape."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, *self.padding)) if any(self.padding) else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of `depths` blocks at 32, 16 and 8 px, the mean over pixels, and a linear layer."""

    def __init__(self, depths: Sequence[int], num_classes: int, width: int, *, both: bool = False) -> None:
        super().__init__()
        self.num_classes, self.both = num_classes, both
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, depths[0], stride=1)
        self.layer2 = self._stage(width, 2 * width, depths[1], stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, depths[2], stride=2)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, classes) logits."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        found: Tensor = self.fc(x.mean((2, 3)))
        return found

    def _stage(self, inputs: int, outputs: int, num_blocks: int, *, stride: int) -> nn.Sequential:
        first = [BasicBlock(inputs, outputs, stride, both=self.both)] if num_blocks else []
        return nn.Sequential(*first, *(BasicBlock(outputs, outputs) for _ in range(num_blocks - 1)))


def build(argument: str, *, num_classes: int | None = None) -> Network:
    """Registry builder; the argument is the depth, 6n + 2, perhaps the channels of the first stage, and the padding.

    Raises:
        UsageError: no such depth, width or padding.
    """
    first, *more = argument.split(",")
    depth, (width, both) = _depth(first), _words(argument, more)
    module = CifarResNet([(depth - 2) // 6] * 3, num_classes or 10, width, both=both)
    preprocess = Preprocess(size=(32, 32), mean=_MEAN, std=_STD, interpolation="bilinear")
    name = f"cifar-resnet:{depth}" + f",width={width}" * (width != WIDTH) + ",pad=both" * both
    return Network(name, "classifier", module, preprocess, adapt=_adapt)


def _adapt(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published networks of Idelbayev (github.com/akamaster/pytorch_resnet_cifar10) call the last layer `linear`.

    They pad on both sides and were trained on images normalised with ImageNet's statistics.
    """
    if "linear.weight" not in state or any("shortcut" in key for key in state):
        return state
    module = network.module
    for block in module.modules():
        if isinstance(block, BasicBlock):
            more = sum(block.padding)
            block.padding = (more // 2, more - more // 2)
    if not module.both:
        module.both, network.name = True, f"{network.name},pad=both"
    mean, std = STATISTICS["imagenet"]
    network.preprocess = replace(network.preprocess, mean=mean, std=std)
    network.notes.append(f"{network.name} with ImageNet's normalisation, as networks whose last layer is `linear` need")
    return {f"fc{key.removeprefix('linear')}" if key.startswith("linear.") else key: v for key, v in state.items()}


def _words(argument: str, more: Sequence[str]) -> tuple[int, bool]:
    """Channels of the first stage, and whether both sides are padded."""
    words = {"width": str(WIDTH), "pad": "after"}
    given = [word.partition("=")[::2] for word in more]
    words |= dict(given)
    width = words["width"]
    if (
        len(words) > 2
        or len(dict(given)) < len(given)
        or not (width.isdecimal() and int(width))
        or words["pad"] not in ("after", "both")
    ):
        raise UsageError(f"cifar-resnet:{argument} cannot be read", _SYNTAX)
    return int(width), words["pad"] == "both"


def _depth(argument: str) -> int:
    if not argument.isdecimal():
        raise UsageError(f"cifar-resnet:{argument} has no depth", "Write cifar-resnet:DEPTH, e.g. cifar-resnet:56")
    depth = int(argument)
    if depth >= 8 and depth % 6 == 2:
        return depth
    below = (depth - 2) // 6 * 6 + 2
    near = " or ".join(f"cifar-resnet:{d}" for d in (below, below + 6) if d >= 8) or "cifar-resnet:8"
    raise UsageError(f"cifar-resnet:{argument} has a depth that is not 6n + 2, n >= 1", f"Nearest: {near}")
