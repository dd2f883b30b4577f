"""open_clip's image towers as flat sequences of tokens: the one place that touches open_clip's private names."""

import difflib
from typing import Any

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from effvl_cli.core.errors import ModelError
from effvl_cli.core.modes import as_found
from effvl_cli.models.timm_tower import TimmTower, is_plain, objection

_QKV = "qkv"


class OpenClipTower:
    """A `Tower` (see techniques/prune_tokens/tower.py) around an untouched VisionTransformer, without its own state.

    Shapes: B images, n tokens of which the first is CLS, D width, E embedding width.
    """

    num_prefix = 1

    def __init__(self, module: VisionTransformer) -> None:
        self.module = module
        self.blocks = module.transformer.resblocks
        self.grid: tuple[int, int] = tuple(module.grid_size)
        self.patch_size: tuple[int, int] = tuple(module.patch_size)
        self.image_size: tuple[int, int] = tuple(module.image_size)
        self.width: int = module.transformer.width
        self.depth = len(self.blocks)
        self.num_heads: int = self.blocks[0].attn.num_heads
        self.mlp_width: int = self.blocks[0].mlp.c_fc.out_features
        self.embed_dim: int = module.output_dim

    @property
    def mlp_ratio(self) -> float:
        """Hidden width of the MLP over D."""
        return self.mlp_width / self.width

    @property
    def pools_prefix_only(self) -> bool:
        """True when the embedding is read from CLS."""
        return self.module.attn_pool is None and self.module.pool_type == "tok"

    @property
    def pools_mean(self) -> bool:
        """True when the embedding is a mean over patches, whose scale shifts when some are dropped."""
        return self.module.attn_pool is None and self.module.pool_type == "avg"

    @property
    def drops_tokens(self) -> bool:
        """True while patch dropout is active."""
        return self.module.training and getattr(self.module.patch_dropout, "prob", 0.0) > 0

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, n, D), positional embedding and pre-norm applied."""
        found: Tensor = self.module._embeds(images)
        return found

    def prompt_norm(self, rows: Tensor) -> Tensor:
        """The pre-norm."""
        found: Tensor = self.module.ln_pre(rows)
        return found

    def block(self, index: int, states: Tensor) -> Tensor:
        """One block, (B, n, D) to the same; recomputed in the backward pass if the tower is set to."""
        if self.module.transformer.grad_checkpointing and torch.is_grad_enabled():
            found: Tensor = checkpoint(self.blocks[index], states, use_reentrant=False)
            return found
        found = self.blocks[index](states)
        return found

    def head(self, states: Tensor) -> Any:
        """What the tower returns for these last states: (B, E), with `output_tokens` a pair of it and the tokens."""
        pooled, tokens = self._pool(states)
        return (pooled, tokens) if self.module.output_tokens else pooled

    def pool(self, states: Tensor) -> Tensor:
        """Final norm, pooling and projection, (B, n, D) to (B, E), not normalised."""
        return self._pool(states)[0]

    def pooled(self, states: Tensor) -> Tensor:
        """The same without the projection: (B, n, D) to (B, width of the pooling)."""
        found: Tensor = self.module._pool(states)[0]
        return found

    def _pool(self, states: Tensor) -> tuple[Tensor, Tensor]:
        pooled, tokens = self.module._pool(states)
        return (pooled if self.module.proj is None else pooled @ self.module.proj), tokens

    def qkv(self, index: int, states: Tensor, parts: str = _QKV) -> tuple[Tensor, ...]:
        """Projections of block `index` named in `parts`, a part of "qkv": each (B, heads, n, D / heads).

        For `F.scaled_dot_product_attention` with its default scale.
        """
        block = self.blocks[index]
        first = _QKV.index(parts)
        rows = slice(first * self.width, (first + len(parts)) * self.width)
        attention = block.attn
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[rows]
        projected = F.linear(block.ln_1(states), attention.in_proj_weight[rows], bias)
        split = projected.unflatten(-1, (len(parts), self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        norms = {"q": getattr(attention, "ln_q", nn.Identity()), "k": getattr(attention, "ln_k", nn.Identity())}
        return tuple(norms.get(part, nn.Identity())(x) for part, x in zip(parts, split, strict=True))

    def attend(self, index: int, states: Tensor, attended: Tensor) -> Tensor:
        """The rest of block `index` for rows (B, n, D) with the attention's output (B, heads, n, D / heads)."""
        block = self.blocks[index]
        attention = block.attn
        if getattr(attention, "head_scale", None) is not None:
            attended = attended * attention.head_scale
        merged = attended.transpose(1, 2).flatten(2)
        inner, outer = getattr(attention, "ln_inner", nn.Identity()), getattr(block, "ln_attn", nn.Identity())
        states = states + block.ls_1(outer(attention.out_proj(inner(merged))))
        found: Tensor = states + block.ls_2(block.mlp(block.ln_2(states)))
        return found


