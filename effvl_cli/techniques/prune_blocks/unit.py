"""The thing that is removed: a module whose output has the shape and type of its input.

The units of arXiv 2312.16904 are residual blocks whose shortcut is the identity; here, whatever passes that test.
"""

from dataclasses import dataclass
from typing import Literal

Shortcut = Literal["identity", "identity+relu", "identity+activation", "none"]


@dataclass(frozen=True)
class Unit:
    """A removable module of a network.

    Attributes:
        path: of the module, as in `named_modules()`.
        stage: path of the container whose blocks it is one of: its own, or one around it where that repeats groups.
        shortcut: what is left of it when its parameters are zero: its input; its input after a ReLU, or after another
            activation; or something else (only with the laxer rule that asks for equal shapes and no more).
        relu: a ReLU must take its place, because its input may be negative; else nothing does.
        activation: name of the other activation that takes its place, see stand_ins.py; empty when there is none.
        wrapped: it returns a tuple of its one output.
    """

    path: str
    stage: str
    shortcut: Shortcut = "identity"
    relu: bool = False
    activation: str = ""
    wrapped: bool = False

    @property
    def container(self) -> str:
        """Path of the module that it is a child of."""
        return self.path.rpartition(".")[0]
