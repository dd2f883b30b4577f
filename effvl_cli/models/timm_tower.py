"""timm's plain ViTs inside open_clip's TimmModel as flat sequences of tokens: the one place for timm's private names.

Such are the SigLIP towers (no prefix tokens, attentional pooling) and MobileCLIP-B (a convolutional stem first).
"""

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_QKV = "qkv"
_REFUSED = {
    "Eva": "keeps positions inside its blocks: rotary tables must be gathered with the tokens",
    "VisionTransformerRelPos": "keeps positions inside its blocks: relative ones must be gathered with the tokens",
}


class TimmTower:
    """A `Tower` (see techniques/prune_tokens/tower.py) around an untouched TimmModel, without its own state.

    Shapes: B images, n tokens of which the first P are prefix tokens (none for SigLIP), D width, E embedding width.
    """

    def __init__(self, module: TimmModel) -> None:
        trunk = module.trunk
        self.module = module
        self.trunk = trunk
        self.blocks = trunk.blocks
        self.num_prefix: int = trunk.num_prefix_tokens
        self.grid: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.image_size: tuple[int, int] = tuple(trunk.patch_embed.img_size)
        # A stem's own patch size is in cells of its feature map; cost and pictures need pixels.
        self.patch_size = (self.image_size[0] // self.grid[0], self.image_size[1] // self.grid[1])
        self.width: int = trunk.embed_dim
        self.depth = len(self.blocks)
        self.num_heads: int = self.blocks[0].attn.num_heads
        self.mlp_width: int = self.blocks[0].mlp.fc1.out_features
        self.embed_dim: int = _output_width(module)

    @property
    def mlp_ratio(self) -> float:
        """Hidden width of the MLP over D."""
        return self.mlp_width / self.width

    @property
    def pools_prefix_only(self) -> bool:
        """True when the embedding is read from CLS."""
        return self.trunk.attn_pool is None and self.trunk.global_pool == "token"

    @property
    def pools_mean(self) -> bool:
        """True when the embedding is a mean over patches, whose scale shifts when some are dropped."""
        return self.trunk.attn_pool is None and self.trunk.global_pool in ("avg", "avgmax")

    @property
    def drops_tokens(self) -> bool:
        """True while patch dropout is active."""
        return self.trunk.training and getattr(self.trunk.patch_drop, "prob", 0.0) > 0

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, n, D), positional embedding and pre-norm applied."""
        trunk = self.trunk
        found: Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))
        return found

    def prompt_norm(self, rows: Tensor) -> Tensor:
        """The pre-norm."""
        found: Tensor = self.trunk.norm_pre(rows)
        return found

    def block(self, index: int, states: Tensor) -> Tensor:
        """One block, (B, n, D) to the same; recomputed in the backward pass if the tower is set to."""
        if self.trunk.grad_checkpointing and torch.is_grad_enabled():
            found: Tensor = checkpoint(self.blocks[index], states, use_reentrant=False)
            return found
        found = self.blocks[index](states)
        return found

    def head(self, states: Tensor) -> Tensor:
        """What the tower returns for these last states: (B, E)."""
        found: Tensor = self.module.head(self.trunk.forward_head(self.trunk.norm(states)))
        return found

    def pool(self, states: Tensor) -> Tensor:
        """Final norm, pooling and projection, (B, n, D) to (B, E), not normalised."""
        return self.head(states)

    def pooled(self, states: Tensor) -> Tensor:
        """The same without the projection: (B, n, D) to (B, width of the pooling)."""
        found: Tensor = self.trunk.forward_head(self.trunk.norm(states), pre_logits=True)
        return found

    def qkv(self, index: int, states: Tensor, parts: str = _QKV) -> tuple[Tensor, ...]:
        """Projections of block `index` named in `parts`, a part of "qkv": each (B, heads, n, D / heads).

        For `F.scaled_dot_product_attention` with its default scale.
        """
        block = self.blocks[index]
        first = _QKV.index(parts)
        rows = slice(first * self.width, (first + len(parts)) * self.width)
        attention = block.attn
        bias = None if attention.qkv.bias is None else attention.qkv.bias[rows]
        projected = F.linear(block.norm1(states), attention.qkv.weight[rows], bias)
        split = projected.unflatten(-1, (len(parts), self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        norms = {"q": attention.q_norm, "k": attention.k_norm, "v": nn.Identity()}
        return tuple(norms[part](x) for part, x in zip(parts, split, strict=True))

    def attend(self, index: int, states: Tensor, attended: Tensor) -> Tensor:
        """The rest of block `index` for rows (B, n, D) with the attention's output (B, heads, n, D / heads)."""
        block = self.blocks[index]
        attention = block.attn
        merged = attention.proj(attention.norm(attended.transpose(1, 2).flatten(2)))
        states = states + block.ls1(merged)
        found: Tensor = states + block.ls2(block.mlp(block.norm2(states)))
        return found


def _output_width(module: TimmModel) -> int:
    """E: of the last linear map after the blocks, wherever it is; D when there is none."""
    linear = [part for part in (module.trunk.head, *module.head.modules()) if isinstance(part, nn.Linear)]
    return linear[-1].out_features if linear else module.trunk.embed_dim


def objection(module: TimmModel) -> str:
    """Why this tower cannot be pruned, as the rest of a sentence; empty when it can."""
    trunk = module.trunk
    if not isinstance(trunk, VisionTransformer):
        return _REFUSED.get(type(trunk).__name__, "is not a flat token sequence")
    if type(trunk).forward_head is not VisionTransformer.forward_head:
        return "has its own head"
    for block in trunk.blocks:
        parts = (type(block), type(block.attn), type(block.mlp))
        if parts != (Block, Attention, Mlp) or getattr(block.attn, "gate", None) is not None:
            return f"is not a plain ViT (its blocks: {', '.join(part.__name__ for part in parts)})"
    if not trunk.global_pool or "pool" in module.head._modules:
        return "pools a feature map, not a sequence of tokens"
    return ""


def is_plain(timm_name: str) -> bool:
    """Whether a timm model of that name, as open_clip's configurations have them, is a plain ViT."""
    return timm_name.startswith("vit_") and not any(part in timm_name for part in ("pe_core", "relpos"))
