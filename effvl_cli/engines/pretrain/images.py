"""Unlabelled pictures as a stream of training batches: held in memory, or read by loader processes."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from effvl_cli.config.pretrain import EvalConfig, PretrainConfig, SearchConfig
from effvl_cli.core.errors import UsageError
from effvl_cli.core.report import physical_memory
from effvl_cli.core.run import Run
from effvl_cli.data import load
from effvl_cli.data.canvas import canvas_shape, squeezed
from effvl_cli.data.loader import Batch, loader_workers
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import ImageSource, Subset
from effvl_cli.data.transforms import Preprocess
from effvl_cli.data.views import SMALL, WorkerCrops
from effvl_cli.engines.common.batches import Stream, in_memory, loaded

MEMORY_SHARE = 0.25  # of the machine's memory, for the training pictures
CANVAS = 2  # times the view: larger pictures are shrunk before they are held in memory

StepCrops = Callable[[int], WorkerCrops]


def open_split(config: PretrainConfig | SearchConfig | EvalConfig, split: str) -> ImageSource:
    """A split, or the first `--num-images` of an endless one."""
    source = load(config.data, split, root=config.data_root, seed=config.seed)
    return Subset(source, np.arange(config.num_images)) if source.endless else source


@dataclass
class TrainImages:
    """The training pictures.

    Attributes:
        source: the split.
        kept: (M,) positions in the source of the readable ones.
        canvas: (M, 3, H, W) uint8, whole pictures squeezed into one shape, or None: they are read as needed.
        sizes: (M, 2) their original heights and widths.
    """

    source: ImageSource
    kept: Tensor
    canvas: Tensor | None = None
    sizes: Tensor | None = None

    @classmethod
    def open(cls, config: PretrainConfig | SearchConfig, run: Run, preprocess: Preprocess) -> "TrainImages":
        """As `--aug-device` says; `auto` holds small views in memory if they fit.

        Raises:
            UsageError: `--aug-device batch` and too little memory.
        """
        source = open_split(config, "train")
        if not len(source):
            return cls(source, torch.arange(0))
        view = preprocess.size[0]
        shape = canvas_shape(source, CANVAS * view)
        fits = len(source) * 3 * math.prod(shape) <= MEMORY_SHARE * physical_memory()
        if config.aug_device == "batch" and not fits:
            raise UsageError(
                f"{len(source)} pictures of {shape[1]}x{shape[0]} px do not fit in memory",
                "Give --aug-device worker or auto",
            )
        if config.aug_device == "worker" or not fits or (config.aug_device == "auto" and view > SMALL):
            return cls(source, torch.arange(len(source)))
        squeeze = dataclasses.replace(preprocess, size=shape, resize_mode="squash", crop_ratio=1.0)
        return cls(source, *squeezed(source, squeeze, loader_workers(config.workers, run.device.type), config.on_bad))

    def __len__(self) -> int:
        return len(self.kept)

    def batches(
        self, config: PretrainConfig | SearchConfig, run: Run, batch_size: int, crops_at: StepCrops, *, seed: int
    ) -> Stream[Batch]:
        """This process's batches from any step on: of whole pictures, or of `crops_at(step)`."""
        sampler = EpochSampler(len(self), batch_size, seed)
        canvas, sizes = self.canvas, self.sizes
        if canvas is None or sizes is None:
            return loaded(self.source, sampler, config, run, seed=seed, transform_at=crops_at)
        unlabelled = torch.zeros(len(self), dtype=torch.long)
        return in_memory(
            sampler,
            lambda rows: Batch(canvas[rows], unlabelled[rows], self.kept[rows], picture_sizes=sizes[rows]),
        )
