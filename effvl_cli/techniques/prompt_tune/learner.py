"""Learnable context tokens before, around or after a class name (CoOp: Zhou et al., arXiv 2109.01134, eq. 3).

Shapes: K classes, M context tokens, T tokens of a prompt, d width of the text tower, E embedding width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pieces import Pieces, Position, flat_ids, layout
from .text_tower import TextTower, encode


class PromptLearner(nn.Module):
    """Class features of a frozen text tower, from prompts that are partly learned.

    Its parameters are what is trained and nothing else: `context`, and with `train_names` the tokens of the names,
    `name_tokens` (tokens of all names one after the other, d). The tower is used, and is no part of the module.

    Args:
        tower: frozen; its buffers and those of the learner must be on one device.
        pieces: names of the K classes.
        context: (M, d) for all classes, or (K, M, d) for each its own; None: no context tokens.
        position: of the name.
        train_context: whether the context is trained; if not, it is a buffer.
        train_names: whether the tokens of the names are trained.
        name_rows: (tokens of all names, d) in place of their embeddings; None: those of the tower.
        prefix_share: run what all prompts begin with once: "auto" where the tower allows it, "on", "off".
        text_chunk: classes that pass the tower at once, "auto", or None for all.
        truncate: leave out the positions after the longest prompt, where the tower is causal.

    Raises:
        ValueError: a context of another shape, or a name that does not fit beside it.
    """

    context: Tensor
    name_tokens: Tensor
    special: Tensor
    index: Tensor
    read: Tensor

    def __init__(
        self,
        tower: TextTower,
        pieces: Pieces,
        context: Tensor | None,
        *,
        position: Position = "end",
        train_context: bool = True,
        train_names: bool = False,
        name_rows: Tensor | None = None,
        prefix_share: Literal["auto", "on", "off"] = "auto",
        text_chunk: int | Literal["auto"] | None = None,
        truncate: bool = True,
    ) -> None:
        super().__init__()
        self.tower, self.pieces, self.position = tower, pieces, position
        with torch.no_grad():
            special = tower.embed(torch.tensor(pieces.special))
            names = tower.embed(torch.tensor(flat_ids(pieces))) if name_rows is None else name_rows
        context = special.new_zeros(0, tower.width) if context is None else context
        self.num_context = _checked(context, len(pieces.names), tower.width)
        _hold(self, "context", context, trained=train_context and self.num_context > 0)
        _hold(self, "name_tokens", names, trained=train_names)
        _hold(self, "special", special, trained=False)
        self.text_chunk = text_chunk
        found = layout(
            pieces,
            self.num_context,
            position,
            per_class=context.ndim == 3,
            truncate=truncate and tower.causal and tower.reads_end,
            reads_end=tower.reads_end,
        )
        self.layout = found
        self.register_buffer("index", found.index, persistent=False)
        self.register_buffer("read", found.read, persistent=False)

    def forward(self) -> Tensor:
        """(K, E) unit float32 class features."""
        table = torch.cat([self.context.flatten(0, -2), self.name_tokens, self.special])
        features = encode(self.tower, F.embedding(self.index, table), self.read)
        return F.normalize(features.float(), dim=-1)


def _hold(module: nn.Module, name: str, value: Tensor, *, trained: bool) -> None:
    """Keep a float32 copy as a parameter, or as a buffer that is not saved."""
    value = value.detach().float().clone()
    if trained:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value, persistent=False)


def _checked(context: Tensor, num_classes: int, width: int) -> int:
    """M of a context whose shape fits."""
    fits = context.shape[-1] == width and (context.ndim == 2 or (context.ndim == 3 and len(context) == num_classes))
    if not fits:
        raise ValueError(f"a context of shape {tuple(context.shape)} for {num_classes} classes of width {width}")
    return context.shape[-2]


def random_context(num_context: int, width: int, generator: torch.Generator, num_classes: int | None = None) -> Tensor:
    """Context tokens from N(0, 0.02^2), (M, d), or (K, M, d) for each of K classes its own."""
    shape = (num_context, width) if num_classes is None else (num_classes, num_context, width)
    return INIT_STD * torch.randn(shape, generator=generator, device=generator.device)


INIT_STD = 0.02
