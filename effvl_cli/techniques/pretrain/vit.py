"""A Vision Transformer for sequences of any length: any patch size, any subset of the patches.

B images, N patches of the picture, K patches kept, L = K + 1 tokens, D width. Parameter names and shapes are timm's, so
that its state dict loads into `timm.create_model("vit_small_patch16_224", num_classes=0)` and the other way round.

Dosovitskiy et al., arXiv 2010.11929, eqs. 1 to 4. Patch sizes are changed as in FlexiViT (arXiv 2212.08013).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .patch import PatchResize, resample_positions, resize_kernel, sincos_order, sincos_positions

Pool = Literal["cls", "mean"]


@dataclass(frozen=True)
class ViTShape:
    """Sizes of a ViT, which determine its multiply-adds.

    Attributes:
        width: D.
        depth: blocks.
        heads: attention heads.
        patch: p0, side of a patch in px.
        image_size: side of the picture in px.
    """

    width: int
    depth: int
    heads: int
    patch: int
    image_size: int

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch


class Attention(nn.Module):
    """Multi-head self-attention, fused."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        batch, length, _ = states.shape
        qkv = self.qkv(states).reshape(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        found: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return found


class Mlp(nn.Module):
    """Two layers with GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        found: Tensor = self.fc2(F.gelu(self.fc1(states)))
        return found


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, states: Tensor, scales: Tensor | None = None) -> Tensor:
        """(B, L, D) to (B, L, D); `scales` (2, B) multiply the two branches (stochastic depth)."""
        if scales is None:
            states = states + self.attn(self.norm1(states))
            found: Tensor = states + self.mlp(self.norm2(states))
            return found
        first, second = scales[..., None, None].to(states.dtype)
        states = states + first * self.attn(self.norm1(states))
        found = states + second * self.mlp(self.norm2(states))
        return found


class PatchEmbed(nn.Module):
    """Linear embedding of patches; its kernel is kept for the base patch size and resized for any other."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)  # only holds the parameters, under timm's names
        self.resize: PatchResize = "pi"

    def forward(self, images: Tensor, patch: int, kept: Tensor | None) -> Tensor:
        """(B, 3, S, S) to (B, K, D): only the patches `kept` (B, K) are embedded."""
        kernel = resize_kernel(self.proj.weight, patch, self.resize)
        patches = patchify(images, patch)
        if kept is not None:
            patches = patches.take_along_dim(kept[..., None], 1)
        return F.linear(patches, kernel.flatten(1), self.proj.bias)


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, S, S) to (B, (S/p)^2, C p^2), row by row."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


