"""Image features: each image passes the frozen image tower once, and later runs find them in the cache."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from effvl_cli.config.prompt_tune import FeatureConfig
from effvl_cli.core import distributed
from effvl_cli.core.errors import DataError
from effvl_cli.core.loop import autocast
from effvl_cli.core.modes import as_found
from effvl_cli.core.run import Run
from effvl_cli.data.loader import image_loader, loader_workers
from effvl_cli.data.source import ImageSource, digest
from effvl_cli.data.transforms import augment
from effvl_cli.engines.common.batches import decode
from effvl_cli.engines.inference import over_images
from effvl_cli.models.network import Network

FORMAT = 1  # raised whenever features change, so that older ones are not reused
AUGMENT: Final = "rrc-flip"
MAPPED = 8 << 30  # bytes; larger ones are let go once they are stored, and read where they lie, as later runs do
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Features:
    """Features of N images, as the image tower gives them: not normalised.

    Attributes:
        values: (N, V, D) of V views of each image, in the type in which they are kept.
        indices: (N,) int64 positions in the split.
        labels: (N,) int64, the split's own.
        seconds: that making them took; 0 where they were in the cache.
    """

    values: Tensor
    indices: NDArray[np.int64]
    labels: Tensor
    seconds: float

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def first(self) -> Tensor:
        """(N, D) float32 of the first view."""
        return self.values[:, 0].float()

    def rows_of(self, indices: NDArray[np.int64]) -> Tensor:
        """(n,) rows of images given by their positions in the split, all of which are among these."""
        order = np.argsort(self.indices)
        return torch.from_numpy(order[np.searchsorted(self.indices, indices, sorter=order)])


def features_of(
    network: Network,
    source: ImageSource,
    indices: NDArray[np.int64],
    config: FeatureConfig,
    run: Run,
    *,
    views: int = 0,
    wanted: bool = False,
) -> Features:
    """Features of images of a split, from the cache if they are there.

    Args:
        network: with the image tower.
        source: the split.
        indices: (N,) positions.
        config: options.
        run: cache, device, report.
        views: random crops of each image; 0: its centre.
        wanted: whether all images are needed, whatever --on-bad says.

    Raises:
        DataError: an image that cannot be read, or features that are not finite.
    """
    began = time.monotonic()
    ids = [source.ids[int(index)] for index in indices]
    key = {
        "format": FORMAT,
        "model": network.name,
        "weights": network.weights_sha256,
        "preprocess": network.preprocess.to_dict(),
        "views": views,
        **({"augment": AUGMENT, "seed": config.seed} if views else {}),
        "data": source.name,
        "split": source.split,
        "content": source.fingerprint(),
        "images": digest(ids),
        "type": config.cache_dtype,
        "precision": config.precision,
    }
    entry = run.cache.entry("features", key)
    found = entry.load("features", run.warn)
    if distributed.all_reduce_max(int(found is None)):
        with as_found(network.module, training=False):
            make = _views if views else _centres
            values, kept = make(network, source, indices, config, run, views, "error" if wanted else config.on_bad)
        values = values.to(DTYPES[config.cache_dtype])
        _check(values, source, kept)
        found = {"values": values, "indices": torch.from_numpy(kept)}
        if distributed.is_main():
            entry.save("features", found)
        distributed.barrier()
        if values.nbytes > MAPPED:
            found = entry.load("features", run.warn) or found
        seconds = time.monotonic() - began
    else:
        run.log(f"features of {len(indices)} {source.split} images are in the cache")
        seconds = 0.0
    assert found is not None
    kept = found["indices"].numpy()
    run.report.data(source, num_samples=len(kept), bad_files=len(indices) - len(kept))
    labels = torch.as_tensor(np.asarray(source.labels[kept]))
    return Features(found["values"], kept, labels, seconds)


def encoder(network: Network) -> Callable[[Tensor], Tensor]:
    """From normalised images (B, 3, H, W) to features (B, D), not of unit length."""
    module = network.module

    def encode(images: Tensor) -> Tensor:
        found: Tensor = module.encode_image(images)
        return found

    return encode


Made = tuple[Tensor, NDArray[np.int64]]
"""(N, V, D) float32 and the (N,) positions of the images that were readable."""


def _centres(
    network: Network,
    source: ImageSource,
    indices: NDArray[np.int64],
    config: FeatureConfig,
    run: Run,
    views: int,
    on_bad: str,
) -> Made:
    images = decode(source, network.preprocess, indices, config, run, on_bad=on_bad, noted=False)
    encode = encoder(network)
    values = over_images(
        lambda x, _: encode(x), images, run, batch_size=config.eval_batch_size, precision=config.precision
    )
    return values[:, None], images.indices


def _views(
    network: Network,
    source: ImageSource,
    indices: NDArray[np.int64],
    config: FeatureConfig,
    run: Run,
    views: int,
    on_bad: str,
) -> Made:
    """Every process encodes its share; each image is decoded once for all its crops."""
    mine = distributed.shard(len(indices))
    own = indices[mine.start : mine.stop]
    crop = augment(AUGMENT, network.preprocess)

    def crops(image: Image.Image) -> Tensor:
        return torch.stack([crop(image) for _ in range(views)])

    workers = loader_workers(config.workers, run.device.type)
    loader = image_loader(source, lambda step: crops, seed=config.seed, workers=workers)
    encode, parts, done = encoder(network), [], 0
    chunk = max(1, config.eval_batch_size // views)
    with (
        torch.inference_mode(),
        autocast(run.device, config.precision),
        run.progress("features of random crops", len(own)) as progress,
    ):
        for images, found in loader.once(own if len(own) else indices[:1], chunk=chunk):
            assert images is not None  # an unreadable one has raised
            pixels = network.preprocess.normalise(images.flatten(0, 1).to(run.device))
            parts.append(encode(pixels).float().cpu().unflatten(0, (len(found), views)))
            done += len(found)
            progress.update(done)
    return distributed.gather_rows(torch.cat(parts)[: len(own)].clone(), len(indices)), indices


def _check(values: Tensor, source: ImageSource, indices: NDArray[np.int64]) -> None:
    bad = (~torch.isfinite(values).flatten(1).all(1)).nonzero().flatten()
    if len(bad):
        names = ", ".join(str(source.ids[int(indices[row])]) for row in bad[:3])
        raise DataError(f"features of {len(bad)} images are not finite: {names}", "The weights or images hold NaN")
