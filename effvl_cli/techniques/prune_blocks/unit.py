"""What is removed: a module whose output has the shape and type of its input.

The units of arXiv 2312.16904 are residual blocks with an identity shortcut; here, any module that passes that test.
"""

from dataclasses import dataclass
from typing import Literal

Shortcut = Literal["identity", "identity+relu", "identity+activation", "none"]


@dataclass(frozen=True)
class Unit:
    """A removable module of a network.

    Attributes:
        path: of the module, as in `named_modules()`.
        stage: path of its stage, a series of blocks of equal shape: its container, or one around that where containers
            repeat.
        shortcut: its output at zero parameters: its input; its input after a ReLU, or after another activation; or
            something else (only where equal shapes are enough).
        relu: whether a ReLU must take its place, because its input may be negative.
        activation: name of another activation that takes its place, see stand_ins.py; empty where there is none.
        wrapped: whether it returns a tuple of its one output.
    """

    path: str
    stage: str
    shortcut: Shortcut = "identity"
    relu: bool = False
    activation: str = ""
    wrapped: bool = False

    @property
    def container(self) -> str:
        """Path of its parent module."""
        return self.path.rpartition(".")[0]
