"""Small networks for the embedded data: seconds to run on a CPU, the same code paths as the large ones."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import open_clip
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.network import CHECKPOINT, Network
from effvl_cli.models.normalise import STATISTICS
from effvl_cli.models.openclip import adapt_weights

ASSETS = Path(__file__).parent / "assets"
MERGES = ASSETS / "merges.txt.gz"
CONTEXT = 16


def clip(argument: str = "", *, num_classes: int | None = None) -> Network:
    """CLIP for 64 px images, 64 patches of 8 px; shipped with weights trained on `shape-captions`."""
    vision = CLIPVisionCfg(layers=4, width=64, head_width=16, mlp_ratio=2.0, patch_size=8, image_size=64)
    network = _clip("tiny:clip", vision, text_width=64)
    shipped = ASSETS / "tiny-clip" / CHECKPOINT
    network.shipped = shipped if shipped.is_file() else None
    return network


def clip_32px(argument: str = "", *, num_classes: int | None = None) -> Network:
    """CLIP for 32 px images, 64 patches of 4 px; wider, for photographs."""
    vision = CLIPVisionCfg(layers=4, width=96, head_width=24, mlp_ratio=2.0, patch_size=4, image_size=32)
    return _clip("tiny:clip-32px", vision, text_width=64)


def _clip(name: str, vision: CLIPVisionCfg, *, text_width: int) -> Network:
    tokenize = SimpleTokenizer(bpe_path=str(MERGES), context_length=CONTEXT)
    text = CLIPTextCfg(
        context_length=CONTEXT, vocab_size=tokenize.vocab_size, width=text_width, heads=text_width // 16, layers=2
    )
    size = (vision.image_size, vision.image_size)
    preprocess = Preprocess(
        size=size, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD, interpolation="bicubic"
    )
    module = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)
    return Network(name, "clip", module, preprocess, tokenize=tokenize, adapt=adapt_weights)


def resnet(argument: str = "", *, num_classes: int | None = None) -> Network:
    """Residual classifier for images of about 32 px: torchvision's blocks, a 3x3 stem of stride 2, no pooling."""
    module = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes or 10)
    module.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    module.maxpool = nn.Identity()
    module.num_classes = num_classes or 10
    preprocess = Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bilinear")
    return Network("tiny:resnet", "classifier", module, preprocess)


def thin_resnet(argument: str = "", *, num_classes: int | None = None) -> Network:
    """ResNet of four blocks and 16 to 128 channels for images of 64 px and more: the backbone of tiny detectors."""
    parts = OrderedDict(thin_resnet_body(nn.BatchNorm2d).named_children())
    parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(128, num_classes or 10)}
    module = nn.Sequential(parts)
    module.num_classes = num_classes or 10  # type: ignore[assignment]
    mean, std = STATISTICS["imagenet"]  # as the detectors
    preprocess = Preprocess(size=(64, 64), mean=mean, std=std, interpolation="bilinear")
    return Network("tiny:thin-resnet", "classifier", module, preprocess)


def thin_resnet_body(norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """torchvision's stem and one basic block of 16, 32, 64 and 128 channels each, named as in its ResNets.

    Args:
        norm: layer for a number of channels.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False),
        bn1=norm(16),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        layer1=nn.Sequential(BasicBlock(16, 16, norm_layer=norm)),
    )
    for k, width in enumerate((32, 64, 128), start=2):
        halved = nn.Sequential(nn.Conv2d(width // 2, width, 1, stride=2, bias=False), norm(width))
        parts[f"layer{k}"] = nn.Sequential(BasicBlock(width // 2, width, 2, halved, norm_layer=norm))
    body = nn.Sequential(parts)
    for part in body.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return body
