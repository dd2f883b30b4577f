"""A state dict in which tensors with many zeros are a bitmap and the values that are not zero; exact.

`bitmap/NAME`: (ceil(n / 8),) uint8, the first element in the lowest bit, in C order; `values/NAME`: (nonzero,);
`shape/NAME`: int64; `dense/NAME`: a tensor that the bitmap would not make smaller.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from effvl_cli.techniques.continual.bits import pack, unpack

BITMAP, VALUES, SHAPE, DENSE = "bitmap/", "values/", "shape/", "dense/"
_BITS = {4: torch.int32, 2: torch.int16, 8: torch.int64, 1: torch.uint8}


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bitmaps and values of a state dict; a zero with a sign is a value."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        bits = plain.reshape(-1).view(_BITS[plain.element_size()]) != 0
        smaller = -(-len(bits) // 8) + int(bits.sum()) * plain.element_size() + 8 * plain.ndim
        if smaller < plain.numel() * plain.element_size():
            found[BITMAP + name] = pack(bits)
            found[VALUES + name] = plain.reshape(-1)[bits].clone()
            found[SHAPE + name] = torch.tensor(plain.shape)
        else:
            found[DENSE + name] = plain.clone()
    return found


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `packed`.

    Raises:
        ValueError: parts that do not belong together.
    """
    found = {key.removeprefix(DENSE): value for key, value in tensors.items() if key.startswith(DENSE)}
    for key, bitmap in tensors.items():
        if key.startswith(BITMAP):
            name = key.removeprefix(BITMAP)
            shape, values = [int(n) for n in tensors[SHAPE + name]], tensors[VALUES + name]
            bits = unpack(bitmap, math.prod(shape))
            if int(bits.sum()) != len(values):
                raise ValueError(f"{name} has {int(bits.sum())} bits and {len(values)} values")
            found[name] = torch.zeros(len(bits), dtype=values.dtype).masked_scatter_(bits, values).reshape(shape)
    return found
