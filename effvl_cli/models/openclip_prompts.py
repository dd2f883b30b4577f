"""open_clip's text towers as `TextTower` (techniques/prompt_tune), which take token embeddings in place of ids."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer
from torch import Tensor, nn

from effvl_cli.core.errors import DataError, ModelError, UsageError
from effvl_cli.models.network import Network
from effvl_cli.techniques.prompt_tune.pieces import Pieces

_QKV = "qkv"
_READS = ("argmax", "eos", "last")
SUPPORTED = "towers of open_clip's own blocks that read the end token or the last position, e.g. ViT-B-32, RN50"


class PromptTower:
    """A `TextTower` around the text part of an open_clip model, without its own state.

    Args:
        text: what has `token_embedding`, `positional_embedding`, `transformer`, `ln_final`, `text_projection` and
            `attn_mask`: a CLIP, or the TextTransformer of a CustomTextCLIP.
        pool: how it reads an embedding: argmax, eos or last.
    """

    def __init__(self, text: Any, pool: str) -> None:
        self.text = text
        self.blocks_list = text.transformer.resblocks
        self.width: int = text.transformer.width
        self.depth = len(self.blocks_list)
        self.num_heads: int = self.blocks_list[0].attn.num_heads
        self.mlp_width: int = self.blocks_list[0].mlp.c_fc.out_features
        self.embed_dim = _embed_dim(text.text_projection, self.width)
        self.context_length: int = text.positional_embedding.shape[0]
        self.causal = _is_causal(text.attn_mask)
        self.reads_end = pool != "last"
        self.splits = self.causal and all(type(block) is ResidualAttentionBlock for block in self.blocks_list)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return len(self.text.token_embedding.weight)

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings without positions, (...) int64 to (..., d)."""
        found: Tensor = self.text.token_embedding(ids.to(self.text.token_embedding.weight.device))
        return found

    def positions(self, first: int, last: int) -> Tensor:
        """(last - first, d): the positional embedding of these places."""
        found: Tensor = self.text.positional_embedding[first:last]
        return found

    def blocks(self, states: Tensor) -> Tensor:
        """All blocks, (B, T, d) to the same, under the tower's own mask."""
        mask, length = self.text.attn_mask, states.shape[1]
        states = states.to(self.text.transformer.get_cast_dtype())
        found: Tensor = self.text.transformer(states, attn_mask=None if mask is None else mask[:length, :length])
        return found

    def head(self, states: Tensor) -> Tensor:
        """Final norm and projection, (B, d) to (B, E), not normalised."""
        states = self.text.ln_final(states)
        project = self.text.text_projection
        if project is None:
            return states
        found: Tensor = project(states) if isinstance(project, nn.Linear) else states @ project
        return found

    def qkv(self, index: int, states: Tensor, parts: str = _QKV) -> tuple[Tensor, ...]:
        """Projections of block `index` named in `parts`, a part of "qkv": each (B, heads, T, d / heads)."""
        block = self.blocks_list[index]
        first = _QKV.index(parts)
        rows = slice(first * self.width, (first + len(parts)) * self.width)
        projected = F.linear(block.ln_1(states), block.attn.in_proj_weight[rows], block.attn.in_proj_bias[rows])
        return tuple(projected.unflatten(-1, (len(parts), self.num_heads, -1)).permute(2, 0, 3, 1, 4))

    def attend(self, index: int, states: Tensor, attended: Tensor) -> Tensor:
        """The rest of block `index` for rows (B, T, d) with the attention's output (B, heads, T, d / heads)."""
        block = self.blocks_list[index]
        states = states + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).flatten(2)))
        found: Tensor = states + block.ls_2(block.mlp(block.ln_2(states)))
        return found


def _embed_dim(project: Any, width: int) -> int:
    if project is None:
        return width
    return int(project.out_features if isinstance(project, nn.Linear) else project.shape[1])


def _is_causal(mask: Tensor | None) -> bool:
    """Whether an additive mask lets a token see itself and those before it, and nothing else."""
    if mask is None:
        return False
    return torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1))


