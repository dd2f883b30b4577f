"""Options of `effvl detect` and `effvl detect train`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Lt

from effvl_cli.config.detect_data import EMBEDDED, BoxDataOptions
from effvl_cli.config.detect_dedup import DedupOptions
from effvl_cli.config.detect_tag import TagOptions
from effvl_cli.config.options import (
    ARTEFACT,
    MEMORY,
    VOLATILE,
    Checked,
    Fraction,
    Positive,
    Rate,
    RunInput,
    RunOptions,
    TrainOptions,
    fill,
)

REFERENCE_BATCH = 16  # images of a step that mmdetection's schedules give their rate for
OF_TINY: Mapping[str, Any] = {
    **{"optimizer": "adamw", "lr": 1.5e-3, "lr_decay": "cosine", "warmup": 30.0, "batch_size": 4},
}
OF_OTHERS: Mapping[str, Any] = {
    **{"optimizer": "sgd", "lr_decay": "step", "warmup": 500.0, "batch_size": 8},
}
Overlap = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(Checked):
    """The network."""

    panel: ClassVar[str] = "Model"

    preset: Annotated[
        Literal["tiny", "light", "paper"],
        Doc("sizes of the network, and training that suits it: tiny for a CPU, light for edge devices, paper"),
    ] = "tiny"
    weights: Annotated[
        str | None,
        ARTEFACT,
        Doc(
            "what the network begins with: imagenet (backbone), a FILE, a run of `pretrain --method supervised`, or "
            "none = random (default: RUN's, else none)"
        ),
    ] = None
    download: Annotated[bool, VOLATILE, Doc("allow the download of weights that are not cached")] = False
    num_stages: Annotated[Positive, Doc("stages of the cascade; 1: Faster R-CNN")] = 3
    iou: Annotated[
        tuple[Overlap, ...], Doc("overlap from which a box is an object, of each stage (default: 0.5,0.6,0.7, ... 0.9)")
    ] = ()
    loss_weights: Annotated[
        tuple[Annotated[float, Ge(0)], ...],
        Doc("weights of the stages' losses (default: 1, halved from stage to stage)"),
    ] = ()
    class_agnostic: Annotated[bool, Doc("one box for all classes, else one for each")] = True
    box_loss_beta: Annotated[float, Gt(0), Doc("where the box loss turns from quadratic to linear")] = 1.0
    resample: Annotated[bool, Doc("draw training boxes anew before each stage, else before the first alone")] = True
    stage_grad_scale: Annotated[
        bool, Doc("divide the gradient that features get from the stages by their number, as detectron2 does")
    ] = False
    score_avg: Annotated[
        Literal["prob", "logit"], Doc("what is averaged over the stages: probabilities, or logits as mmdetection does")
    ] = "prob"
    head_width: Annotated[Positive | None, MEMORY, Doc("width of the heads (default: the preset's)")] = None
    min_size: Annotated[
        tuple[Positive, ...],
        MEMORY,
        Doc("shorter side of the images, px; of several, training draws one (default: as the preset's)"),
    ] = ()
    max_size: Annotated[Positive | None, MEMORY, Doc("longest side of the images, px (default: the preset's)")] = None
    norm: Annotated[
        Literal["auto", "frozen", "batch", "group"],
        Doc("normalisation; auto: frozen with weights; else batch, or group where a process has fewer than 4 images"),
    ] = "auto"
    roi_aligned: Annotated[bool, Doc("pool boxes without torchvision's shift by half a pixel")] = False


@dataclass(frozen=True, kw_only=True)
class ConditionOptions(TagOptions):
    """Day and night as classes of their own."""

    panel: ClassVar[str] = "Day and night"

    subclass: Annotated[
        bool | None,
        Doc(f"objects by day and by night are different classes in training (default: true; {EMBEDDED} false)"),
    ] = None
    merge: Annotated[
        Literal["max", "sum", "gated"],
        Doc("score of a class, of those by day and by night: the larger, the sum, or that of the image's tag"),
    ] = "max"


@dataclass(frozen=True, kw_only=True)
class DetectOptimisation(TrainOptions):
    """Optimisation, by the preset."""

    batch_size: Annotated[Positive | None, Doc("images per step, over all processes (default: 8; tiny 4)")] = None  # type: ignore[assignment]  # of the shared option
    optimizer: Annotated[Literal["adamw", "sgd"] | None, Doc("optimizer (default: sgd; tiny adamw)")] = None  # type: ignore[assignment]
    lr: Annotated[
        Rate | None, Doc(f"peak learning rate (default: 0.02 x batch size / {REFERENCE_BATCH}; tiny 0.0015)")
    ] = None  # type: ignore[assignment]
    lr_decay: Annotated[
        Literal["cosine", "poly", "poly-concave", "step"] | None,
        Doc("decay over the training (default: step; tiny cosine)"),
    ] = None  # type: ignore[assignment]
    lr_milestones: Annotated[tuple[Fraction, ...], Doc("step: shares of the training")] = (2 / 3, 11 / 12)
    weight_decay: Annotated[float, Ge(0), Doc("weight decay")] = 1e-4
    warmup: Annotated[
        float | None,
        Ge(0),
        Doc("steps over which the rate rises; below 1, a share of the training (default: 500; tiny 30)"),
    ] = None  # type: ignore[assignment]
    clip_grad: Annotated[float, Ge(0), Doc("largest gradient norm; 0: no clipping")] = 10.0
    select: Annotated[
        Literal["best", "last"], Doc("weights that are kept: best on validation images, or those after the last step")
    ] = "best"
    ema: Annotated[
        float | None, Gt(0), Lt(1), Doc("keep and evaluate a moving average of the weights with this momentum")
    ] = None
    sync_bn: Annotated[bool, Doc("several processes with GPUs: batch norm over the images of all of them")] = False


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How detections are measured."""

    panel: ClassVar[str] = "Evaluation"

    eval_batch_size: Annotated[Positive, VOLATILE, Doc("images per step on each device, outside training")] = 8
    num_pictures: Annotated[int, Ge(0), Doc("images whose detections are drawn")] = 8


