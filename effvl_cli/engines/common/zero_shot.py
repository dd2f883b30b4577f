"""Zero-shot classification and retrieval with a CLIP."""

import torch
from torch import Tensor

from effvl_cli.core.loop import autocast
from effvl_cli.core.modes import as_found
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.inference import over_images
from effvl_cli.models.network import Network, zero_shot_classifier


def image_embeddings(network: Network, images: Decoded, run: Run, precision: str) -> Tensor:
    """Unit embeddings (M, E) of images."""
    encode = network.module.encode_image
    with as_found(network.module, training=False):
        return over_images(lambda x, _: encode(x, normalize=True), images, run, batch_size=256, precision=precision)


def zero_shot_logits(
    network: Network,
    images: Decoded,
    classes: tuple[str, ...],
    templates: tuple[str, ...],
    run: Run,
    precision: str,
) -> Tensor:
    """Cosines (M, C) of images with class names."""
    with as_found(network.module, training=False), autocast(run.device, precision):
        classifier = zero_shot_classifier(network, classes, templates, run.device, run.warn)
    return image_embeddings(network, images, run, precision) @ classifier.cpu()


def image_to_text_recall(network: Network, images: Decoded, run: Run, precision: str) -> Tensor:
    """(M,) 0/1: whether the text nearest to each image is its own, or has the same words."""
    embeddings = image_embeddings(network, images, run, precision)
    tokens = network.tokenize(images.captions)
    with as_found(network.module, training=False), torch.no_grad(), autocast(run.device, precision):
        parts = [network.module.encode_text(part.to(run.device), normalize=True).cpu() for part in tokens.split(256)]
    nearest = (embeddings @ torch.cat(parts).float().T).argmax(1)
    return (tokens[nearest] == tokens).all(1).float()
