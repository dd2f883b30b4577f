"""Learnable context tokens before, around or after a class name (CoOp: Zhou et al., arXiv 2109.01134, eq. 3).

Shapes: K classes, M context tokens, T tokens of a prompt, d width of the text tower, E embedding width.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chunks import Chunk, auto_chunk, in_chunks
from .pieces import Pieces, Position, flat_ids, layout
from .prefix import run_prefix, run_tails
from .text_tower import TextTower, encode

INIT_STD = 0.02
PrefixShare = Literal["auto", "on", "off"]


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
        prefix_share: run what all prompts begin with once; "auto" where the tower allows it and there is any context in
            it, e.g. not with a context for each class.
        text_chunk: classes that pass the tower at once.
        truncate: leave out the positions after the longest prompt, where the tower is causal.

    Raises:
        ValueError: a context of another shape, a name that does not fit beside it, or a prefix that cannot be shared.
    """

    context: Tensor
    name_tokens: Tensor
    name_ids: Tensor
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
        prefix_share: PrefixShare = "auto",
        text_chunk: Chunk = "auto",
        truncate: bool = True,
    ) -> None:
        super().__init__()
        self.tower, self.pieces, self.position = tower, pieces, position
        ids, special = (torch.tensor(found) for found in (flat_ids(pieces), pieces.special))
        with torch.no_grad():
            names = tower.embed(ids) if name_rows is None else name_rows
        device = names.device
        context = names.new_zeros(0, tower.width) if context is None else context.to(device)
        self.num_context = _checked(context, len(pieces.names), tower.width)
        self.other_names = train_names or name_rows is not None
        _hold(self, "context", context, trained=train_context and self.num_context > 0)
        if self.other_names:
            _hold(self, "name_tokens", names, trained=train_names)
        self.register_buffer("name_ids", ids.to(device), persistent=False)
        self.register_buffer("special", special.to(device), persistent=False)
        found = layout(
            pieces,
            self.num_context,
            position,
            per_class=context.ndim == 3,
            truncate=truncate and tower.causal and tower.reads_end,
            reads_end=tower.reads_end,
        )
        self.register_buffer("index", found.index.to(device), persistent=False)
        self.register_buffer("read", found.read.to(device), persistent=False)
        self.text_chunk = text_chunk
        self.num_shared = _num_shared(tower, found.shared, prefix_share)
        self.context_in_tail = bool((found.index[:, self.num_shared :] < context.flatten(0, -2).shape[0]).any())

    def learned(self) -> dict[str, Tensor]:
        """What rebuilds these prompts, copied: the context, and tokens of the names that are not the tower's."""
        own = ("context",) * (self.num_context > 0) + ("name_tokens",) * self.other_names
        return {name: getattr(self, name).detach().cpu().clone() for name in own}

    @property
    def num_tail(self) -> int:
        """Tokens of a prompt that are computed for each class."""
        return self.index.shape[1] - self.num_shared

    def forward(self) -> Tensor:
        """(K, E) unit float32 class features."""
        if self.num_shared:
            prefix = run_prefix(self.tower, self._rows(self.index[0, : self.num_shared]))
            encoder, rows, read = partial(run_tails, self.tower, prefix), self._tails(), self.read - self.num_shared
        else:
            encoder, rows, read = partial(encode, self.tower), self._rows(self.index), self.read
        features = in_chunks(encoder, rows, read, self.chunk)
        return F.normalize(features.float(), dim=-1)

    @property
    def chunk(self) -> int:
        """Classes that pass the tower at once."""
        if self.text_chunk != "auto":
            return self.text_chunk or len(self.index)
        kind = self.context.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.context.dtype
        return auto_chunk(self.num_tail, self.tower.width, self.tower.depth, dtype.itemsize)

    def _fixed(self) -> Tensor:
        """(tokens of all names and `Pieces.special`, d), of the tower as it is now: its weights may be loaded late."""
        with torch.no_grad():
            special = self.tower.embed(self.special)
            names = None if self.other_names else self.tower.embed(self.name_ids)
        return torch.cat([self.name_tokens if names is None else names, special])

    def _rows(self, index: Tensor) -> Tensor:
        """Rows of the table of tokens, (...) to (..., d)."""
        return F.embedding(index, torch.cat([self.context.flatten(0, -2), self._fixed()]))

    def _tails(self) -> Tensor:
        """(K, t, d) what follows the shared tokens; no gradient runs through it where no context is in it."""
        index = self.index[:, self.num_shared :]
        if self.context_in_tail:
            return self._rows(index)
        return F.embedding(index - self.context.flatten(0, -2).shape[0], self._fixed())


def _num_shared(tower: TextTower, shared: int, prefix_share: PrefixShare) -> int:
    """Leading tokens that are computed once."""
    if prefix_share == "on" and not (tower.splits and shared):
        raise ValueError("these prompts or this text tower do not allow to share a prefix")
    use = prefix_share == "on" or (prefix_share == "auto" and tower.splits and shared > 1)
    return shared if use else 0


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
