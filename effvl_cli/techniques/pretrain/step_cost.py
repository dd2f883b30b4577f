"""Cost of an image in a step of a method, in units of one uncompressed forward pass (arXiv 2410.22364, fig. 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cost import forward_macs, units_per_sample
from .method import Method
from .schedule import ClockStage, Compression
from .tokens import sequence_length
from .view_sizes import Sizes
from .vit import ViTShape


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

    def stage(self, stage: ClockStage, batch_size: int) -> dict[str, Any]:
        """Lengths of the sequences (with CLS) and costs of a stage, as in the report."""
        c = stage.compression
        num_patches = (self.sizes.view(c.patch) // c.patch) ** 2
        return {
            "patch": c.patch,
            "keep_q": c.keep_q,
            "keep_k": c.keep_k,
            "tokens_q": sequence_length(num_patches, c.keep_q),
            "tokens_k": sequence_length(num_patches, c.keep_k),
            "units_per_sample": self.sample(c),
            "steps": stage.steps,
            "samples": stage.steps * batch_size,
        }

    def totals(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Cost and time of all stages; time is that of the stages that were timed.

        Args:
            rows: of `stage`, with `wall_s`, `cpu_s` and `images_per_s`.
        """
        samples = sum(row["samples"] for row in rows)
        units = sum(row["samples"] * row["units_per_sample"] for row in rows)
        timed = [row for row in rows if row["wall_s"]]
        seconds = sum(row["wall_s"] for row in timed)
        seen = sum(row["images_per_s"] * row["wall_s"] for row in timed)
        macs = self.unit_macs
        return {
            "macs_total": units * macs,
            "flops_total": 2 * units * macs,
            "baseline_flops_same_samples": 2 * samples * self.full * macs,
            "flop_ratio": samples * self.full / units,
            "wall_s": seconds,
            "cpu_s": sum(row["cpu_s"] for row in timed),
            "images_per_s": seen / seconds if seconds else None,
        }
