"""Batches of images with boxes, for training and for evaluation.

Images are shrunk to the size that the network works at, by the network's own arithmetic (torchvision's: bilinear
without antialiasing), so that it finds nothing left to do; those of a data set that fits in memory are decoded once.
What is drawn for an image depends on (seed, epoch, index) alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from effvl_cli.core import distributed
from effvl_cli.core.report import physical_memory
from effvl_cli.data.boxes import BoxRecord, BoxSource
from effvl_cli.data.loader import Make, SampleLoader
from effvl_cli.data.mixing import MixedSampler
from effvl_cli.data.source import Indices

MEMORY_SHARE = 0.25  # of the machine's memory, for the decoded images of one split

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Shrink:
    """Geometry of a network's input: the shorter side becomes `min_size` unless the longer one would pass `max_size`.

    Images are never enlarged here: the network does it.
    """

    min_size: int
    max_size: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image that is shrunk."""
        factor = self._factor(height, width)
        return (height, width) if factor >= 1 else (int(height * factor), int(width * factor))

    def _factor(self, height: int, width: int) -> float:
        return min(self.min_size / min(height, width), self.max_size / max(height, width))

    def __call__(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 from (3, H, W) uint8."""
        height, width = (int(side) for side in image.shape[-2:])
        size = self.size(height, width)
        if size == (height, width):
            return image
        factor = self._factor(height, width)
        # as torchvision's GeneralizedRCNNTransform does
        small = F.interpolate(
            image[None].float(), scale_factor=factor, mode="bilinear", recompute_scale_factor=True, align_corners=False
        )
        return small[0].round().to(torch.uint8)


@dataclass(frozen=True)
class Augment:
    """What is drawn for each training image.

    Attributes:
        flip: probability of a horizontal flip.
        brightness: largest relative change.
        contrast: likewise.
    """

    flip: float = 0.5
    brightness: float = 0.0
    contrast: float = 0.0


class Pictures:
    """The shrunk images of a split, by position; held in memory after the first use where all of them fit.

    Args:
        source: images with boxes.
        shrink: geometry.
        memory_share: of the machine's memory that they may take.
    """

    def __init__(self, source: BoxSource, shrink: Shrink, memory_share: float = MEMORY_SHARE) -> None:
        self.source, self.shrink = source, shrink
        wanted = sum(3 * height * width for height, width in map(self._size, source.records))
        self.fits = wanted <= memory_share * physical_memory()
        self._held: dict[int, Tensor] = {}

    def _size(self, record: BoxRecord) -> tuple[int, int]:
        return self.shrink.size(record.height, record.width)

    def __getitem__(self, index: int) -> Tensor:
        """(3, h, w) uint8.

        Raises:
            DataError: unreadable.
        """
        if index in self._held:
            return self._held[index]
        pixels = torch.from_numpy(np.array(self.source.image(index))).permute(2, 0, 1).contiguous()
        image = self.shrink(pixels)
        if self.fits:
            self._held[index] = image
        return image

    def workers(self, wanted: int) -> int:
        """Loader processes: none where the images are held, since each process would hold its own."""
        return 0 if self.fits else wanted


@dataclass(frozen=True)
class Sample:
    """An image and its boxes, in px of the image as it is here.

    Attributes:
        image: (3, H, W) uint8.
        boxes: (N, 4) float32.
        record: what the annotations say.
        index: position in the split.
    """

    image: Tensor
    boxes: Tensor
    record: BoxRecord
    index: int


@dataclass(frozen=True)
class BoxBatch:
    """A few images with their boxes.

    Attributes:
        images: (3, H, W) uint8 each; sizes differ.
        targets: for each image boxes (N, 4) float32 in its px, labels (N,) int64 from 1 (classes of the data), ignore
            (N,) bool, night () bool, and where classes are missing in the annotations labelled (1 + C,) bool.
        indices: (B,) int64 positions in the split.
        sizes: (B, 2) int64 heights and widths of the images as they are in the data set.
        files: of each image, as in the annotations.
    """

    images: list[Tensor]
    targets: list[Target]
    indices: Tensor
    sizes: Tensor
    files: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "BoxBatch":
        """The same on a device."""
        images = [image.to(device, non_blocking=True) for image in self.images]
        targets = [
            {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in self.targets
        ]
        return replace(self, images=images, targets=targets)

    def inputs(self) -> list[Tensor]:
        """(3, H, W) float32 in 0..1, what a detector takes."""
        return [image.float() / 255 for image in self.images]

    def restored(self, detections: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Detections on these images, with boxes in px of the images as they are in the data set."""
        found = []
        for image, size, detection in zip(self.images, self.sizes.tolist(), detections, strict=True):
            height, width = image.shape[-2:]
            factors = detection["boxes"].new_tensor([size[1] / width, size[0] / height]).repeat(2)
            found.append({**detection, "boxes": detection["boxes"] * factors})
        return found


@dataclass(frozen=True)
class Packed:
    """A batch in few tensors, as it is sent between processes."""

    pixels: Tensor
    shapes: list[tuple[int, int]]
    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    counts: list[int]
    night: Tensor
    labelled: Tensor | None
    indices: Tensor
    sizes: Tensor
    files: list[str]

    def unpack(self) -> BoxBatch:
        """The batch, as views of these tensors."""
        flat = self.pixels.split([3 * height * width for height, width in self.shapes])
        images = [part.view(3, *shape) for part, shape in zip(flat, self.shapes, strict=True)]
        columns = {"boxes": self.boxes, "labels": self.labels, "ignore": self.ignore}
        parts = {name: values.split(self.counts) for name, values in columns.items()}
        targets = [{name: values[row] for name, values in parts.items()} for row in range(len(images))]
        for row, target in enumerate(targets):
            target["night"] = self.night[row]
            if self.labelled is not None:
                target["labelled"] = self.labelled[row]
        return BoxBatch(images, targets, self.indices, self.sizes, self.files)


class Collate:
    """Makes a batch of samples.

    Args:
        source: whose classes they have.
    """

    def __init__(self, source: BoxSource) -> None:
        self.width = len(source.classes) + 1
        self.partly = any(record.labelled is not None for record in source.records)

    def __call__(self, samples: Sequence[Sample]) -> Packed:
        """A batch of these."""
        records = [sample.record for sample in samples]
        return Packed(
            torch.cat([sample.image.reshape(-1) for sample in samples]),
            [(int(sample.image.shape[1]), int(sample.image.shape[2])) for sample in samples],
            torch.cat([sample.boxes for sample in samples]),
            torch.from_numpy(np.concatenate([record.labels for record in records])),
            torch.from_numpy(np.concatenate([record.ignore for record in records])),
            [len(record.boxes) for record in records],
            torch.tensor([record.time == "night" for record in records]),
            torch.stack([self._labelled(record) for record in records]) if self.partly else None,
            torch.tensor([sample.index for sample in samples]),
            torch.tensor([(record.height, record.width) for record in records]),
            [record.file for record in records],
        )

    def _labelled(self, record: BoxRecord) -> Tensor:
        if record.labelled is None:
            return torch.ones(self.width, dtype=torch.bool)
        found = torch.zeros(self.width, dtype=torch.bool)
        found[[0, *record.labelled]] = True
        return found


@dataclass(frozen=True)
class TrainSamples:
    """Makes training samples; draws from torch's global stream, which the loader seeds for each."""

    pictures: Pictures
    augment: Augment = field(default_factory=Augment)

    def __call__(self, index: int, epoch: int) -> Sample:
        """The sample of an index in an epoch.

        Raises:
            DataError: unreadable.
        """
        sample = plain_sample(self.pictures, index)
        flip, bright, contrast = torch.rand(3).tolist()
        image, boxes = sample.image, sample.boxes
        if self.augment.brightness:
            image = transforms.adjust_brightness(image, 1 + self.augment.brightness * (2 * bright - 1))
        if self.augment.contrast:
            image = transforms.adjust_contrast(image, 1 + self.augment.contrast * (2 * contrast - 1))
        if flip < self.augment.flip:
            image = image.flip(-1)
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([1, 0, 1, 0]) * image.shape[-1]
        return replace(sample, image=image, boxes=boxes)


def plain_sample(pictures: Pictures, index: int) -> Sample:
    """The sample of an index without augmentation.

    Raises:
        DataError: unreadable.
    """
    image, record = pictures[index], pictures.source.records[index]
    factors = torch.tensor([image.shape[-1] / record.width, image.shape[-2] / record.height], dtype=torch.float32)
    return Sample(image, torch.from_numpy(record.boxes) * factors.repeat(2), record, index)


def training_batches(
    pictures: Pictures, sampler: MixedSampler, augment: Augment, *, seed: int, workers: int = 0, on_bad: str = "error"
) -> Callable[[int], Iterator[BoxBatch]]:
    """`stream(k)`: this process's batches from micro-batch k on, without end, as `core.loop.fit` takes them.

    Args:
        pictures: of the training split.
        sampler: which of them.
        augment: what is drawn for each.
        seed: of the draws.
        workers: loader processes, for images that are not held.
        on_bad: "error" or "skip".
    """
    source, samples = pictures.source, TrainSamples(pictures, augment)

    def make_at(step: int) -> Make[Sample]:
        return samples

    loader: SampleLoader[Sample, Packed] = SampleLoader(
        make_at, Collate(source), len(source), seed=seed, workers=pictures.workers(workers), on_bad=on_bad
    )
    world = distributed.world()

    def stream(start: int) -> Iterator[BoxBatch]:
        for packed, _ in loader.endless(sampler, start_step=start, rank=world.rank, world=world.size):
            yield packed.unpack()

    return stream


def evaluation_batches(
    pictures: Pictures,
    batch_size: int,
    *,
    indices: Indices | None = None,
    workers: int = 0,
    on_bad: str = "error",
) -> Iterator[BoxBatch]:
    """Images in order, without augmentation; those that cannot be read are left out with on_bad "skip".

    Args:
        pictures: of a split.
        batch_size: images at a time.
        indices: positions; None: all.
        workers: loader processes, for images that are not held.
        on_bad: "error" or "skip".

    Raises:
        DataError: an unreadable image, or too many.
    """
    source = pictures.source
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)

    def make_at(step: int) -> Make[Sample]:
        return lambda index, epoch: plain_sample(pictures, index)

    loader: SampleLoader[Sample, Packed] = SampleLoader(
        make_at, Collate(source), len(source), workers=pictures.workers(workers), on_bad=on_bad
    )
    for packed, _ in loader.once(chosen, chunk=batch_size):
        if packed is not None:
            yield packed.unpack()
