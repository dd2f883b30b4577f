"""What a training costs: units of one uncompressed forward pass, the budget in them, and memory."""

from dataclasses import dataclass

from effvl_cli.config.pretrain import PretrainConfig
from effvl_cli.engines.pretrain.view_sizes import Sizes
from effvl_cli.techniques.pretrain.cost import forward_macs, units_per_sample
from effvl_cli.techniques.pretrain.method import Method
from effvl_cli.techniques.pretrain.schedule import Compression
from effvl_cli.techniques.pretrain.vit import ViTShape

DEFAULT_BUDGET = 120_000.0  # units on the embedded data: about half a minute an arm on two cores


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
