"""Owners and picks as bits, and digests of what a task computes with. Ours."""

import functools
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_BYTE = 8


class BitsError(ValueError):
    """Packed bits that cannot be what was written."""


def pack(bits: Tensor) -> Tensor:
    """Bools in C-order to uint8 of length ceil(n / 8), the first bit the lowest."""
    flat = bits.reshape(-1)
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % _BYTE)).view(-1, _BYTE)
    found = torch.zeros(len(padded), dtype=torch.uint8, device=bits.device)
    for place in range(_BYTE):
        found |= padded[:, place] << place
    return found


@functools.cache
def _bits_of_bytes() -> Tensor:
    """(256, 8) bool: the bits of every byte, the lowest first."""
    return (torch.arange(256).unsqueeze(1) >> torch.arange(_BYTE) & 1).bool()


def unpack(packed: Tensor, count: int) -> Tensor:
    """The reverse of `pack`.

    Args:
        packed: uint8, ceil(count / 8) long.
        count: number of bits.

    Returns:
        (count,) bool.

    Raises:
        BitsError: another length, or padding bits that are set.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 1 or len(packed) != -(-count // _BYTE):
        raise BitsError(f"{count} bits take {-(-count // _BYTE)} bytes, and there are {tuple(packed.shape)}")
    bits = _bits_of_bytes().to(packed.device).index_select(0, packed.int()).reshape(-1)
    if bool(bits[count:].any()):
        raise BitsError(f"bits are set behind the last of {count}")
    return bits[:count]


def num_planes(num_tasks: int) -> int:
    """Bits of an owner id: ceil(log2(T + 1))."""
    return num_tasks.bit_length()


def pack_owners(owner: Tensor, num_tasks: int) -> Tensor:
    """Owner ids 0..T of any shape to bit planes (B, ceil(n / 8)) uint8, the lowest bit first.

    Raises:
        BitsError: an id above T.
    """
    if owner.numel() and int(owner.max()) > num_tasks:
        raise BitsError(f"an owner is {int(owner.max())}, and there are {num_tasks} tasks")
    planes = [pack(owner >> place & 1) for place in range(num_planes(num_tasks))]
    return torch.stack(planes) if planes else torch.zeros(0, -(-owner.numel() // _BYTE), dtype=torch.uint8)


def unpack_owners(planes: Tensor, shape: torch.Size | tuple[int, ...], num_tasks: int) -> Tensor:
    """The reverse of `pack_owners`: uint8, or int16 beyond task 254.

    Raises:
        BitsError: another number of planes or bytes, padding bits that are set, or an id above T.
    """
    count = int(torch.Size(shape).numel())
    if planes.ndim != 2 or len(planes) != num_planes(num_tasks):
        raise BitsError(f"{num_tasks} tasks take {num_planes(num_tasks)} bit planes, and there are {len(planes)}")
    owner = torch.zeros(count, dtype=torch.uint8 if num_tasks <= 254 else torch.int16, device=planes.device)
    for place, plane in enumerate(planes):
        owner |= unpack(plane, count).to(owner.dtype) << place
    if count and int(owner.max()) > num_tasks:
        raise BitsError(f"an owner is {int(owner.max())}, and there are {num_tasks} tasks")
    return owner.reshape(shape)


def pack_picks(picks: Tensor, old: Tensor) -> Tensor:
    """Picks of the old weights only, in C-order: ceil(n_old / 8) bytes.

    Args:
        picks: bool, of the weight's shape in the task's geometry.
        old: bool, weights of earlier tasks.
    """
    return pack(picks[old])


def unpack_picks(packed: Tensor, old: Tensor) -> Tensor:
    """The reverse of `pack_picks`: bool, of the weight's shape, False off the old weights.

    Raises:
        BitsError: another number of bits, or padding bits that are set.
    """
    return torch.zeros_like(old).masked_scatter_(old, unpack(packed, int(old.count_nonzero())))


def content_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted (name, dtype, shape, little-endian bytes) of tensors."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(_bytes(value))
    return total.hexdigest()


def _bytes(value: Tensor) -> bytes:
    plain = value.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes()