class VisionTransformer(nn.Module):
    """Pre-norm ViT on square pictures.

    Args:
        shape: sizes.
        pool: features after the last norm: the CLS token, or the mean of the patch tokens.
        learned_positions: trainable positions; else fixed sine-cosine ones.
        num_classes: outputs of the head; 0: the features themselves.
    """

    def __init__(
        self, shape: ViTShape, *, pool: Pool = "cls", learned_positions: bool = False, num_classes: int = 0
    ) -> None:
        super().__init__()
        self.shape, self.pool, self.num_classes = shape, pool, num_classes
        width = shape.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        table = torch.cat([torch.zeros(1, width), sincos_positions(shape.grid, shape.grid, width)])[None]
        self.pos_embed = nn.Parameter(table, requires_grad=learned_positions)
        self.patch_embed = PatchEmbed(width, shape.patch)
        self.blocks = nn.ModuleList(Block(width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self._tables: dict[tuple[int, torch.device], Tensor] = {}
        forget = self.register_load_state_dict_post_hook  # cached tables belong to the previous weights
        forget(lambda module, _: module._tables.clear())  # type: ignore[no-untyped-call]
        self.init_weights("trunc-normal")

    def init_weights(self, scheme: Literal["trunc-normal", "moco"]) -> None:
        """Draw the weights from torch's global stream.

        `moco` is MoCo-v3's: xavier-uniform, with query, key and value drawn as three matrices.
        """
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                if scheme == "trunc-normal":
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                else:
                    for part in layer.weight.detach().chunk(3 if name.endswith("qkv") else 1):
                        nn.init.xavier_uniform_(part)
                nn.init.zeros_(layer.bias)
        bound = (6 / (3 * self.shape.patch**2 + self.shape.width)) ** 0.5
        nn.init.uniform_(self.patch_embed.proj.weight, -bound, bound)
        nn.init.zeros_(self.patch_embed.proj.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(
        self, images: Tensor, *, kept: Tensor | None = None, patch: int | None = None, scales: Tensor | None = None
    ) -> Tensor:
        """Features, or logits if there is a head.

        Args:
            images: (B, 3, S, S); S is a multiple of the patch.
            kept: (B, K) ids of the patches that are used; None: all.
            patch: side of a patch; None: the base one.
            scales: (depth, 2, B) factors of the residual branches (stochastic depth); None: all 1.

        Returns:
            (B, D) or (B, C).
        """
        found: Tensor = self.head(self.pooled(self.tokens(images, kept=kept, patch=patch, scales=scales)))
        return found

    def tokens(
        self, images: Tensor, *, kept: Tensor | None = None, patch: int | None = None, scales: Tensor | None = None
    ) -> Tensor:
        """All tokens after the last norm: (B, 1 + K, D), CLS first."""
        states = self._embed(images, kept, patch or self.shape.patch)
        for index, block in enumerate(self.blocks):
            states = block(states, None if scales is None else scales[index])
        found: Tensor = self.norm(states)
        return found

    def last_cls(self, images: Tensor, blocks: int) -> Tensor:
        """CLS tokens after the last `blocks` blocks, each after the last norm, concatenated: (B, blocks * D)."""
        states, found = self._embed(images, None, self.shape.patch), []
        for index, block in enumerate(self.blocks):
            states = block(states)
            if index >= len(self.blocks) - blocks:
                found.append(self.norm(states)[:, 0])
        return torch.cat(found, 1)

    def pooled(self, tokens: Tensor) -> Tensor:
        """(B, 1 + K, D) to (B, D)."""
        return tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(1)

    def _embed(self, images: Tensor, kept: Tensor | None, patch: int) -> Tensor:
        """(B, 3, H, W) to CLS and the kept patches (None: all) with their positions, (B, L, D)."""
        states = self.patch_embed(images, patch, kept)
        table = self.positions(images.shape[-1] // patch)
        patches = table[1:][None]
        if kept is not None:  # a kept token carries its own position
            patches = table[1:][kept]
        cls = (self.cls_token + table[:1]).expand(images.shape[0], -1, -1)
        return torch.cat([cls.to(states.dtype), states + patches.to(states.dtype)], 1)

    def positions(self, grid: int) -> Tensor:
        """(1 + grid^2, D) positions, the first that of CLS."""
        if grid == self.shape.grid:
            return self.pos_embed[0]
        if self.pos_embed.requires_grad:
            return torch.cat([self.pos_embed[0, :1], resample_positions(self.pos_embed[0, 1:], grid)])
        key = (grid, self.pos_embed.device)
        if key not in self._tables:
            self._tables[key] = self._fixed_positions(grid)
        return self._tables[key]

    def _fixed_positions(self, grid: int) -> Tensor:
        """(N, D) sine-cosine positions, or, where a foreign state dict brought others, those resampled."""
        table, base, width = self.pos_embed[0].detach(), self.shape.grid, self.shape.width
        rows_first = sincos_order(table[1:], base)
        if rows_first is not None:
            patches = sincos_positions(grid, base, width, rows_first=rows_first).to(table.device)
        else:
            patches = resample_positions(table[1:], grid)
        return torch.cat([table[:1], patches])


def path_scales(depth: int, count: int, rate: float, generator: torch.Generator) -> Tensor:
    """(depth, 2, count) factors of residual branches: 0, or 1 / (1 - rate) with a rate that rises over the blocks.

    Stochastic depth (Huang et al., arXiv 1603.09382), which each of the two branches of a block draws alone.

    Args:
        depth: blocks.
        count: images.
        rate: of the last block.
        generator: on the CPU.
    """
    rates = torch.linspace(0, rate, depth)[:, None, None]
    kept = torch.rand(depth, 2, count, generator=generator) >= rates
    return kept / (1 - rates)
