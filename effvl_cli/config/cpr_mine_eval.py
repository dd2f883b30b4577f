"""Options of `effvl cpr-mine embed` and `effvl cpr-mine eval`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Lt

from effvl_cli.config.cpr_mine_train import EMBEDDED, ClipDataOptions, EncoderOptions
from effvl_cli.config.options import (
    VOLATILE,
    Checked,
    Count,
    Positive,
    Rate,
    RunInput,
    RunOptions,
    SaveOptions,
)

Decay = Annotated[float, Ge(0)]
Protocol = Literal["retrieval", "linear", "linear-features", "linear-video", "finetune"]
TRAINED_ON_VIDEO = ("linear-video", "finetune")


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """The clips that encoders are given; of an encoder from a run, the defaults are those that it was trained on."""

    panel: ClassVar[str] = "Clips"

    views: Annotated[
        tuple[str, ...], Doc("views, comma separated (default: those that RUN or --weights has encoders of)")
    ] = ()
    frames: Annotated[Positive | None, Doc("frames of a clip (default: the encoder's, else 32)")] = None
    stride: Annotated[
        Positive | None,
        Doc("frames of the video from one frame of a clip to the next (default: the encoder's, else 1)"),
    ] = None
    image_size: Annotated[Positive | None, Doc("side of the clips, px (default: the encoder's, else 128)")] = None
    crop: Annotated[
        Positive | None,
        Doc("side of the square that is cut from a frame before, px (default: the encoder's, else 224)"),
    ] = None
    windows: Annotated[
        Literal["center", "all"], Doc("the clip in the middle of a video, or the mean over all, half overlapping")
    ] = "all"
    window_step: Annotated[
        Positive | None, Doc("all: frames of the video from one clip's start to the next's (default: half a clip)")
    ] = None
    official_jitter: Annotated[
        bool, Doc("change the colours of test clips at random, as the official code does (not repeatable there)")
    ] = False
    eval_batch_size: Annotated[Positive, VOLATILE, Doc("clips per step on each device, outside training")] = 16


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(RunInput, RunOptions, ClipDataOptions, EncoderOptions, WindowOptions):
    """Write what RUN's encoders make of the clips of a data set."""

    panel: ClassVar[str] = "Embedding"
    in_place_of_run: ClassVar[str] = "weights"
    own: ClassVar[tuple[str, ...]] = ("weights", "views", "on_bad", "windows", "precision")
    common: ClassVar[tuple[str, ...]] = (
        *("run", "weights", "views", "data", "data_root", "split", "layer", "windows", "window_ids"),
        *("on_bad", "device", "out"),
    )

    split: Annotated[Literal["train", "val", "test"], Doc("videos")] = "train"
    layer: Annotated[
        Literal["embedding", "features"], Doc("the projection, which training and mining compare, or the backbone")
    ] = "embedding"
    window_ids: Annotated[bool, Doc("a row for each window, named ID#START, in place of their mean")] = False


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """linear-features: batch norm and a linear layer by SGD on the features of whole videos."""

    panel: ClassVar[str] = "Linear probe on features"

    probe_epochs: Annotated[Positive, Doc("epochs; the rate falls to a tenth after 60 and 80 % of them")] = 100
    probe_lr: Annotated[tuple[Rate, ...], Doc("peak learning rates that are tried")] = (0.1, 0.3, 1.0)
    probe_weight_decay: Annotated[
        tuple[Decay, ...], Doc("weight decays that are tried with each; a tenth of the training videos chooses")
    ] = (1e-4, 1e-3, 1e-2, 1e-1)
    probe_batch_size: Annotated[Positive, Doc("videos per step, over all processes")] = 1024


