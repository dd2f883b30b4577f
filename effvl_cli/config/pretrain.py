"""Options of `effvl pretrain`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt

from effvl_cli.config.options import (
    GROWABLE,
    Count,
    DataOptions,
    ModelOptions,
    Positive,
    PromptOptions,
    Rate,
    RunOptions,
    SaveOptions,
)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(SaveOptions):
    """Optimisation, the same words for every command."""

    panel: ClassVar[str] = "Training"

    epochs: Annotated[Positive | None, GROWABLE, Doc("passes over the training data (or give --steps)")] = None
    steps: Annotated[Positive | None, GROWABLE, Doc("optimizer steps (or give --epochs)")] = None
    batch_size: Annotated[Positive, Doc("samples per step, over all processes")] = 64
    accumulate: Annotated[Positive, Doc("backward passes per step")] = 1
    optimizer: Annotated[Literal["adamw", "sgd", "muon"], Doc("muon: AdamW for all but the block matrices")] = "adamw"
    lr: Annotated[Rate, Doc("peak learning rate")] = 1e-3
    weight_decay: Annotated[float, Ge(0), Doc("decay of matrices")] = 0.02
    momentum: Annotated[float, Ge(0), Lt(1), Doc("momentum of sgd and muon")] = 0.9
    warmup: Annotated[float, Ge(0), Lt(1), Doc("share of the steps over which the rate rises")] = 0.05
    clip_grad: Annotated[float, Ge(0), Doc("largest gradient norm; 0: no clipping")] = 1.0
    eval_every: Annotated[Count, Doc("steps between evaluations; 0: only at the end")] = 0


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunOptions, DataOptions, PromptOptions, ModelOptions, TrainOptions):
    """Train a network from scratch."""

    panel: ClassVar[str] = "Method"

    method: Annotated[Literal["clip", "supervised"] | None, Doc("training objective")] = None
    token_keep: Annotated[float, Gt(0), Le(1), Doc("clip: share of patch tokens kept while training")] = 1.0
    label_smoothing: Annotated[float, Ge(0), Lt(1), Doc("supervised: label smoothing")] = 0.0
    augment: Annotated[Literal["none", "flip", "crop-flip"], Doc("training transform")] = "none"
    eval_data: Annotated[tuple[str, ...], Doc("clip: further data sets to classify at the end")] = ()

    def __post_init__(self) -> None:
        """What no single option can say."""
        if self.method is None:
            raise ValueError("--method is missing. Give one of: clip (image-text InfoNCE), supervised (cross entropy)")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("the length is missing or given twice. Give --steps or --epochs")
