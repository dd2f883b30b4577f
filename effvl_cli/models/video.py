"""Encoders of video clips: `NAME[:channels=N][,dim=D][,from=torchvision]`, e.g. `s3d`, `r3d_18:channels=2`.

An encoder is a backbone, which gives features, and a projection, which gives the embeddings that the contrastive loss
compares (CoCLR, arXiv 2010.09709, sec. 3): linear, ReLU, linear. Clips of three channels are in 0..1; the encoder
normalises them itself. B clips, C channels, T frames of H x W pixels.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.video import mc3_18, r2plus1d_18, r3d_18, s3d

from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models.coclr_names import of_coclr, renamed
from effvl_cli.models.network import Network
from effvl_cli.models.normalise import STATISTICS, Channels

RANDOM_PROJECTION = "the file has no projection: it is random, which features do not show and embeddings do"
_IMAGENET = STATISTICS["imagenet"]
_KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # of torchvision's released weights
_TF_EPS, _TF_MOMENTUM = 1e-3, 1e-3  # of torchvision's S3D, whose released weights were trained with it
_CLASSIFIERS = ("fc.", "classifier.")
_BODY, _PROJECTION = "backbone.body.", "projection."


@dataclass(frozen=True)
class _Family:
    """What the encoders of a name have in common.

    Attributes:
        body: the network before pooling, for 3 channels, with that norm layer.
        stem: path of its first convolution.
        feature_size: channels that it gives.
        dim: size of embeddings unless asked for otherwise.
        size: side of the clips that it is meant for, in px.
        smallest: fewest frames, and the shortest side in px, that it can process.
        plain: whether inputs stay in 0..1 instead of ImageNet's normalisation.
    """

    body: Callable[[Callable[..., nn.Module]], nn.Sequential]
    stem: str
    feature_size: int
    dim: int = 128
    size: int = 128
    smallest: tuple[int, int] = (1, 1)
    plain: bool = False


@dataclass(frozen=True)
class _Spec:
    family: str
    channels: int = 3
    dim: int = 0
    torchvision: bool = False

    @property
    def normalisation(self) -> tuple[Channels, Channels] | None:
        """Mean and standard deviation of the three channels; None where clips stay as they are."""
        if self.channels != 3 or _FAMILIES[self.family].plain:
            return None
        return _KINETICS if self.torchvision else _IMAGENET

    @property
    def name(self) -> str:
        """The full name; what is usual for the family is left out."""
        words = [f"channels={self.channels}"] * (self.channels != 3)
        words += [f"dim={self.dim}"] * (self.dim != _FAMILIES[self.family].dim)
        words += ["from=torchvision"] * self.torchvision
        return ":".join([self.family, ",".join(words)] if words else [self.family])


class Backbone(nn.Module):
    """Normalisation, convolutions, and the mean over frames and pixels."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, body: nn.Sequential, normalisation: tuple[Channels, Channels] | None) -> None:
        super().__init__()
        self.body = body
        self.normalise(normalisation)

    def normalise(self, normalisation: tuple[Channels, Channels] | None) -> None:
        """Set the mean and standard deviation of the channels; they are no part of the weights."""
        for name, values in zip(("mean", "std"), normalisation or (None, None), strict=True):
            value = None if values is None else torch.tensor(values).reshape(1, -1, 1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, feature_size)."""
        if self.mean is not None and self.std is not None:
            clips = (clips - self.mean) / self.std
        found: Tensor = self.body(clips).mean((2, 3, 4))
        return found


class VideoEncoder(nn.Module):
    """A backbone and its projection; both can be used alone."""

    def __init__(
        self, body: nn.Sequential, feature_size: int, dim: int, normalisation: tuple[Channels, Channels] | None
    ) -> None:
        super().__init__()
        self.feature_size, self.dim = feature_size, dim
        self.backbone = Backbone(body, normalisation)
        self.projection = nn.Sequential(
            nn.Linear(feature_size, feature_size), nn.ReLU(), nn.Linear(feature_size, dim)
        )  # CoCLR writes them as 1x1x1 convolutions of the pooled features

    def forward(self, clips: Tensor) -> Tensor:
        """(B, C, T, H, W) to embeddings (B, dim), not normalised."""
        found: Tensor = self.projection(self.backbone(clips))
        return found


def build_s3d(argument: str, *, num_classes: int | None = None) -> Network:
    """S3D without gating (Xie et al., arXiv 1712.04851), 1,024 features, 8 M parameters."""
    return _build("s3d", argument)


def build_r3d(argument: str, *, num_classes: int | None = None) -> Network:
    """R3D-18 (Tran et al., arXiv 1711.11248), 512 features, 33 M parameters."""
    return _build("r3d_18", argument)


def build_r2plus1d(argument: str, *, num_classes: int | None = None) -> Network:
    """R(2+1)D-18 (Tran et al., arXiv 1711.11248), 512 features, 31 M parameters."""
    return _build("r2plus1d_18", argument)


def build_mc3(argument: str, *, num_classes: int | None = None) -> Network:
    """MC3-18 (Tran et al., arXiv 1711.11248), 512 features, 11 M parameters."""
    return _build("mc3_18", argument)


def build_tiny3d(argument: str, *, num_classes: int | None = None) -> Network:
    """Three convolutions for clips of about 20 px, 48 features, 0.05 M parameters."""
    return _build("tiny3d", argument)


def with_channels(name: str, channels: int) -> str:
    """The name of the same encoder for clips with another number of channels.

    Raises:
        UsageError: not the name of a video encoder.
    """
    family, _, argument = name.partition(":")
    if family not in _FAMILIES:
        raise UsageError(f"--model {name} is no video encoder", f"Give one of {', '.join(_FAMILIES)}")
    return replace(_parse(family, argument), channels=channels).name


def check_clip(network: Network, frames: int, height: int, width: int) -> None:
    """Refuse clips of which nothing would be left before pooling.

    Raises:
        UsageError: too few frames or pixels.
    """
    fewest, shortest = _FAMILIES[network.name.partition(":")[0]].smallest
    if frames < fewest or min(height, width) < shortest:
        raise UsageError(
            f"clips of {frames} frames of {height}x{width} px are too small for {network.name}",
            f"It needs {fewest} frames of {shortest}x{shortest} px or more: give longer or larger clips, or tiny3d",
        )


def _build(family: str, argument: str) -> Network:
    spec = _parse(family, argument)
    kind = _FAMILIES[family]
    body = kind.body(
        partial(nn.BatchNorm3d, eps=_TF_EPS, momentum=_TF_MOMENTUM) if spec.torchvision else nn.BatchNorm3d
    )
    if spec.channels != 3:
        _set_channels(body, kind.stem, spec.channels)
    module = VideoEncoder(body, kind.feature_size, spec.dim, spec.normalisation)
    mean, std = spec.normalisation or STATISTICS["none"]
    preprocess = Preprocess(size=(kind.size, kind.size), mean=mean, std=std, interpolation="bicubic")
    return Network(spec.name, "video", module, preprocess, adapt=_adapt)


def _parse(family: str, argument: str) -> _Spec:
    syntax = f"Write {family}[:channels=N][,dim=D], e.g. {family}:channels=2"
    given = [word.partition("=")[::2] for word in argument.split(",")] if argument else []
    words = dict(given)
    numbers = {key: words.pop(key) for key in ("channels", "dim") if key in words}
    source = words.pop("from", "")
    if (
        words
        or source not in ("", "torchvision")
        or (source and family == "tiny3d")
        or len(given) != len(numbers) + bool(source)
        or not all(value.isdecimal() and int(value) for value in numbers.values())
    ):
        raise UsageError(f"{family}:{argument} cannot be read", syntax)
    dim = int(numbers.get("dim", _FAMILIES[family].dim))
    return _Spec(family, int(numbers.get("channels", 3)), dim, bool(source))


def _set_channels(body: nn.Sequential, stem: str, channels: int) -> None:
    """Replace the first convolution by one for other clips, drawn like it."""
    parent, _, name = stem.rpartition(".")
    old: Any = body.get_submodule(stem)
    new = nn.Conv3d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    if stem.startswith("stem"):  # as torchvision initialises its ResNets
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.normal_(new.weight, std=_INIT_STD)
    body.get_submodule(parent).add_module(name, new)


_INIT_STD = 0.01  # of convolutions, in CoCLR's S3D


def _s3d(norm_layer: Callable[..., nn.Module]) -> nn.Sequential:
    """All of torchvision's S3D before its average pool, which is for 224 px only.

    Its default batch norm (momentum 1e-3) averages over some thousand steps: too slow for training from scratch.
    """
    body: nn.Sequential = s3d(norm_layer=norm_layer).features
    for part in body.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.normal_(part.weight, std=_INIT_STD)
    return body


def _resnet(make: Callable[[], nn.Module], norm_layer: Callable[..., nn.Module]) -> nn.Sequential:
    network = make()
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(OrderedDict((name, network.get_submodule(name)) for name in names))


def _tiny3d(norm_layer: Callable[..., nn.Module]) -> nn.Sequential:
    widths, strides = (3, 12, 24, 48), ((1, 2, 2), (2, 2, 2), (1, 2, 2))
    layers: list[nn.Module] = []
    for inputs, outputs, stride in zip(widths[:-1], widths[1:], strides, strict=True):
        layers += [nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False), norm_layer(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


_FAMILIES: Mapping[str, _Family] = {
    "s3d": _Family(_s3d, "0.0.0", 1024, smallest=(5, 17)),
    "r3d_18": _Family(partial(_resnet, r3d_18), "stem.0", 512),
    "r2plus1d_18": _Family(partial(_resnet, r2plus1d_18), "stem.0", 512),
    "mc3_18": _Family(partial(_resnet, mc3_18), "stem.0", 512),
    "tiny3d": _Family(_tiny3d, "0", 48, dim=32, size=20, plain=True),
}


def _adapt(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of CoCLR's and CPR's files (S3D), and of torchvision's; where there is no projection, the random one.

    Raises:
        ModelError: a file of CoCLR for another encoder.
    """
    if of_coclr(state):
        if not network.name.startswith("s3d"):
            raise ModelError(f"these are weights of CoCLR's S3D, not of {network.name}", "Give --model s3d")
        state = renamed(state)
        network.notes.append("names of CoCLR's S3D are taken as those of s3d")
    elif not any(key.startswith(_BODY) for key in state):
        state = _of_torchvision(network, state)
    own: Mapping[str, Tensor] = network.module.state_dict()
    projection = {key: own[key] for key in own if key.startswith(_PROJECTION)}
    if any(key in state for key in projection):
        return state
    network.notes.append(RANDOM_PROJECTION)
    return state | projection


def _of_torchvision(network: Network, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's body, with the normalisation that the released ones were trained with."""
    if any(key.startswith(_CLASSIFIERS) for key in state):
        _as_torchvision(network)
    kept = {key: value for key, value in state.items() if not key.startswith(_CLASSIFIERS)}
    return {f"{_BODY}{key.removeprefix('features.')}": value for key, value in kept.items()}


def _as_torchvision(network: Network) -> None:
    family, _, argument = network.name.partition(":")
    spec = replace(_parse(family, argument), torchvision=family != "tiny3d")
    if family == "s3d":
        for part in network.module.modules():
            if isinstance(part, nn.BatchNorm3d):
                part.eps, part.momentum = _TF_EPS, _TF_MOMENTUM
    network.name = spec.name
    network.module.backbone.normalise(spec.normalisation)
    mean, std = spec.normalisation or STATISTICS["none"]
    network.preprocess = replace(network.preprocess, mean=mean, std=std)
    network.notes.append(f"weights of a classifier of torchvision: taken as {network.name}")
