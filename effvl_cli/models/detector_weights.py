"""Weights of detectors that do not come from a detector of ours: whole ones of torchvision, or backbones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.models import ResNet18_Weights

from effvl_cli.config.options import ModelOptions
from effvl_cli.core import checkpoint
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.models import network as networks
from effvl_cli.models.detector_spec import FAMILY, DetectorSpec, Norm
from effvl_cli.models.foreign import COUNTER
from effvl_cli.models.hub import reached
from effvl_cli.models.network import Network

_BODY, _PREDICTORS = "backbone.body.", "roi_heads.box_predictors."
_CLASSIFIER = "fc."
_TORCHVISION = {"roi_heads.box_head.": "roi_heads.box_heads.{k}.", "roi_heads.box_predictor.": _PREDICTORS + "{k}."}
_BATCH = 4  # images of a device from which batch statistics are worth something
_PRETRAINED_LAYERS = 3  # that are trained of a pretrained backbone, as in torchvision


def with_norm(spec: DetectorSpec, norm: Literal["auto"] | Norm, weights: str | None, batch_size: int) -> DetectorSpec:
    """The spec with the norm that suits its start weights.

    Args:
        spec: whose norm is replaced.
        norm: auto: frozen where the backbone is pretrained, that of the checkpoint where a detector continues, else
            batch, or group for small batches.
        weights: as --weights; None and "none" are random ones.
        batch_size: images of a device.

    Raises:
        UsageError: frozen batch norm with random weights, which would be no normalisation at all.
    """
    pretrained = weights not in (None, "none")
    if norm == "frozen" and not pretrained:
        raise UsageError(
            "--norm frozen with random weights normalises nothing", "Give --norm auto, batch or group, or --weights"
        )
    if norm == "auto":
        earlier = networks.manifest_of(weights).get("model", "") if pretrained else ""
        family, _, argument = earlier.partition(":")
        if family == FAMILY:
            before = DetectorSpec.parse(argument)
            return replace(spec, norm=before.norm, trainable_layers=before.trainable_layers)
        norm = "frozen" if pretrained else "batch" if batch_size >= _BATCH else "group"
    return replace(spec, norm=norm, trainable_layers=_PRETRAINED_LAYERS if norm == "frozen" else 5)


def start(
    spec: DetectorSpec,
    weights: str | None,
    *,
    num_classes: int,
    seed: int,
    options: ModelOptions,
    log: Callable[[str], None] | None = None,
) -> Network:
    """A detector to be trained.

    Args:
        spec: what it is made of; its norm must suit the weights, see `with_norm`.
        weights: None or none; imagenet; a file of a ResNet, of torchvision's Faster R-CNN or of a detector; the run of
            a detector, or of a classifier whose network is the backbone. Predictors of other classes stay random.
        num_classes: C.
        seed: of the random weights.
        options: whether a tag may reach the network, and which network of a file.
        log: receives what was changed.

    Raises:
        ModelError: the weights do not fit.
    """
    manifest = networks.manifest_of(weights)
    if not manifest:
        return networks.load(
            spec.name,
            weights or "none",
            default=spec.name,
            kind="detector",
            seed=seed,
            num_classes=num_classes,
            options=options,
            log=log,
        )
    path = Path(str(weights))
    state, _ = checkpoint.load_model(path / checkpoint.CHECKPOINT if path.is_dir() else path)
    network = networks.build(spec.name, seed=seed, num_classes=num_classes)
    state = adapt(network, state)
    own: dict[str, Tensor] = network.module.state_dict()
    checkpoint.check_keys(
        own,
        state,
        what=f"the weights {weights} of {manifest['model']} and {network.name}",
        hint=_fitting(manifest["model"]),
    )
    network.module.load_state_dict(state)
    network.source = str(weights)
    network.weights_sha256 = checkpoint.digest(network.module.state_dict())
    for note in network.notes:
        if log is not None:
            log(f"--weights {weights}: {note}")
    return network


def _fitting(model: str) -> str:
    """What to do with weights of another shape."""
    if model.partition(":")[0] == FAMILY:
        return "Give the --preset, --num-stages, --head-width and --class-agnostic of that run"
    return "Give a classifier with the backbone of --preset"


def adapt(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict for a detector from that of a detector with other classes, of torchvision's, or of a ResNet.

    Raises:
        ModelError: neither.
    """
    own: dict[str, Tensor] = network.module.state_dict()
    if any(key.startswith(tuple(_TORCHVISION)) for key in state):
        state = _of_torchvision(network, state)
    elif not any(key.startswith("backbone.") for key in state):
        state = _of_backbone(network, state, own)
    state = {key: value for key, value in state.items() if key in own or not key.endswith(COUNTER)}
    buffers = {key: own[key] for key in ("roi_heads.parents", "roi_heads.conditions")}
    return _with_predictors(network, state | buffers, own)


def _of_torchvision(network: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Faster R-CNN's: every stage starts as its head."""
    stages = range(network.module.roi_heads.num_stages)
    found = {}
    for key, value in state.items():
        pattern = next((old for old in _TORCHVISION if key.startswith(old)), None)
        if pattern is None:
            found[key] = value
        for k in stages if pattern else ():
            found[_TORCHVISION[str(pattern)].format(k=k) + key.removeprefix(str(pattern))] = value.clone()
    network.notes.append(f"weights of torchvision's Faster R-CNN: {len(stages)} stages start as copies of its head")
    return found


def _of_backbone(network: Network, state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's: the rest stays random."""
    body = {f"{_BODY}{key}": value for key, value in state.items() if not key.startswith(_CLASSIFIER)}
    if not body.keys() & own.keys():
        raise ModelError(
            f"these weights are neither a detector's nor a ResNet's: {', '.join(list(state)[:3])}",
            "Give a run of detect, a file of torchvision, or the run of a classifier with the backbone of --preset",
        )
    network.notes.append("weights of a classifier: the backbone is pretrained, all else is random")
    return body | {key: value for key, value in own.items() if not key.startswith(_BODY)}


def _with_predictors(network: Network, state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with predictors of other classes replaced by the network's random ones."""
    random = [key for key in own if key.startswith(_PREDICTORS) and key in state and state[key].shape != own[key].shape]
    if random:
        network.notes.append(f"of other classes, so random: {', '.join(random)}")
    return state | {key: own[key] for key in random}


def fetch(spec: DetectorSpec, tag: str, download: bool) -> Path:
    """File of ImageNet weights of the backbone: from torch's cache, or over the network if that is allowed.

    Raises:
        ModelError: another tag, a backbone without such weights, or neither cached nor allowed to be downloaded.
    """
    if tag != "imagenet":
        raise ModelError(f"no weights at --weights {tag}", "Give imagenet, none, a run folder or a file")
    if spec.preset == "tiny":
        raise ModelError("there are no imagenet weights of the tiny backbone", "Give --preset light, or --weights none")
    url: str = ResNet18_Weights.IMAGENET1K_V1.url
    path = Path(str(torch.hub.get_dir())) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    if not download:
        raise ModelError("--weights imagenet is not in the local cache", "Give --download, or --weights FILE")
    try:
        with reached(url):
            torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # any network failure is one line for the user
        raise ModelError(
            f"--weights imagenet cannot be downloaded: {str(error).splitlines()[0]}", f"Give --weights FILE: {url}"
        ) from error
    return path
