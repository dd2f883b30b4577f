"""From a batch of pictures to the compressed views that a method compares."""

from dataclasses import dataclass

import torch
from torch import Tensor

from effvl_cli.config.methods import METHODS
from effvl_cli.config.pretrain import PretrainConfig, SearchConfig
from effvl_cli.core import distributed, seeds
from effvl_cli.data.loader import Batch
from effvl_cli.data.transforms import Preprocess
from effvl_cli.data.views import (
    ViewRecipe,
    WorkerCrops,
    crop_batch,
    draw_noise,
    draw_order,
    local_view,
    recolour,
    view_pair,
)
from effvl_cli.techniques.pretrain.method import View, Views
from effvl_cli.techniques.pretrain.schedule import Compression
from effvl_cli.techniques.pretrain.tokens import count_kept, random_tokens
from effvl_cli.techniques.pretrain.view_sizes import Sizes
from effvl_cli.techniques.pretrain.vit import path_scales


@dataclass(frozen=True)
class ViewMaker:
    """Makes the views of a step; the random draws are those of one process with the whole batch.

    Attributes:
        recipes: of the two global views, then of the local ones.
        sizes: sides of the views.
        preprocess: normalisation of the network's input.
        seed: of the random draws.
        depth: blocks of the backbone.
        drop_path: stochastic depth of the last block of the query encoder.
        both_ways: whether each view is both a query and a key.
        same_views: whether the teacher sees the views of the student.
    """

    recipes: tuple[ViewRecipe, ...]
    sizes: Sizes
    preprocess: Preprocess
    seed: int
    depth: int
    drop_path: float
    both_ways: bool
    same_views: bool

    @classmethod
    def of(cls, config: PretrainConfig | SearchConfig, sizes: Sizes, preprocess: Preprocess, depth: int) -> "ViewMaker":
        """As configured."""
        spec = METHODS[config.method]
        pair = view_pair(spec.views, sizes.image_size, local_crops=config.local_crops > 0, crop_min=config.crop_min)
        local = [local_view(sizes.local_size)] * config.local_crops
        both, same = spec.both_ways(config), spec.same_views
        return cls((*pair, *local), sizes, preprocess, config.seed, depth, config.drop_path, both, same)

    def crop_sizes(self, patch: int) -> list[int]:
        """Side of each view for a patch size."""
        return [self.sizes.view(patch)] * 2 + [self.sizes.local(patch)] * (len(self.recipes) - 2)

    def worker_crops(self, patch: int) -> WorkerCrops:
        """The loader's part of the views."""
        return WorkerCrops(self.recipes, self.crop_sizes(patch))

    def pixels(self, batch: Batch, patch: int, step: int) -> list[Tensor]:
        """The augmented pictures of every view: (B, 3, S, S) in 0..1, float32 also under autocast."""
        with torch.autocast(batch.images.device.type, enabled=False):
            return self._pixels(batch, patch, step)

    def _pixels(self, batch: Batch, patch: int, step: int) -> list[Tensor]:
        """As `pixels`, which are (B, 3, S, S); crops and blurs are products of matrices, which autocast would round."""
        sides = self.crop_sizes(patch)
        crops = self.worker_crops(patch).split(batch.images) if batch.images.ndim == 2 else []
        made = []
        for index, (recipe, side) in enumerate(zip(self.recipes, sides, strict=True)):
            draws = seeds.generator(self.seed, "view", index, step)
            noise, order = distributed.own_rows(draw_noise(self._total(batch), draws)), draw_order(draws)
            crop = crops[index] if crops else crop_batch(batch.images, side, recipe, noise, batch.picture_sizes)
            made.append(recolour(crop, recipe, noise, order))
        return made

    def views(self, batch: Batch, compression: Compression, step: int) -> Views:
        """The views of a step; pictures depend on the step alone, kept tokens also on the compression."""
        with torch.no_grad():
            images = [self.preprocess.standardise(x) for x in self.pixels(batch, compression.patch, step)]
        queries, keys = ((0, 1), (1, 0)) if self.both_ways else ((0,), (1,))
        if self.same_views:
            keys = (0, 1)
        total = self._total(batch)
        return Views(
            [self._view(images[i], total, compression, compression.keep_q, "query", i, step) for i in queries],
            [self._view(images[i], total, compression, compression.keep_k, "key", i, step) for i in keys],
            [
                self._view(images[i], total, compression, compression.keep_q, "query", i, step)
                for i in range(2, len(images))
            ],
        )

    def _view(
        self, images: Tensor, total: int, compression: Compression, keep: float, role: str, index: int, step: int
    ) -> View:
        num_patches = (images.shape[-1] // compression.patch) ** 2
        kept = None
        if keep < 1:  # nothing is drawn if all are kept
            noise = seeds.generator(self.seed, "tokens", role, index, step)
            kept = distributed.own_rows(random_tokens(total, num_patches, count_kept(num_patches, keep), noise))
            kept = kept.to(images.device, non_blocking=True)
        scales = None
        if self.drop_path and role == "query":
            noise = seeds.generator(self.seed, "drop-path", index, step)
            scales = path_scales(self.depth, total, self.drop_path, noise)
            scales = distributed.own_rows(scales.movedim(-1, 0)).movedim(0, -1).to(images.device)
        return View(images, compression.patch, kept, scales)

    @staticmethod
    def _total(batch: Batch) -> int:
        return len(batch.images) * distributed.world().size
