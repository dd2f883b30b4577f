"""Modules without parameters that take the place of a removed unit, by the name that a manifest keeps."""

from typing import Any

from torch import Tensor, nn


class FirstInput(nn.Module):
    """Its first argument, whatever else it is called with."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Tensor of any shape, as it is."""
        return x


class FirstInputTuple(nn.Module):
    """The same, for a caller that takes the first of several outputs."""

    def forward(self, x: Tensor, *others: Any, **named: Any) -> tuple[Tensor]:
        """Tensor of any shape, as it is."""
        return (x,)


# What may follow the addition in a residual block, and is therefore left of it. Each is the identity for large inputs.
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
