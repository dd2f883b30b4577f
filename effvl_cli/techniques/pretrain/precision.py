"""Where half precision must not be used.

Ours: losses and statistics are float32 whatever autocast makes of the networks (Micikevicius et al., arXiv
1710.03740).
"""

import torch
from torch import Tensor


def full(values: Tensor) -> Tensor:
    """Tensors of any shape: bfloat16 and float16 as float32, wider types as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
