"""Pictures without labels as a stream of training batches: held in memory, or read by loader processes."""

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
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import Batch, loader_workers
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.source import ImageSource, Subset
from effvl_cli.data.transforms import Preprocess
from effvl_cli.data.views import SMALL, WorkerCrops
from effvl_cli.engines.common.batches import Stream, in_memory, loaded

MEMORY_SHARE = 0.25  # of the machine's, for the pictures of a training
CANVAS = 2  # times the view: larger pictures are made smaller before they are held in memory

StepCrops = Callable[[int], WorkerCrops]


def open_split(config: PretrainConfig | SearchConfig | EvalConfig, split: str) -> ImageSource:
    """A split; of an endless one the first `--num-images`."""
    source = load(config.data, split, root=config.data_root, seed=config.seed)
    return Subset(source, np.arange(config.num_images)) if source.endless else source


@dataclass
class TrainImages:
    """The training pictures.

    Attributes:
        source: where they are from.
        canvas: (M, 3, H, W) uint8, all of them, or None: they are read as they are needed.
        kept: (M,) their places in the source, those that could be read.
    """

    source: ImageSource
    canvas: Tensor | None
    kept: Tensor

    @classmethod
    def open(cls, config: PretrainConfig | SearchConfig, run: Run, preprocess: Preprocess) -> "TrainImages":
        """As `--aug-device` says; `auto` holds small views in memory if they fit.

        Raises:
            UsageError: `--aug-device batch` and too little memory.
        """
        source = open_split(config, "train")
        whole = torch.arange(len(source))
        if not len(source):
            return cls(source, None, whole)
        view = preprocess.size[0]
        side = min(CANVAS * view, *source.image(0).size)
        fits = len(source) * 3 * side * side <= MEMORY_SHARE * physical_memory()
        if config.aug_device == "batch" and not fits:
            raise UsageError(
                f"{len(source)} pictures of {side} px do not fit into memory", "Give --aug-device worker or auto"
            )
        if config.aug_device == "worker" or not fits or (config.aug_device == "auto" and view > SMALL):
            return cls(source, None, whole)
        held = Preprocess((side, side), preprocess.mean, preprocess.std)
        workers = loader_workers(config.workers, run.device.type)
        images = Decoded.read(source, held, workers=workers, on_bad=config.on_bad, memory_share=MEMORY_SHARE)
        return cls(source, images.pixels, torch.as_tensor(images.indices))

    def __len__(self) -> int:
        return len(self.kept)

    def batches(
        self, config: PretrainConfig | SearchConfig, run: Run, batch_size: int, crops_at: StepCrops, *, seed: int
    ) -> Stream[Batch]:
        """The stream of this process's batches, from any step on: of whole pictures, or of `crops_at(step)`."""
        sampler = EpochSampler(len(self), batch_size, seed)
        canvas = self.canvas
        if canvas is None:
            return loaded(self.source, sampler, config, run, seed=seed, transform_at=crops_at)
        return in_memory(sampler, lambda rows: Batch(canvas[rows], torch.zeros_like(rows), self.kept[rows]))
