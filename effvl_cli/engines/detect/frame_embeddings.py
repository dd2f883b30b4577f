"""Images as a network sees them, to tell near-duplicates by."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from effvl_cli.config.detect_dedup import DedupOptions
from effvl_cli.core.errors import ModelError
from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.common.batches import LoaderOptions
from effvl_cli.engines.detect.frame_rows import FrameRows
from effvl_cli.models import network as networks
from effvl_cli.models.network import Network

FORMAT = 1
DEFAULT = "tiny:clip"
KINDS = ("clip", "backbone", "classifier")


def frame_embeddings(
    source: BoxSource, indices: Sequence[int], options: DedupOptions, loading: LoaderOptions, run: Run
) -> Tensor:
    """(N, D) float32 features of some images, of mean square 1: half the mean squared difference is 1 - cosine.

    Those of a classifier are what its last linear layer gets. Images that cannot be read have zeros.

    Args:
        source: images.
        indices: (N,) positions.
        options: which network.
        loading: loader processes, and what an unreadable image does.
        run: device, cache, progress.

    Raises:
        ModelError: a network that gives no features of an image.
    """
    network = _network(options, run)
    encode = _encoder(network)

    def features(pixels: Sequence[Tensor]) -> Tensor:
        with torch.inference_mode():
            found = encode(network.preprocess.normalise(torch.stack(list(pixels)).to(run.device))).float()
        return functional.normalize(found, dim=1) * math.sqrt(found.shape[1])

    width = features([torch.zeros(3, *network.preprocess.size, dtype=torch.uint8)]).shape[1]
    key = {"format": FORMAT, "model": network.name, "weights": network.weights_sha256}
    key["preprocess"] = network.preprocess.to_dict()
    rows: FrameRows[Tensor] = FrameRows(
        "frame-embeddings",
        key,
        {"features": (width, torch.float32)},
        network.preprocess.to_uint8,
        lambda pixels: [features(pixels)],
    )
    return rows.of(source, indices, loading, run)["features"]


def _network(options: DedupOptions, run: Run) -> Network:
    name = options.embed_model or networks.manifest_of(options.embed_weights).get("model") or DEFAULT
    kind = networks.build(name, seed=0).kind
    if kind not in KINDS:
        raise ModelError(
            f"--embed-model {name} is a {kind}, which gives no features of an image", "See `effvl list models`"
        )
    network = networks.load(name, options.embed_weights, default=DEFAULT, kind=kind, log=run.log)
    network.module.to(run.device).eval()
    return network


def _encoder(network: Network) -> Callable[[Tensor], Tensor]:
    """From normalised images (B, 3, H, W) to features (B, D)."""
    module: Any = network.image_module
    if network.kind != "classifier":
        return lambda images: module(images)
    heads = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not heads:
        raise ModelError(
            f"--embed-model {network.name} has no linear layer whose input were its features", "Give another"
        )
    seen: list[Tensor] = []
    heads[-1].register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))

    def encode(images: Tensor) -> Tensor:
        seen.clear()
        module(images)
        return seen[-1].flatten(1)

    return encode
