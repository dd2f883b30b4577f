"""What training, search and evaluation of the invariance methods share: network, method, schedule, clock."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effvl_cli.config.pretrain import INVARIANCE, PretrainConfig, SearchConfig
from effvl_cli.config.resolve import read_yaml
from effvl_cli.core import distributed, seeds
from effvl_cli.core.errors import UsageError
from effvl_cli.models import network as networks
from effvl_cli.models import vit
from effvl_cli.techniques.pretrain.cost import forward_macs, units_per_sample
from effvl_cli.techniques.pretrain.dino import DINO
from effvl_cli.techniques.pretrain.method import Method
from effvl_cli.techniques.pretrain.mocov3 import MoCoV3
from effvl_cli.techniques.pretrain.schedule import (
    Compression,
    Schedule,
    Stage,
    near_divisors,
    schedule_from,
    snapped_size,
)
from effvl_cli.techniques.pretrain.simclr import SimCLR
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape

DEFAULT_MODEL = "vit:nano/4@24,mean"
DEFAULT_BUDGET = 120_000.0  # units on the embedded data: about half a minute an arm on two cores
MANY_IMAGES = 100_000  # from which DINO's head gets its full width
PROTOTYPES = {True: 65536, False: 4096}

_WRITTEN = re.compile(r"(constant|[0-9.]+):")
_WORDS = {"patch": "patch", "keep": "keep_q", "keep-k": "keep_k"}

Config = PretrainConfig | SearchConfig


# --- network and method ----------------------------------------------------------------------------------------------


def build_network(
    config: Config, *, seed: int | None = None, log: Callable[[str], None] | None = None
) -> networks.Network:
    """The backbone that is trained; `log` takes what was done to foreign weights.

    Raises:
        UsageError: no Vision Transformer.
    """
    seed = config.seed if seed is None else seed
    name = config.model
    if config.image_size:
        name = vit.with_image_size(name or DEFAULT_MODEL, config.image_size)
    network = networks.load(
        name,
        config.weights or "none",
        default=DEFAULT_MODEL,
        kind="backbone",
        seed=seed,
        download=config.download,
        options=config,
        log=log,
    )
    if not isinstance(network.module, VisionTransformer):
        raise UsageError(f"--method {config.method} compresses Vision Transformers, not {name}", "Give --model vit:..")
    if config.method == "mocov3" and network.source == "random":
        with seeds.global_stream(seed, "init", "moco"):
            network.module.init_weights("moco")
    network.module.patch_embed.resize = config.patch_resize
    return network


def build_method(config: Config, backbone: VisionTransformer, num_images: int) -> Method:
    """Networks and loss of the method; its heads are drawn from (seed, "heads")."""
    frozen = config.method == "mocov3" if config.stop_grad_patch_embed is None else config.stop_grad_patch_embed
    if frozen:
        backbone.patch_embed.requires_grad_(False)
    width = backbone.shape.width
    hidden, out = config.head_hidden or 4 * width, config.head_out or width
    with seeds.global_stream(config.seed, "heads"):
        if config.method == "simclr":
            return SimCLR(
                backbone, hidden=hidden, out=out, layers=config.head_layers or 2, temperature=config.temperature or 0.2
            )
        if config.method == "mocov3":
            return MoCoV3(
                backbone,
                hidden=hidden,
                out=out,
                layers=config.head_layers or 3,
                temperature=config.temperature or 0.2,
                momentum=config.ema or 0.99,
                symmetric=config.symmetric_loss,
                loss_scale=config.moco_loss_scale,
            )
        return DINO(
            backbone,
            hidden=hidden,
            bottleneck=out,
            prototypes=config.prototypes or PROTOTYPES[num_images >= MANY_IMAGES],
            momentum=config.ema or 0.996,
            student_temperature=config.temperature or 0.1,
            teacher_temperature=config.teacher_temperature,
            teacher_warmup=config.teacher_warmup,
            freeze_last=config.freeze_last,
            local_crops=config.local_crops,
        )


# --- view sizes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Sides of the views under a size policy."""

    image_size: int
    local_size: int
    policy: str

    @classmethod
    def of(cls, config: Config, shape: ViTShape) -> "Sizes":
        """As configured; local crops are whole base patches."""
        local = shape.patch * max(1, round(config.local_size * shape.image_size / shape.patch))
        return cls(shape.image_size, local, config.size_policy)

    def view(self, patch: int) -> int:
        """Side of a global view for a patch size."""
        return snapped_size(self.image_size, patch) if self.policy == "snap" else self.image_size

    def local(self, patch: int) -> int:
        """Side of a local view; always whole patches."""
        return snapped_size(self.local_size, patch)

    def allows(self, patch: int) -> bool:
        """Whether a patch size may be used."""
        return self.policy == "snap" or self.image_size % patch == 0

    def check(self, schedule: Schedule) -> None:
        """Every patch fits.

        Raises:
            UsageError: names the stage and the divisors near the request.
        """
        for index, stage in enumerate(schedule.stages):
            patch = stage.compression.patch
            if not self.allows(patch):
                near = ", ".join(map(str, near_divisors(self.image_size, patch)))
                raise UsageError(
                    f"stage {index}: patch {patch} divides no view of {self.image_size} px",
                    f"Near it divide {near}; or give --size-policy snap, or another --image-size",
                )