@dataclass(frozen=True, kw_only=True)
class LinearOptions:
    """linear-video: the same on augmented clips, below it a frozen backbone."""

    panel: ClassVar[str] = "Linear probe on clips"

    linear_epochs: Annotated[Positive, Doc("epochs; the rate falls to a tenth after 60 and 80 % of them")] = 100
    linear_lr: Annotated[Rate, Doc("peak learning rate of SGD")] = 0.1
    linear_weight_decay: Annotated[Decay, Doc("weight decay")] = 1e-3
    linear_batch_size: Annotated[Positive, Doc("clips per step, over all processes")] = 64


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(SaveOptions):
    """finetune: dropout and a linear layer, and the backbone at its own rate."""

    panel: ClassVar[str] = "Fine-tuning"

    finetune_epochs: Annotated[Positive, Doc("epochs; the rates fall to a tenth after 80 and 90 % of them")] = 500
    finetune_lr: Annotated[Rate, Doc("peak learning rate of the classifier, by Adam")] = 1e-3
    finetune_backbone_lr: Annotated[Rate, Doc("peak learning rate of the backbone")] = 1e-4
    finetune_weight_decay: Annotated[Decay, Doc("weight decay")] = 1e-3
    finetune_batch_size: Annotated[Positive, Doc("clips per step, over all processes")] = 64
    finetune_held_out: Annotated[
        float, Ge(0), Lt(0.5), Doc("share of the training videos that are kept out and choose the best epoch; 0: none")
    ] = 0.1
    finetune_dropout: Annotated[float, Ge(0), Lt(1), Doc("share of the features that are dropped")] = 0.9
    eval_every: Annotated[Count, Doc("epochs between accuracies on held-out videos; 0: twenty in all")] = 0


@dataclass(frozen=True, kw_only=True)
class EvalConfig(
    RunInput,
    RunOptions,
    ClipDataOptions,
    EncoderOptions,
    WindowOptions,
    ProbeOptions,
    LinearOptions,
    FinetuneOptions,
    Checked,
):
    """Measure RUN's encoders: retrieval, linear probes, fine-tuning; also on other data."""

    panel: ClassVar[str] = "Evaluation"
    in_place_of_run: ClassVar[str] = "weights"
    own: ClassVar[tuple[str, ...]] = ("weights", "views", "on_bad", "windows", "precision")
    common: ClassVar[tuple[str, ...]] = (
        *("run", "weights", "views", "protocols", "data", "data_root", "splits", "center", "crops"),
        *("finetune_epochs", "device", "seed", "out"),
    )

    protocols: Annotated[
        tuple[Protocol, ...],
        Doc("what is measured; linear: logistic regression, linear-features and linear-video: by SGD"),
    ] = ("retrieval", "linear")
    on_bad: Annotated[
        Literal["error", "skip", "skip-all"],
        Doc("an unreadable video: stop, as a gallery is complete, or leave out up to 1 %, at least one, or all"),
    ] = "error"  # type: ignore[assignment]  # of the shared option, which has a limit
    center: Annotated[
        Literal["own", "gallery", "none"],
        Doc("retrieval: mean that features lose: of each set, as in the official code, of the gallery, or none"),
    ] = "own"
    crops: Annotated[
        Literal["center", "five", "ten"] | None,
        Doc(
            "linear-video, finetune: crops of a test clip: the centre, the corners too, and all mirrored too "
            f"(default: ten; {EMBEDDED} center)"
        ),
    ] = None
    flip: Annotated[
        bool | None,
        Doc(f"linear-video, finetune: mirror half of the training clips (default: true; {EMBEDDED} false)"),
    ] = None
    splits: Annotated[
        tuple[Literal["1", "2", "3", "all"], ...],
        Doc("official splits whose mean is reported (default: the one of --data)"),
    ] = ()

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        for name in ("protocols", "splits", "views"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"--{name} names the same thing twice. Name each once")
        if "all" in self.splits and len(self.splits) > 1:
            raise ValueError("--splits names all and others. Give one or the other")
        left_and_right = self.data.partition(":")[0] == EMBEDDED  # are classes there
        if self.crops is None:
            object.__setattr__(self, "crops", "center" if left_and_right else "ten")
        if self.flip is None:
            object.__setattr__(self, "flip", not left_and_right)