@dataclass(frozen=True, kw_only=True)
class SkipOptions(DedupOptions):
    """Near-duplicates among the training images."""

    panel: ClassVar[str] = "Near-duplicates"

    dedup: Annotated[bool, Doc("leave out near-duplicates among the training images")] = True


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(
    RunOptions,
    BoxDataOptions,
    DetectorOptions,
    ConditionOptions,
    SkipOptions,
    DetectOptimisation,
    MeasureOptions,
):
    """What the job and `train` have in common."""

    panel: ClassVar[str] = "Training"
    derived: ClassVar[Mapping[str, str]] = {}
    """Origins of the values of options that were not given, once a config is built."""
    usual_epochs: ClassVar[int] = 12
    usual_period: ClassVar[int] = 1
    """Epochs from one evaluation to the next where --eval-every is 0."""

    num_images: Annotated[
        Positive | None, Doc("use so many images of each split, taken evenly: for a first try (default: all)")
    ] = None
    color_jitter: Annotated[
        bool, Doc("change brightness and contrast of training images at random; with subclasses, brightness by little")
    ] = False
    epoch_size: Annotated[
        Positive | None,
        Doc("images of an epoch (default: all; of sources with ratios, the first one's number by its share)"),
    ] = None

    def __post_init__(self) -> None:
        """Fill what is not given; check the options against one another."""
        _fill(self)
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise ValueError("the length is given twice. Give --steps or --epochs")


def _fill(config: TrainingOptions) -> None:
    """Fill options that are not given with what suits the preset."""
    table = dict(OF_TINY if config.preset == "tiny" else OF_OTHERS)
    table["subclass"] = config.data.partition(":")[0] != EMBEDDED  # whose images are few
    batch = config.batch_size or table["batch_size"]
    table.setdefault("lr", 0.02 * batch / REFERENCE_BATCH)
    if config.steps is None:
        table["epochs"] = config.usual_epochs
    origins = dict.fromkeys(table, f"preset {config.preset}") | {"subclass": "data"}
    fill(config, {name: (value, origins[name]) for name, value in table.items()})


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunInput, TrainingOptions):
    """Train one detector, RUN's further or a new one, and measure it."""

    panel: ClassVar[str] = "Training"
    run_optional: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("weights", "epochs", "steps", "lr", "lr_decay", "lr_milestones", "warmup")
    common: ClassVar[tuple[str, ...]] = (
        *("run", "data", "data_root", "preset", "weights", "num_stages", "subclass", "merge", "dedup", "min_size"),
        *("max_size", "epochs", "steps", "batch_size", "lr", "precision", "device", "seed", "out"),
    )


@dataclass(frozen=True, kw_only=True)
class DetectConfig(TrainingOptions):
    """Train detectors of one stage and of several on the same images, measure them by day and night, draw."""

    panel: ClassVar[str] = "Arms"
    usual_epochs: ClassVar[int] = 6
    usual_period: ClassVar[int] = 2
    common: ClassVar[tuple[str, ...]] = (
        *("arms", "data", "data_root", "preset", "weights", "num_stages", "subclass", "merge", "dedup", "min_size"),
        *("max_size", "epochs", "steps", "batch_size", "lr", "precision", "device", "seed", "out"),
    )

    arms: Annotated[
        tuple[Literal["single", "cascade"], ...],
        Doc("detectors that are trained: single (one stage), cascade (--num-stages); the last one is kept"),
    ] = ("single", "cascade")

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if len(set(self.arms)) < len(self.arms):
            raise ValueError("--arms names the same thing twice. Name each once")
