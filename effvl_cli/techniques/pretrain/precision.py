"""Where half precision must not be used."""

import torch
from torch import Tensor


def full(values: Tensor) -> Tensor:
    """bfloat16 and float16 as float32; wider types as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