# --- schedule --------------------------------------------------------------------------------------------------------


def key_keep(method: str, keep: float) -> float:
    """Keep rate of the key view: SimCLR's has gradient and is compressed too; a teacher's is whole."""
    return keep if method == "simclr" else 1.0


def default_schedule(method: str, shape: ViTShape) -> Schedule:
    """A quarter of the patches until t = 0.8, then all of them: it fits every ViT."""
    early = Compression(shape.patch, 0.25, key_keep(method, 0.25))
    return Schedule((Stage(0.8, early), Stage(1.0, Compression(shape.patch))))


def build_schedule(config: PretrainConfig, shape: ViTShape) -> tuple[Schedule, str]:
    """The schedule that the options ask for, and where it is from.

    Raises:
        UsageError: a schedule that cannot be read, or whose patches do not fit.
    """
    if config.keep is not None or config.patch is not None:
        keep = config.keep or 1.0
        return Schedule.constant(
            Compression(config.patch or shape.patch, keep, key_keep(config.method, keep))
        ), "options"
    if config.schedule is None:
        return default_schedule(config.method, shape), "default"
    return parse_schedule(config.schedule, config.method, shape), config.schedule


def parse_schedule(text: str, method: str, shape: ViTShape) -> Schedule:
    """`none`, `constant:patch=P,keep=R`, stages such as `0.3:patch=8,keep=0.5;1:keep=1`, or a YAML file.

    Raises:
        UsageError: it cannot be read.
    """
    if text == "none":
        return Schedule.constant(Compression(shape.patch))
    written = _WRITTEN.match(text)
    if not written and not Path(text).is_file():
        raise UsageError(f"--schedule {text}: no such file", "Give none, constant:patch=P,keep=R or a YAML file")
    try:
        data = {"stages": _stages(text, shape)} if written else read_yaml(Path(text))
        return schedule_from(data, default_keep_k=None if method == "simclr" else 1.0)
    except ValueError as error:
        raise UsageError(f"--schedule {text}: {error}") from error


def _stages(text: str, shape: ViTShape) -> list[dict[str, Any]]:
    """Rows of a schedule written on the command line; a stage without a patch has the base one."""
    rows = []
    for index, part in enumerate(text.split(";")):
        until, _, words = part.partition(":")
        row: dict[str, Any] = {"until": "1" if until == "constant" else until, "patch": shape.patch}
        for word in filter(None, words.split(",")):
            key, _, value = word.partition("=")
            if key not in _WORDS or not value:
                raise ValueError(f"stage {index}: cannot read {word!r}; write e.g. patch=8,keep=0.5,keep-k=1")
            row[_WORDS[key]] = value
        rows.append(row)
    return rows


# --- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of a method on a backbone, in units of its uncompressed forward pass."""

    shape: ViTShape
    method: Method
    sizes: Sizes

    @property
    def unit_macs(self) -> int:
        """Multiply-adds of a unit."""
        return forward_macs(self.shape)

    def forward(self, compression: Compression, keep: float, *, local: bool = False) -> float:
        """Units of one forward pass of a view."""
        patch = compression.patch
        side = self.sizes.local(patch) if local else self.sizes.view(patch)
        return forward_macs(self.shape, patch=patch, keep=keep, image_size=side) / self.unit_macs

    def sample(self, compression: Compression) -> float:
        """Units that an image costs in a step."""
        return units_per_sample(
            self.method.passes,
            self.forward(compression, compression.keep_q),
            self.forward(compression, compression.keep_k),
            self.forward(compression, compression.keep_q, local=True) if self.method.passes.local else 0.0,
        )

    @property
    def full(self) -> float:
        """Units that an image costs uncompressed."""
        return self.sample(Compression(self.shape.patch))


def budget_of(config: PretrainConfig, costs: Costs, num_images: int) -> float:
    """Units to spend: --budget, what --epochs cost uncompressed, or the default of the embedded data."""
    if config.units is not None:
        return config.units
    if config.epochs is not None:
        return config.epochs * num_images * costs.full
    return DEFAULT_BUDGET


def check_batch(config: Config) -> None:
    """Every process gets as many images, and at least two.

    Raises:
        UsageError: it does not.
    """
    size = distributed.world().size
    if config.batch_size % size or config.batch_size < 2 * size:
        better = 2 * size if config.batch_size < 2 * size else size * math.ceil(config.batch_size / size)
        raise UsageError(
            f"--batch-size {config.batch_size} gives {size} processes no equal share of at least 2 images",
            f"Give --batch-size {better}",
        )
    if config.accumulate > 1:
        raise UsageError(f"--accumulate is {config.accumulate}", f"Leave it out: {', '.join(INVARIANCE)} need it whole")


def memory_estimate(config: Config, costs: Costs, compression: Compression) -> int:
    """Rough peak bytes of a step on one process: weights, gradients, optimizer, and activations of 34 L D a block."""
    parameters = sum(p.numel() for p in costs.method.parameters())
    shape, share = costs.shape, config.batch_size / distributed.world().size
    passes = costs.method.passes
    tokens = (costs.sizes.view(compression.patch) // compression.patch) ** 2 * compression.keep_q + 1
    width = 2 if config.precision != "fp32" else 4
    activations = share * (passes.query + passes.key * passes.key_gradient) * shape.depth * tokens * shape.width * 17
    return int(4 * 4 * parameters + width * activations)
