from collections.abc import Callable

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from effvl_cli.models.openclip_tower import OpenClipTower


class SumTower:
    """One block that does nothing; the embedding is the sum of the patches. No prefix. `images` are the states."""

    num_prefix = 0
    depth = 1
    num_heads = 1
    mlp_width = 1
    patch_size = (1, 1)
    pools_prefix_only = False
    drops_tokens = False

    def __init__(self, rows: int, columns: int, width: int) -> None:
        self.module = nn.Identity()
        self.grid = (rows, columns)
        self.width = self.embed_dim = width

    def embed(self, images: Tensor) -> Tensor:
        return images

    def block(self, index: int, states: Tensor) -> Tensor:
        return states

    def pool(self, states: Tensor) -> Tensor:
        return states.sum(1)

    head = pool

    def qkv(self, index: int, states: Tensor, parts: str = "qkv") -> tuple[Tensor, ...]:
        return tuple(states[:, None] for _ in parts)

    def attend(self, index: int, states: Tensor, attended: Tensor) -> Tensor:
        return states


@pytest.fixture
def sum_tower() -> type[SumTower]:
    return SumTower


@pytest.fixture
def make_tower() -> Callable[..., OpenClipTower]:
    def make(
        seed: int = 0, grid: int = 4, width: int = 32, depth: int = 3, heads: int = 2, **options: object
    ) -> OpenClipTower:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tower = VisionTransformer(grid * 4, 4, width, depth, heads, 2.0, output_dim=16, **options)
        return OpenClipTower(tower.eval().requires_grad_(False))

    return make


def images_of(tower: OpenClipTower, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *tower.image_size, generator=generator)


@pytest.fixture
def images() -> Callable[..., Tensor]:
    return images_of
