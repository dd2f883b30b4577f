"""Options of `effvl cpr-mine` and `effvl cpr-mine train`."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Lt

from effvl_cli.config.options import (
    ARTEFACT,
    MEMORY,
    VOLATILE,
    Checked,
    DataOptions,
    Fraction,
    Positive,
    Rate,
    RunInput,
    RunOptions,
    TrainOptions,
    fill,
)

EMBEDDED = "moving-shapes"
OF_EMBEDDED: Mapping[str, Any] = {
    **{"model": "tiny3d", "frames": 8, "image_size": 20, "queue_size": 512, "batch_size": 64},
    **{"temperature": 0.1, "ema": 0.99, "lr_decay": "cosine", "epochs": 16, "pretrain_epochs": 12},
    **{"pretrain_lr": 2e-3, "augment": "shapes"},
}
"""What suits the embedded data."""
OF_VIDEOS: Mapping[str, Any] = {
    **{"model": "s3d", "frames": 32, "image_size": 128, "queue_size": 2048, "batch_size": 32},
    **{"temperature": 0.07, "ema": 0.999, "lr_decay": "step"},
    **{"pretrain_lr": 1e-3, "augment": "cpr"},
}
"""What CoCLR and CPR trained with on UCF101."""

Arm = Literal["infonce", "coclr", "cpr"]


@dataclass(frozen=True, kw_only=True)
class ClipDataOptions(DataOptions):
    """Which videos."""

    data: Annotated[str, Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets`")] = EMBEDDED
    on_bad: Annotated[
        Literal["error", "skip", "skip-all"],
        Doc("an unreadable video: stop, or take another in its place: for up to 1 %, at least one, or for all"),
    ] = "skip"  # type: ignore[assignment]  # of the shared option, which has a limit
    cache_views: Annotated[
        bool, VOLATILE, Doc("find the motion of flow:dis and the like once for each video, and keep it in --cache-dir")
    ] = False


@dataclass(frozen=True, kw_only=True)
class ClipOptions(Checked):
    """The clips that encoders see."""

    panel: ClassVar[str] = "Clips"

    frames: Annotated[Positive | None, Doc(f"frames of a clip (default: 32; {EMBEDDED} 8)")] = None
    stride: Annotated[Positive, Doc("frames of the video from one frame of a clip to the next")] = 1
    image_size: Annotated[Positive | None, Doc(f"side of the clips, px (default: 128; {EMBEDDED} 20)")] = None


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """How clips are changed for training."""

    panel: ClassVar[str] = "Clips"

    augment: Annotated[
        Literal["cpr", "shapes"] | None,
        Doc(
            f"cpr: crop, mirror, colours, blur, as in the official code; shapes: crop and gain (default: {EMBEDDED}'s)"
        ),
    ] = None
    flow_flip_sign: Annotated[
        bool, Doc("a mirrored flow turns its horizontal motion; the official code mirrors the picture alone")
    ] = True


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """Which networks."""

    panel: ClassVar[str] = "Model"

    model: Annotated[
        str | None, Doc(f"encoder of every view, see `effvl list models` (default: s3d; {EMBEDDED} tiny3d)")
    ] = None
    weights: Annotated[
        tuple[str, ...], ARTEFACT, Doc("VIEW=FILE or VIEW=RUN, comma separated: what encoders begin with")
    ] = ()


@dataclass(frozen=True, kw_only=True)
class ContrastOptions(Checked):
    """Queues and loss."""

    panel: ClassVar[str] = "Contrast"

    queue_size: Annotated[Positive | None, MEMORY, Doc(f"clips in the queues (default: 2048; {EMBEDDED} 512)")] = None
    temperature: Annotated[float | None, Gt(0), Doc(f"temperature of the loss (default: 0.07; {EMBEDDED} 0.1)")] = None
    ema: Annotated[
        float | None, Ge(0), Lt(1), Doc(f"momentum of the key encoder (default: 0.999; {EMBEDDED} 0.99)")
    ] = None
    loss: Annotated[
        Literal["milnce", "pernce"], Doc("several positives: summed inside the logarithm, or a mean of their losses")
    ] = "milnce"
    self_drop: Annotated[
        float, Ge(0), Doc("share of the steps in which the own key is no positive where there are others")
    ] = 0.9
    siblings: Annotated[
        Literal["positive", "exclude"],
        Doc("older keys of clips from the same video: positives, as in the official code, or left out of the loss"),
    ] = "positive"
    mined_weight: Annotated[Fraction, Doc("factor of mined positives in the sum of the positives")] = 1.0
    sync_bn: Annotated[bool, Doc("several processes: batch norm over all, in place of shuffling their keys")] = False

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.self_drop > 1:
            raise ValueError(f"--self-drop is {self.self_drop}. It is a share of the steps, at most 1")


@dataclass(frozen=True, kw_only=True)
class CascadeOptions(Checked):
    """The cascade that finds positives."""

    panel: ClassVar[str] = "Mining"

    cascade: Annotated[
        str | None, Doc("stages VIEW:SIZE, a share of the queue with a point, else a number: flow:0.5,rgb:64,flow")
    ] = None
    num_stages: Annotated[Positive, Doc("stages, in the views in turn")] = 7
    ratio: Annotated[Fraction, Doc("each stage keeps this share of the one before")] = 0.5
    main: Annotated[str | None, Doc("view of odd stages and of the last (default: the first frozen one)")] = None
    top_k: Annotated[Positive, Doc("positives of each clip")] = 5
    top_k_schedule: Annotated[
        tuple[str, ...], Doc("EPOCH:K, comma separated: K positives from that epoch on, e.g. 0:1,20:2,40:5")
    ] = ()
    progressive: Annotated[str | None, Doc("FIRST:LAST: K grows by one in equal parts of the epochs, e.g. 1:5")] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.top_k_schedule and self.progressive:
            raise ValueError("--top-k-schedule and --progressive set the same thing. Give one of them")
        pieces(self, 1)


@dataclass(frozen=True, kw_only=True)
class ClipTrainOptions(TrainOptions):
    """Optimisation as CoCLR did it."""

    batch_size: Annotated[Positive | None, Doc(f"clips per step, over all processes (default: 32; {EMBEDDED} 64)")] = (
        None  # type: ignore[assignment]  # of the shared option
    )
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Doc("optimizer")] = "adam"  # type: ignore[assignment]
    lr_decay: Annotated[
        Literal["cosine", "poly", "poly-concave", "step"] | None,
        Doc(f"decay over the training (default: step; {EMBEDDED} cosine)"),
    ] = None  # type: ignore[assignment]
    lr_milestones: Annotated[tuple[Fraction, ...], Doc("step: shares of the training")] = (0.8,)
    weight_decay: Annotated[float, Ge(0), Doc("weight decay")] = 1e-5
    warmup: Annotated[float, Ge(0), Lt(1), Doc("share of the training over which the rate rises")] = 0.0
    clip_grad: Annotated[float, Ge(0), Doc("largest gradient norm; 0: no clipping")] = 0.0


@dataclass(frozen=True, kw_only=True)
class _Training(
    RunOptions,
    ClipDataOptions,
    EncoderOptions,
    ClipTrainOptions,
    ClipOptions,
    AugmentOptions,
    ContrastOptions,
    CascadeOptions,
):
    """What the job and `train` have in common."""

    panel: ClassVar[str] = "Mining"
    derived: ClassVar[Mapping[str, str]] = {}
    """Origins of the values of options that were not given, once a config is built."""

    def __post_init__(self) -> None:
        """Fill what is not given; check the options against one another."""
        _fill(self)
        super().__post_init__()
        if self.accumulate > 1:
            raise ValueError(f"--accumulate is {self.accumulate}, and every batch enters the queues. Leave it out")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("the length is given twice. Give --steps or --epochs")
        if self.epochs is None and self.steps is None:
            raise ValueError("the length is missing. Give --epochs or --steps")


@dataclass(frozen=True, kw_only=True)
class CprMineConfig(_Training):
    """Train encoders of several views of videos, mine positives with them, train with these, measure."""

    panel: ClassVar[str] = "Views"
    common: ClassVar[tuple[str, ...]] = (
        *("views", "arms", "num_stages", "ratio", "cascade", "top_k"),
        *("data", "data_root", "model", "pretrain_epochs", "epochs", "batch_size", "device", "seed", "out"),
    )

    views: Annotated[tuple[str, ...], Doc("views of the clips, comma separated; the first is what figures are of")] = (
        "rgb",
        "gradflow",
    )
    order: Annotated[
        tuple[str, ...], Doc("views that are trained with mined positives, in turn (default: the first view)")
    ] = ()
    num_cycles: Annotated[Positive, Doc("times that --order is gone through")] = 1
    arms: Annotated[
        tuple[Arm, ...],
        Doc("trainings from the same start: infonce (none mined), coclr (by the other view alone), cpr (cascade)"),
    ] = ("infonce", "coclr", "cpr")
    pretrain_epochs: Annotated[Positive | None, Doc(f"epochs of InfoNCE before it, per view ({EMBEDDED}: 12)")] = None
    pretrain_lr: Annotated[Rate | None, Doc(f"its peak learning rate (default: 1e-3; {EMBEDDED} 2e-3)")] = None
    num_stages: Annotated[Positive, Doc("stages, in the views in turn")] = 3
    report_stages: Annotated[
        Positive, Doc("stages of the cascade over all training clips that the report is about")
    ] = 5

    windows: Annotated[
        Literal["center", "all"], Doc("measured clips: the one in the middle of a video, or the mean over all")
    ] = "center"
    eval_batch_size: Annotated[Positive, VOLATILE, Doc("clips per step on each device, outside training")] = 64

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        for name in ("views", "order", "arms"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"--{name} names the same thing twice. Name each once")
        if len(self.views) < 2:
            raise ValueError("--views names one view, and a cascade needs two. Give e.g. --views rgb,gradflow")
        if self.pretrain_epochs is None and not self.weights:
            raise ValueError("the first length is missing. Give --pretrain-epochs, or --weights of every view")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunInput, _Training):
    """Train one view's encoder, from RUN's or --weights or from scratch, with positives mined by frozen others."""

    panel: ClassVar[str] = "Views"
    run_optional: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = (
        *("view", "mine_with", "weights", "positives", "epochs", "steps", "lr", "lr_decay", "lr_milestones"),
        *("cascade", "num_stages", "ratio", "main", "top_k", "top_k_schedule", "progressive"),
    )
    common: ClassVar[tuple[str, ...]] = (
        *("run", "view", "mine_with", "weights", "num_stages", "ratio", "cascade", "top_k", "positives"),
        *("data", "data_root", "model", "epochs", "batch_size", "queue_size", "device", "seed", "out"),
    )

    view: Annotated[str, Doc("view whose encoder is trained")] = "rgb"
    mine_with: Annotated[
        tuple[str, ...], Doc("views of the frozen encoders that mining uses too, or none = InfoNCE (default: RUN's)")
    ] = ()
    positives: Annotated[
        str | None, ARTEFACT, Doc("positives.npz of `cpr-mine mine` for this data: fixed positives, without mining")
    ] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.view in self.mine_with:
            raise ValueError(f"--view and --mine-with both name {self.view}. Name the frozen views in --mine-with")
        if "none" in self.mine_with and len(self.mine_with) > 1:
            raise ValueError("--mine-with names none and views. Give one or the other")
        if self.positives and self.mine_with not in ((), ("none",)):
            raise ValueError("--positives and --mine-with both give positives. Give one of them")
        if self.positives and self.cascade:
            raise ValueError("--cascade mines positives, and --positives gives them. Give one of them")
        if not self.mine_with and not self.run and not self.positives:
            raise ValueError("nothing says where positives come from. Give RUN, --mine-with VIEW or --mine-with none")


def _fill(config: _Training) -> None:
    """Fill options that are not given with what suits the data."""
    table, origin = (OF_EMBEDDED, "default of the embedded data") if config.data == EMBEDDED else (OF_VIDEOS, "CoCLR")
    fill(config, {name: (value, origin) for name, value in table.items() if name != "epochs" or config.steps is None})


def pieces(config: CascadeOptions, epochs: int) -> tuple[tuple[int, int], ...]:
    """(first epoch, k) of each piece of a training with constant k, by ascending epoch; the first begins at 0.

    Raises:
        ValueError: an option cannot be read.
    """
    if config.progressive:
        first, last = _two_numbers(config.progressive, "--progressive")
        if not 1 <= first <= last:
            raise ValueError(
                f"--progressive is {config.progressive}. Give FIRST:LAST with 1 <= FIRST <= LAST, e.g. 1:5"
            )
        parts = last - first + 1
        return tuple((epochs * part // parts, first + part) for part in range(parts))
    if config.top_k_schedule:
        found = tuple(_two_numbers(item, "--top-k-schedule") for item in config.top_k_schedule)
        ascending = all(a[0] < b[0] for a, b in itertools.pairwise(found))
        if found[0][0] != 0 or not ascending or any(k < 1 for _, k in found):
            raise ValueError(
                f"--top-k-schedule is {','.join(config.top_k_schedule)}. Give EPOCH:K from epoch 0 on, ascending"
            )
        return found
    return ((0, config.top_k),)


def _two_numbers(text: str, option: str) -> tuple[int, int]:
    first, colon, second = text.partition(":")
    if not (colon and first.isdecimal() and second.isdecimal()):
        raise ValueError(f"{option} holds {text!r}. Write two whole numbers, e.g. 1:5")
    return int(first), int(second)
