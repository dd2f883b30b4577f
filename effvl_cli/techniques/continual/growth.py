"""Where the entries of a tensor lie after the network has grown.

Section 3 of arXiv 1910.06562 enlarges every layer; the old tensor is the leading block of each dimension. Some
dimensions are packed: the rows of a joint query, key and value matrix are (3, heads, head width), the columns behind a
flattened feature map are (channels, pixels). There each factor has its leading block.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Factors = tuple[int, ...]
"""Sizes of the factors of a packed dimension, the slowest first."""
Axis = tuple[Factors, ...]
"""Segments of a dimension, one behind the other, as concatenated features are; usually one."""
Layout = Mapping[int, Axis]
"""Packed dimensions of a tensor; the others are plain."""
IndexMap = tuple[Tensor, ...]
"""For each dimension, the new index of each old one: int64."""


class GrowthError(ValueError):
    """An old tensor does not lie in the new one, or the grown network computes something else."""


def channels(count: int, width: float, round_to: int = 1) -> int:
    """Channels at a width, which multiplies parameters: max(1, floor(c * sqrt(m) + 1e-9)), rounded up to a multiple."""
    return _rounded(count * math.sqrt(width), round_to)


def units(count: int, width: float, round_to: int = 1) -> int:
    """Hidden units or heads at a width, where only one dimension of a matrix grows: floor(c * m + 1e-9)."""
    return _rounded(count * width, round_to)


def _rounded(size: float, round_to: int) -> int:
    found = max(1, math.floor(size + 1e-9))
    return math.ceil(found / round_to) * round_to


def axis_map(old: Axis, new: Axis) -> Tensor:
    """New index of each old one of a dimension.

    Raises:
        GrowthError: other numbers of segments or factors, or a factor that shrinks.
    """
    if [len(f) for f in old] != [len(f) for f in new] or any(
        a > b for f, g in zip(old, new, strict=True) for a, b in zip(f, g, strict=True)
    ):
        raise GrowthError(f"a dimension of {old} does not lie in one of {new}")
    parts, start = [], 0
    for before, after in zip(old, new, strict=True):
        grid = torch.arange(math.prod(after)).reshape(after)
        parts.append(grid[tuple(slice(0, size) for size in before)].reshape(-1) + start)
        start += math.prod(after)
    return torch.cat(parts)


def index_map(
    old_shape: Sequence[int], new_shape: Sequence[int], old: Layout | None = None, new: Layout | None = None
) -> IndexMap:
    """Where a tensor's entries lie in a larger one.

    Args:
        old_shape: its shape.
        new_shape: that of the larger one.
        old: its packed dimensions.
        new: those of the larger one.

    Raises:
        GrowthError: it does not fit.
    """
    if len(old_shape) != len(new_shape):
        raise GrowthError(f"shape {tuple(old_shape)} has other dimensions than {tuple(new_shape)}")
    maps = []
    for d, sizes in enumerate(zip(old_shape, new_shape, strict=True)):
        axes = [(layout or {}).get(d, ((size,),)) for size, layout in zip(sizes, (old, new), strict=True)]
        for axis, size in zip(axes, sizes, strict=True):
            if sum(math.prod(factors) for factors in axis) != size:
                raise GrowthError(f"dimension {d} has {size} entries, and its layout {axis} another number")
        maps.append(axis_map(*axes))
    return tuple(maps)


def index_maps(
    old_shapes: Mapping[str, Sequence[int]],
    new_shapes: Mapping[str, Sequence[int]],
    old: Mapping[str, Layout],
    new: Mapping[str, Layout],
) -> dict[str, IndexMap]:
    """Maps of all tensors whose shape changes.

    Raises:
        GrowthError: one does not fit; the message names it.
    """
    found = {}
    for name, shape in old_shapes.items():
        if tuple(shape) != tuple(new_shapes[name]):
            try:
                found[name] = index_map(shape, new_shapes[name], old.get(name), new.get(name))
            except GrowthError as error:
                raise GrowthError(f"{name}: {error}") from None
    return found


def _mesh(value: Tensor, place: IndexMap) -> tuple[Tensor, ...]:
    grids = torch.meshgrid(*(index.to(value.device) for index in place), indexing="ij") if place else ()
    return tuple(grids)


def taken(value: Tensor, place: IndexMap) -> Tensor:
    """The entries of a large tensor that a map names: contiguous, of the small tensor's shape."""
    for dimension, index in enumerate(place):
        leading = not len(index) or int(index[-1]) == len(index) - 1  # indices rise
        if leading:
            value = value.narrow(dimension, 0, len(index))
        else:
            value = value.index_select(dimension, index.to(value.device))
    return value.contiguous()


def placed(target: Tensor, value: Tensor, place: IndexMap) -> Tensor:
    """Write a small tensor's entries where a map says, in place; the others stay."""
    target[_mesh(target, place)] = value
    return target


def grow(
    base: Mapping[str, Tensor],
    owner: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    maps: Mapping[str, IndexMap],
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Shared weights at larger shapes: values 0 and owner 0 where they are new.

    Args:
        base: values by name.
        owner: ids by name.
        shapes: the larger ones.
        maps: of `index_maps`; a tensor without one stays as it is.

    Returns:
        Values, owners, and bool masks of what is new.
    """
    bases, owners, fresh = {}, {}, {}
    for name, value in base.items():
        if name not in maps:
            bases[name], owners[name] = value.clone(), owner[name].clone()
            fresh[name] = torch.zeros_like(value, dtype=torch.bool)
            continue
        shape, place = tuple(shapes[name]), maps[name]
        bases[name] = placed(value.new_zeros(shape), value, place)
        owners[name] = placed(owner[name].new_zeros(shape), owner[name], place)
        fresh[name] = placed(
            torch.ones(shape, dtype=torch.bool, device=value.device), torch.zeros_like(value) != 0, place
        )
    return bases, owners, fresh


@torch.no_grad()
def self_test(
    old: Callable[[Tensor], Tensor], new: Callable[[Tensor], Tensor], probe: Tensor, *, rtol: float = 1e-4
) -> None:
    """Assert that a network grown by zeros computes what it computed before; a wrong map does not.

    Args:
        old: the network before.
        new: after, with zeros in the new weights and the old task's own state in its leading entries.
        probe: images.
        rtol: of the largest logit.

    Raises:
        GrowthError: the logits differ.
    """
    before, after = old(probe), new(probe)
    difference = float((before - after).abs().max()) / max(float(before.abs().max()), 1e-12)
    if not difference <= rtol:
        raise GrowthError(f"the grown network's logits differ from those before by {difference:.1e} of the largest")
