"""Modules without parameters that take the place of a removed unit, by the name in a manifest (ours, see `surgery`)."""

from typing import Any

from torch import Tensor, nn


class FirstInput(nn.Module):
    """Returns its first argument, whatever else it is called with."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """A tensor of any shape, unchanged."""
        return x


class FirstInputTuple(nn.Module):
    """Returns its first argument in a tuple, for a caller that takes the first of several outputs."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> tuple[Tensor]:
        """A tensor of any shape, unchanged."""
        return (x,)


# Activations that may follow the addition in a block and outlive its removal. Each is the identity for large inputs.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "mish": nn.Mish,
}
FURTHER_INPUTS, WRAPPED = "first-input", "first-input-tuple"
STAND_INS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    FURTHER_INPUTS: FirstInput,
    WRAPPED: FirstInputTuple,
    **ACTIVATIONS,
}
