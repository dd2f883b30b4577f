"""The networks that a method trains, as the options and its row in `METHODS` say."""

import importlib
from collections.abc import Callable

import torch

from effvl_cli.config.methods import METHODS, VIEW_METHODS
from effvl_cli.config.pretrain import PretrainConfig, SearchConfig
from effvl_cli.core import seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.data.view_maker import ViewMaker
from effvl_cli.engines.common.batches import check_divides
from effvl_cli.engines.pretrain.costs import sizes_of
from effvl_cli.models import network as networks
from effvl_cli.models import vit
from effvl_cli.techniques.pretrain.method import Method
from effvl_cli.techniques.pretrain.step_cost import Costs
from effvl_cli.techniques.pretrain.vit import VisionTransformer

DEFAULT_MODEL = "vit:nano/4@24,mean"

Config = PretrainConfig | SearchConfig


def build_network(
    config: Config, *, seed: int | None = None, log: Callable[[str], None] | None = None
) -> networks.Network:
    """The backbone to train; `log` gets the changes made to foreign weights.

    Raises:
        UsageError: not a Vision Transformer.
    """
    seed = config.seed if seed is None else seed
    name = config.model
    if config.image_size:
        name = vit.with_image_size(name or DEFAULT_MODEL, config.image_size)
    network = networks.load(
        name, config.weights or "none", default=DEFAULT_MODEL, kind="backbone", seed=seed, options=config, log=log
    )
    if not isinstance(network.module, VisionTransformer):
        raise UsageError(f"--method {config.method} compresses Vision Transformers, not {name}", "Give --model vit:..")
    init = METHODS[config.method].init
    if init and network.source == "random":
        with seeds.global_stream(seed, "init", init):
            network.module.init_weights(init)
    network.module.patch_embed.resize = config.patch_resize
    return network


def build_method(config: Config, backbone: VisionTransformer, num_images: int) -> Method:
    """Networks and loss of the method; its heads are drawn from (seed, "heads")."""
    spec = METHODS[config.method]
    frozen = spec.freezes_patches if config.stop_grad_patch_embed is None else config.stop_grad_patch_embed
    if frozen:
        backbone.patch_embed.requires_grad_(False)
    module, _, name = spec.target.partition(":")
    networks_of: type[Method] = getattr(importlib.import_module(module), name)
    with seeds.global_stream(config.seed, "heads"):
        return networks_of(backbone, **spec.arguments(config, backbone.shape.width, num_images))


def build_parts(
    config: Config, num_images: int, device: torch.device, log: Callable[[str], None] | None = None
) -> tuple[networks.Network, Costs, ViewMaker]:
    """A fresh backbone, its method with the costs, and the views that it is shown, on the device."""
    network = build_network(config, log=log)
    shape = network.module.shape
    method = build_method(config, network.module, num_images).to(device)
    sizes = sizes_of(config, shape)
    return network, Costs(shape, method, sizes), ViewMaker.of(config, sizes, network.preprocess, shape.depth)


def check_batch(config: Config) -> None:
    """Check that every process gets the same number of images, at least two.

    Raises:
        UsageError: it does not.
    """
    check_divides(config.batch_size, "--batch-size", least=2)
    if config.accumulate > 1:
        raise UsageError(
            f"--accumulate is {config.accumulate}", f"Leave it out: {', '.join(VIEW_METHODS)} need the whole batch"
        )
