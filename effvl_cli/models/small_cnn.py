"""Plain convolutional networks for small images: `smallcnn[:width=W]` and `vgg:DEPTH[,width=W][,hidden=H][,size=S]`.

B images, C channels, H and W the sides of a feature map.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from effvl_cli.core.errors import UsageError
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.network import Network
from effvl_cli.models.normalise import STATISTICS

WIDTH = 12  # channels of the first layer of smallcnn
VGG_WIDTH, VGG_HIDDEN = 64, 4096
VGG_SIZES = (32, 64)
# Convolutions before each of the five poolings (Simonyan and Zisserman, arXiv 1409.1556, table 1).
VGG_STAGES: Mapping[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_FACTORS = (1, 2, 4, 8, 8)
_SMALL = "Write smallcnn, or smallcnn:width=24"
_VGG = "Write vgg:16, optionally followed by ,width=16 ,hidden=256 or ,size=64"


class PlainCNN(nn.Module):
    """3x3 convolutions without bias, each with batch norm and ReLU, between poolings; then linear layers.

    Args:
        stages: channels of the convolutions before each pooling; 0 in front leaves the last stage without one.
        hidden: units of each hidden linear layer.
        num_classes: outputs.
        pixels: of the last feature map, which is flattened; 0: it is averaged.
        last_pool: whether the last stage is pooled too.
    """

    def __init__(
        self, stages: Sequence[Sequence[int]], hidden: Sequence[int], num_classes: int, *, pixels: int, last_pool: bool
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        layers: list[nn.Module] = []
        inputs = 3
        for index, stage in enumerate(stages):
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            if last_pool or index < len(stages) - 1:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.Identity() if pixels else nn.AdaptiveAvgPool2d(1)
        units = inputs * max(1, pixels)
        body: list[nn.Module] = []
        for size in hidden:
            body += [nn.Linear(units, size), nn.ReLU()]
            units = size
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(units, num_classes)
        self._initialise()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, classes) logits."""
        found: Tensor = self.head(self.body(self.pool(self.features(images)).flatten(1)))
        return found

    def _initialise(self) -> None:
        """Kaiming for the convolutions; linear layers as the published network has them, where they are as wide."""
        for part in self.features.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        for layer in [*self.body, self.head]:
            if isinstance(layer, nn.Linear):
                # Through two narrow layers of deviation 0.01 next to nothing would pass.
                wide = layer is self.head or layer.out_features >= VGG_HIDDEN
                nn.init.normal_(layer.weight, 0.0, 0.01 if wide else math.sqrt(2 / layer.in_features))
                nn.init.zeros_(layer.bias)


def build_small(argument: str, *, num_classes: int | None = None) -> Network:
    """Registry builder: four convolutions of W, 2W, 4W and 4W channels, their mean over the pixels, a linear layer.

    Raises:
        UsageError: the argument cannot be read.
    """
    words = _words("smallcnn", argument.split(",") if argument else [], {"width": WIDTH}, _SMALL)
    width = words["width"]
    stages = [[width], [2 * width], [4 * width], [4 * width]]
    module = PlainCNN(stages, [], num_classes or 10, pixels=0, last_pool=False)
    name = "smallcnn" + f":width={width}" * (width != WIDTH)
    return Network(name, "classifier", module, _preprocess(32))


def build_vgg(argument: str, *, num_classes: int | None = None) -> Network:
    """Registry builder: a VGG with batch norm for images of 32 or 64 px, and two hidden linear layers.

    Raises:
        UsageError: the argument cannot be read.
    """
    first, *more = argument.split(",")
    if not first.isdecimal() or int(first) not in VGG_STAGES:
        raise UsageError(f"vgg:{argument} has no known depth", f"Depths are {', '.join(map(str, VGG_STAGES))}. {_VGG}")
    defaults = {"width": VGG_WIDTH, "hidden": VGG_HIDDEN, "size": VGG_SIZES[0]}
    words = _words("vgg", more, defaults, _VGG)
    if words["size"] not in VGG_SIZES:
        raise UsageError(f"vgg:{argument} is for images of {words['size']} px", f"Sizes are 32 and 64. {_VGG}")
    channels = [words["width"] * factor for factor in _FACTORS]
    stages = [[count] * depth for count, depth in zip(channels, VGG_STAGES[int(first)], strict=True)]
    pixels = (words["size"] // 32) ** 2
    module = PlainCNN(stages, [words["hidden"]] * 2, num_classes or 10, pixels=pixels, last_pool=True)
    given = "".join(f",{key}={words[key]}" for key, usual in defaults.items() if words[key] != usual)
    return Network(f"vgg:{first}{given}", "classifier", module, _preprocess(words["size"]))


def _preprocess(size: int) -> Preprocess:
    mean, std = STATISTICS["cifar100"]
    return Preprocess(size=(size, size), mean=mean, std=std, interpolation="bilinear")


def _words(source: str, given: Sequence[str], defaults: Mapping[str, int], syntax: str) -> dict[str, int]:
    """Numbers by name.

    Raises:
        UsageError: an unknown or repeated name, or no whole number above 0.
    """
    found: dict[str, int] = {}
    for word in given:
        key, _, value = word.partition("=")
        if key not in defaults or key in found or not value.isdecimal() or not int(value):
            raise UsageError(f"{source} has the part {word!r}, which cannot be read", syntax)
        found[key] = int(value)
    return {**defaults, **found}
