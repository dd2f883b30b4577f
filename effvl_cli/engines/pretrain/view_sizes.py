"""Sides of the views under a size policy."""

from dataclasses import dataclass

from effvl_cli.config.pretrain import PretrainConfig, SearchConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.techniques.pretrain.schedule import Schedule, near_divisors, snapped_size
from effvl_cli.techniques.pretrain.vit import ViTShape


@dataclass(frozen=True)
class Sizes:
    """Sides of the views under a size policy."""

    image_size: int
    local_size: int
    policy: str

    @classmethod
    def of(cls, config: PretrainConfig | SearchConfig, shape: ViTShape) -> "Sizes":
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
