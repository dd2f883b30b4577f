"""RoIAlign over the levels of a pyramid, with the half-pixel shift of detectron2 and mmdetection or without.

He et al., arXiv 1703.06870 (RoIAlign); Lin et al., arXiv 1612.03144, eq. 1 (levels).
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from effvl_cli.techniques.detect.roi_gradient import pooled_from

_CANONICAL_SIZE, _CANONICAL_LEVEL = 224, 4  # Lin et al., arXiv 1612.03144, eq. 1
_EPSILON = 1e-6


class PyramidRoIAlign(nn.Module):
    """Pools each box from the level of its size: level = floor(4 + log2(sqrt(area) / 224)), clamped.

    Without the shift it gives what torchvision's `MultiScaleRoIAlign` gives, which measures its strides from the first
    batch. Boxes are never in half precision, which is pixels off.

    Args:
        strides: pixels of the image for one of each level, powers of two, finest first.
        output_size: height and width of what is pooled.
        sampling_ratio: samples along each side of a cell.
        aligned: whether coordinates are shifted by half a pixel.
        every_level: pool all boxes from all levels and select: no shape depends on the boxes then, as exported
            programs want it.
    """

    def __init__(
        self,
        strides: Sequence[int] = (4, 8, 16, 32),
        output_size: int = 7,
        sampling_ratio: int = 2,
        *,
        aligned: bool = True,
        every_level: bool = False,
    ) -> None:
        super().__init__()
        self.strides, self.output_size = tuple(strides), (output_size, output_size)
        self.sampling_ratio, self.aligned, self.every_level = sampling_ratio, aligned, every_level

    def forward(self, features: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: object = None) -> Tensor:
        """Pooled features (boxes of all images, channels, height, width).

        Args:
            features: the levels in order, (B, channels, H / stride, W / stride); what follows the strides is not used.
            boxes: (P, 4) for each image, in its pixels.
            image_shapes: not needed; torchvision's pooler takes them.
        """
        maps = list(features.values())[: len(self.strides)]
        images = [torch.full_like(found[:, :1], k) for k, found in enumerate(boxes)]
        rois = torch.cat([torch.cat(images), torch.cat(boxes)], 1)
        levels = self._levels(torch.cat(boxes))
        pooled = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for k, (level, stride) in enumerate(zip(maps, self.strides, strict=True)):
            if self.every_level:
                here = (levels == k)[:, None, None, None]
                pooled = torch.where(here, self._pool(level, rois, stride).to(pooled.dtype), pooled)
            else:
                rows = torch.where(levels == k)[0]
                pooled = pooled.index_put((rows,), self._pool(level, rois[rows], stride).to(pooled.dtype))
        return pooled

    def _levels(self, boxes: Tensor) -> Tensor:
        finest = int(math.log2(self.strides[0]))
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(_CANONICAL_LEVEL + torch.log2(sides / _CANONICAL_SIZE) + _EPSILON)
        return (level.clamp(finest, finest + len(self.strides) - 1) - finest).long()

    def _pool(self, level: Tensor, rois: Tensor, stride: int) -> Tensor:
        kind = torch.promote_types(level.dtype, rois.dtype)
        scale = 1 / stride
        return pooled_from(level.to(kind), rois.to(kind), self.output_size, scale, self.sampling_ratio, self.aligned)
