"""The residual networks for CIFAR of He et al. (arXiv 1512.03385, sec. 4.2): `cifar-resnet:DEPTH[,width=W]`.

B images, C channels, H and W the sides of a feature map.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.core.errors import UsageError
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.network import Network

WIDTH = 16  # of the first stage; each later one has twice as many channels
# Of CIFAR-10's training images; the paper subtracts the mean of each pixel instead.
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A of sec. 4.1)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, outputs - inputs

    def shortcut(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel, with channels of zeros after the last: (B, C, H, W) to the block's output shape."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.padding)) if self.padding else x

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of `depths` blocks at 32, 16 and 8 px, the mean over pixels, and a linear layer."""

    def __init__(self, depths: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__()
        self.num_classes = num_classes
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
        return self.fc(x.mean((2, 3)))

    @staticmethod
    def _stage(inputs: int, outputs: int, num_blocks: int, *, stride: int) -> nn.Sequential:
        first = [BasicBlock(inputs, outputs, stride)] if num_blocks else []
        return nn.Sequential(*first, *(BasicBlock(outputs, outputs) for _ in range(num_blocks - 1)))


def build(argument: str, *, num_classes: int | None = None) -> Network:
    """Registry builder; the argument is the depth, 6n + 2, and perhaps the channels of the first stage.

    Raises:
        UsageError: no such depth or width.
    """
    first, _, more = argument.partition(",")
    depth, width = _depth(first), _width(argument, more)
    module = CifarResNet([(depth - 2) // 6] * 3, num_classes or 10, width)
    preprocess = Preprocess(size=(32, 32), mean=_MEAN, std=_STD, interpolation="bilinear")
    name = f"cifar-resnet:{depth}" + (f",width={width}" if width != WIDTH else "")
    return Network(name, "classifier", module, preprocess)


def _width(argument: str, more: str) -> int:
    key, _, value = more.partition("=")
    if not more:
        return WIDTH
    if key == "width" and value.isdecimal() and int(value) > 0:
        return int(value)
    raise UsageError(
        f"cifar-resnet:{argument} cannot be read", "Write cifar-resnet:DEPTH or cifar-resnet:DEPTH,width=8"
    )


def _depth(argument: str) -> int:
    if not argument.isdecimal():
        raise UsageError(f"cifar-resnet:{argument} names no depth", "Write cifar-resnet:DEPTH, e.g. cifar-resnet:56")
    depth = int(argument)
    if depth >= 8 and depth % 6 == 2:
        return depth
    below = (depth - 2) // 6 * 6 + 2
    near = " or ".join(f"cifar-resnet:{d}" for d in (below, below + 6) if d >= 8) or "cifar-resnet:8"
    raise UsageError(f"cifar-resnet:{argument} has a depth that is not 6n + 2, n >= 1", f"Nearest: {near}")