def prompt_tower(network: Network) -> PromptTower:
    """The text tower of a CLIP for learned prompts; the whole network is frozen and put into evaluation mode.

    Raises:
        ModelError: its text tower is not open_clip's own, or reads its embedding in another way.
    """
    network.module.eval().requires_grad_(False)
    return text_tower(network.module, network.name)


def text_tower(model: nn.Module, name: str) -> PromptTower:
    """The text tower of an open_clip model, which stays as it is.

    Args:
        model: the CLIP.
        name: of the model, for the message.

    Raises:
        ModelError: see `prompt_tower`.
    """
    text = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    reason = _objection(model, text)
    if reason:
        raise ModelError(
            f"text tower {type(text).__name__} of {name} {reason}, which prompt-tune does not support",
            f"Supported: {SUPPORTED}",
        )
    return PromptTower(text, _pool(text))


def _pool(text: Any) -> str:
    return str(text.pool_type if hasattr(text, "pool_type") else getattr(text, "text_pool_type", ""))


def _objection(model: nn.Module, text: Any) -> str:
    """Why a text tower cannot take prompts; empty when it can."""
    if not isinstance(getattr(text, "transformer", None), Transformer):
        return "is not open_clip's own"
    if not (text is model or isinstance(text, TextTransformer)):
        return "is not open_clip's own"
    if getattr(text, "cls_emb", None) is not None:
        return "appends a CLS token to every text"
    if getattr(text, "use_pad_mask", False):
        return "masks the padding"
    if _pool(text) not in _READS:
        return f"pools by {_pool(text)!r}"
    return ""


def name_pieces(network: Network, names: Sequence[str]) -> Pieces:
    """Token ids of class names, each by itself, and of what stands around them.

    Args:
        network: with a tokenizer, whatever package it comes from.
        names: of the classes, as they are to be read: underscores are blanks by then.

    Raises:
        DataError: a name without any token.
        ModelError: the tokenizer does not put texts between one start and one end.
    """
    start, end, pad, length = _around(network)
    ids = [_inside(network, name, start, end, pad) for name in names]
    empty = [name for name, found in zip(names, ids, strict=True) if not found]
    if empty:
        raise DataError(f"class names without any token: {', '.join(map(repr, empty[:3]))}", "Name these classes")
    period = _inside(network, ".", start, end, pad)
    return Pieces(tuple(names), tuple(ids), start, period, end, pad, length)


def word_ids(network: Network, text: str) -> tuple[int, ...]:
    """Tokens of some words, e.g. "a photo of a", without those at the start and the end of a text."""
    start, end, pad, _ = _around(network)
    return _inside(network, text, start, end, pad)


def _around(network: Network) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    """Start, end, pad and context of a tokenizer, from what it makes of no text and of a letter."""
    empty, letter = (row.tolist() for row in network.tokenize(["", "x"]))
    pad = empty[-1]
    fixed, whole = _stripped(empty, pad), _stripped(letter, pad)
    common = 0
    while common < len(fixed) and fixed[common] == whole[common]:
        common += 1
    start, end = fixed[:common], fixed[common:]
    if whole[len(whole) - len(end) :] != end or len(end) > 1:
        raise ModelError(
            f"the tokenizer of {network.name} writes more than a start and an end around a text",
            "prompt-tune does not support it",
        )
    return tuple(start), tuple(end), pad, len(empty)


def _inside(network: Network, text: str, start: tuple[int, ...], end: tuple[int, ...], pad: int) -> tuple[int, ...]:
    """Tokens of a text between start and end; those of a text that is too long fill the context."""
    found = _stripped(network.tokenize([text])[0].tolist(), pad)
    return tuple(found[len(start) : len(found) - len(end)])


def _stripped(row: list[int], pad: int) -> list[int]:
    while row and row[-1] == pad:
        row = row[:-1]
    return row


def check_room(pieces: Pieces, num_context: int) -> None:
    """Refuse class names that do not fit beside so many context tokens.

    Raises:
        UsageError: some do not.
    """
    long = pieces.too_long(num_context)
    if not long:
        return
    most = pieces.max_context
    named = ", ".join(name[:40] for name in long[:3])
    raise UsageError(
        f"--num-context {num_context} leaves no room for {len(long)} class names ({named}) in a text of "
        f"{pieces.context_length} tokens",
        f"Give at most {most}" if most > 0 else "Shorten these names",
    )
