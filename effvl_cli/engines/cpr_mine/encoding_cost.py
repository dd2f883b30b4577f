"""Cost of encoding and training, for `--dry-run`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from effvl_cli.config.cpr_mine_eval import EvalConfig
from effvl_cli.core.errors import DataError
from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.data.clips import ClipSource
from effvl_cli.engines.common.cost_table import Part, cost_table, part, speed_of
from effvl_cli.engines.cpr_mine.view_encoders import Config, ViewEncoder, shared_geometry
from effvl_cli.engines.cpr_mine.window_stream import Failures, windows_of

SAMPLED = 20  # videos whose windows are counted


def cost_of(
    config: Config,
    run: Run,
    encoders: Sequence[ViewEncoder],
    sources: Sequence[ClipSource],
    trained: Sequence[tuple[str, int, float]] = (),
) -> Table:
    """Time of the windows of some splits through all encoders, and of trainings.

    Args:
        config: options.
        run: device.
        encoders: of all views.
        sources: splits.
        trained: name of a training, clips in all, and its multiply-adds over those of a forward pass.
    """
    counts = [_windows(config, encoders, source) for source in sources]
    parts: list[Part] = []
    memory = 0
    for encoder in encoders:
        macs, speed, used = _speed(encoder, config, run)
        memory = max(memory, used)
        for source, count in zip(sources, counts, strict=True):
            name = f"{encoder.view} of {source.name} {source.split}"
            parts.append(part(name, f"about {count:,} windows of {encoder.clips.frames} frames", count * macs, speed))
        for name, clips, factor in trained:
            parts.append(part(f"{name}, {encoder.view}", f"{clips:,} clips", factor * clips * macs, speed))
    return cost_table("what the encoders cost", parts, run.device, memory=memory, notes=())


def _windows(config: Config, encoders: Sequence[ViewEncoder], source: ClipSource) -> int:
    """Windows of a split, from those of its first videos."""
    few = min(SAMPLED, len(source))
    failures, count = Failures("skip", 100 * len(source) + 100), 0
    try:
        found = windows_of(
            _First(source, few),
            shared_geometry(encoders),
            failures,
            center=config.windows == "center",
            step=config.window_step,
        )
        count = len(found)
    except DataError:
        count = few
    return round(count * len(source) / max(1, few))


class _First:
    """The first videos of a source, as far as their lengths go."""

    def __init__(self, source: ClipSource, count: int) -> None:
        self.source, self.count = source, count

    def __len__(self) -> int:
        return self.count

    def num_frames(self, index: int) -> int:
        """Frames of a video."""
        return int(self.source.num_frames(index))


def _speed(encoder: ViewEncoder, config: Config, run: Run) -> tuple[float, float, int]:
    """Multiply-adds of a clip, multiply-adds a second, and bytes of weights and inputs."""
    module: nn.Module = encoder.network.module
    clips, channels = encoder.clips, encoder.make.channels

    def noise(count: int) -> Tensor:
        return torch.rand(count, channels, clips.frames, clips.size, clips.size, device=run.device)

    macs = float(count_macs(module, noise(1)))
    batch = noise(min(config.eval_batch_size, 4))
    speed = speed_of(module, module, batch, macs, config.precision)
    bytes_used = 4 * count_parameters(module) + 40 * batch[0].numel() * config.eval_batch_size
    return macs, speed, bytes_used


def trainings(config: EvalConfig, num_train: int) -> list[tuple[str, int, float]]:
    """Trainings on clips that the protocols ask for: name, clips in all, and multiply-adds over a forward pass."""
    found = []
    if "linear-video" in config.protocols:
        found.append(("linear-video", config.linear_epochs * num_train, 1.0))
    if "finetune" in config.protocols:
        found.append(("finetune", config.finetune_epochs * num_train, 3.0))
    return found