ClipTower = OpenClipTower | TimmTower
"""Any image tower of open_clip that can be pruned."""


def tower_of(model: nn.Module, name: str = "") -> ClipTower:
    """The image tower of an open_clip model, or the tower itself.

    Args:
        model: a model with a `visual`, or a VisionTransformer or TimmModel.
        name: of the model, for the message.

    Raises:
        ModelError: the tower is not a flat sequence of tokens, or positions live inside its blocks.
    """
    visual = getattr(model, "visual", model)
    if isinstance(visual, VisionTransformer):
        reason = _objection(visual)
    else:
        reason = objection(visual) if isinstance(visual, TimmModel) else "is not a flat token sequence"
    if reason:
        called = type(visual.trunk if isinstance(visual, TimmModel) else visual).__name__
        near = ", ".join(nearest_supported(name.removeprefix("openclip:")))
        raise ModelError(
            f"tower {called}{f' of {name}' if name else ''} {reason}; supported: {near}", "Choose one of them"
        )
    return OpenClipTower(visual) if isinstance(visual, VisionTransformer) else TimmTower(visual)


def _objection(visual: VisionTransformer) -> str:
    """Why this tower cannot be pruned; empty when it can."""
    if visual.attn_pool is None and visual.pool_type == "none":
        return "gives no image embedding (pool_type none)"
    if getattr(visual.transformer.resblocks[0].attn, "logit_scale", None) is not None:
        return "has scaled cosine attention"
    return ""


def nearest_supported(name: str, count: int = 3) -> list[str]:
    """Names of open_clip models with a supported tower, those most like `name` first."""
    supported = []
    for known in open_clip.list_models():
        vision = (open_clip.get_model_config(known) or {}).get("vision_cfg", {})
        if is_plain(vision.get("timm_model_name", "vit_")) and isinstance(vision.get("layers", 12), int):
            supported.append(known)
    usual = sorted(supported, key=lambda known: (not known.startswith("ViT"), len(known), known))
    alike = difflib.get_close_matches(name, supported, n=count, cutoff=0.5)
    return [*alike, *(known for known in usual if known not in alike)][:count]


def self_check(tower: ClipTower, image_size: tuple[int, int] | None = None) -> None:
    """Run one random image through the pieces and compare with the untouched tower.

    It catches changes in open_clip and timm.

    Args:
        tower: the adapter.
        image_size: rows and columns of pixels; default the tower's.

    Raises:
        ModelError: the results differ.
    """
    module = tower.module
    weight = next(module.parameters())
    noise = torch.randn(1, 3, *(image_size or tower.image_size), generator=torch.Generator().manual_seed(0))
    image = noise.to(weight.device, weight.dtype)
    quiet = as_found(module, training=False)
    with quiet, torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
        expected = module(image)
        states = tower.embed(image)
        query, keys, values = tower.qkv(0, states)
        pieces = tower.attend(0, states, F.scaled_dot_product_attention(query, keys, values))
        differences = [_difference(pieces, tower.block(0, states))]
        for index in range(tower.depth):
            states = tower.block(index, states)
        expected = expected[0] if isinstance(expected, tuple) else expected
        differences.append(_difference(tower.pool(states), expected))
    tolerance = 1e-5 * torch.finfo(weight.dtype).eps / torch.finfo(torch.float32).eps
    if not max(differences) <= tolerance:
        raise ModelError(
            f"the tower run in parts differs from the whole tower by {max(differences):.1e} (allowed: {tolerance:.1e})",
            f"open_clip {open_clip.__version__} or timm {timm.__version__} is not a version that effvl was written for",
        )


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference, relative to values larger than 1."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).float())
