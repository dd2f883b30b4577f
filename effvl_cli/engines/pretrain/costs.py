"""The budget of a training, and the sides of its views, as the options say."""

from collections.abc import Sequence

from effvl_cli.config.pretrain import PretrainConfig, SearchConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.techniques.pretrain.schedule import Clock, Schedule, near_divisors
from effvl_cli.techniques.pretrain.step_cost import Costs
from effvl_cli.techniques.pretrain.view_sizes import Sizes
from effvl_cli.techniques.pretrain.vit import ViTShape

DEFAULT_BUDGET = 120_000.0  # units on the embedded data: about half a minute an arm on two cores


def sizes_of(config: PretrainConfig | SearchConfig, shape: ViTShape) -> Sizes:
    """As configured; local crops are whole base patches."""
    local = shape.patch * max(1, round(config.local_size * shape.image_size / shape.patch))
    return Sizes(shape.image_size, local, config.size_policy)


def check_patches(sizes: Sizes, schedule: Schedule) -> None:
    """Check that every patch size fits.

    Raises:
        UsageError: one does not; it names the stage and the nearest divisors.
    """
    for index, stage in enumerate(schedule.stages):
        patch = stage.compression.patch
        if not sizes.allows(patch):
            near = ", ".join(map(str, near_divisors(sizes.image_size, patch)))
            raise UsageError(
                f"stage {index}: patch {patch} does not divide views of {sizes.image_size} px",
                f"Nearest divisors: {near}; or give --size-policy snap, or another --image-size",
            )


def clock_of(
    config: PretrainConfig | SearchConfig,
    costs: Costs,
    schedule: Schedule,
    budget: float,
    samples: Sequence[float] | None = None,
) -> Clock:
    """Steps of a schedule; `samples` are the units of an image in each stage, by default its multiply-adds."""
    check_patches(costs.sizes, schedule)
    samples = samples or [costs.sample(stage.compression) for stage in schedule.stages]
    units = [config.batch_size * each for each in samples]
    return Clock(schedule, units, budget if schedule.unit != "steps" else None)


def budget_of(config: PretrainConfig, costs: Costs, num_images: int) -> float:
    """Units to spend: --budget, what --epochs cost uncompressed, or the default of the embedded data."""
    if config.units is not None:
        return config.units
    if config.epochs is not None:
        return config.epochs * num_images * costs.full
    return DEFAULT_BUDGET
