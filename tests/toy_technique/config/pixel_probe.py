"""Options of `effvl pixel-probe`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_doc import Doc

from effvl_cli.config.options import DataOptions, Fraction, GuardOptions, Positive, Rate, RunOptions, SaveOptions


@dataclass(frozen=True, kw_only=True)
class PixelProbeConfig(RunOptions, DataOptions, GuardOptions, SaveOptions):
    """A linear classifier on the pixels that vary most."""

    panel: ClassVar[str] = "Probe"

    data: Annotated[str, Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets`")] = "digits"
    keep: Annotated[Fraction, Doc("share of the pixels that it sees")] = 0.5
    epochs: Annotated[Positive, Doc("passes over the training images")] = 3
    lr: Annotated[Rate, Doc("SGD learning rate, cosine to zero")] = 0.1
    batch_size: Annotated[Positive, Doc("images per step, over all processes")] = 64
