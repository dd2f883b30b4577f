"""Options of `effvl pretrain` and its verbs."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt

from effvl_cli.config.methods import EMBEDDED, METHODS, VIEW_METHODS, defaults_of, methods_with
from effvl_cli.config.options import (
    ARTEFACT,
    DATASET,
    Count,
    DataOptions,
    Fraction,
    ModelOptions,
    Positive,
    PromptOptions,
    Rate,
    RunOptions,
    TrainOptions,
    fill,
)

KEPT_AT = (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)
"""Shares of the budget whose checkpoints are kept, for `pretrain search`."""

_BUDGET = re.compile(r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?(?:e\+?[0-9]+)?)([kKMG]?)")
_SUFFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, kw_only=True)
class MethodTrainOptions(TrainOptions):
    """Optimisation, with defaults that follow the method; once built, only the final weight decay may be None."""

    lr: Annotated[
        Rate | None, Doc("peak learning rate (default: the method's at batch 256, in proportion to the batch)")
    ] = None  # type: ignore[assignment]  # of the shared option
    weight_decay: Annotated[float | None, Ge(0), Doc("weight decay (default: the method's)")] = None  # type: ignore[assignment]
    weight_decay_end: Annotated[
        float | None, Ge(0), Doc("final weight decay, reached along half a cosine (default: dino 0.4, else constant)")
    ] = None
    warmup: Annotated[
        float | None, Ge(0), Lt(1), Doc("share of the training over which the rate rises (default: the method's)")
    ] = None  # type: ignore[assignment]
    clip_grad: Annotated[float | None, Ge(0), Doc("largest gradient norm; 0: no clipping (default: the method's)")] = (
        None  # type: ignore[assignment]
    )
    clip_mode: Annotated[
        Literal["global", "per-param"] | None,
        Doc("clip by the norm of all gradients, or by that of each tensor (default: dino per-param, else global)"),
    ] = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """How much is spent, and on what."""

    panel: ClassVar[str] = "Budget"

    budget: Annotated[
        str | None,
        Doc("uncompressed forward passes to spend, e.g. 550k, 100M; --epochs E: what E uncompressed epochs cost"),
    ] = None
    schedule: Annotated[
        str | None,
        ARTEFACT,
        Doc("compression over time: none, constant:patch=P,keep=R, or a file (default: keep 0.25 until 0.8, then all)"),
    ] = None
    keep: Annotated[
        Fraction | None,
        Doc("share of patches kept, in training only; the whole key view (mocov3, dino) bounds the gain by 4x"),
    ] = None
    patch: Annotated[Positive | None, Doc("side of the patches while training, px: fewer tokens in all views")] = None
    baseline: Annotated[
        bool | None,
        Doc("also train uncompressed at the same budget, and compare (default: on the embedded data only)"),
    ] = None
    cost_model: Annotated[
        Literal["flops", "time"], Doc("what a unit of the budget counts: multiply-adds, or measured seconds")
    ] = "flops"
    compile: Annotated[bool, Doc("torch.compile the backbone, one graph for each sequence length")] = False
    keep_neighbours: Annotated[
        Positive, Doc("training states kept at each share that pretrain search measures, for its --average")
    ] = 1


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The pictures that the encoder compares."""

    panel: ClassVar[str] = "Views"

    image_size: Annotated[Positive | None, Doc("side of the views, px (default: the model's)")] = None
    size_policy: Annotated[
        Literal["strict", "snap"],
        Doc("where the patch size does not divide the view: an error, or the nearest view size that fits"),
    ] = "strict"
    patch_resize: Annotated[
        Literal["pi", "bilinear"], Doc("how the patch kernel is resized: pseudo-inverse, or as an image")
    ] = "pi"
    crop_min: Annotated[Fraction | None, Doc("smallest share of the picture in a crop (default: the method's)")] = None
    local_crops: Annotated[Count, Doc("dino: number of local views")] = 0
    local_size: Annotated[Fraction, Doc("dino: side of the local views, as a share of --image-size")] = 0.5
    aug_device: Annotated[
        Literal["auto", "batch", "worker"],
        Doc("crop in batches on the device from pictures in memory, or in loader processes (auto: as memory allows)"),
    ] = "auto"
    num_images: Annotated[Positive, Doc("pictures taken from an endless data set")] = 10_000


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """The objective."""

    panel: ClassVar[str] = "Method"

    derived: ClassVar[Mapping[str, str]] = {}
    """Origins of the values of options that were not given, once a config is built."""

    method: Annotated[
        Literal[*METHODS],  # type: ignore[valid-type]  # the rows are the choices
        Doc("simclr, mocov3, dino: on images alone, accelerated; clip: on captions; supervised: on labels"),
    ] = "simclr"
    temperature: Annotated[
        float | None, Gt(0), Doc("temperature of the loss (default: 0.2; dino: 0.1, the student's)")
    ] = None
    ema: Annotated[float | None, Gt(0), Lt(1), Doc("initial momentum of the key encoder (mocov3 0.99, dino 0.996)")] = (
        None
    )
    symmetric_loss: Annotated[bool, Doc("mocov3: loss in both directions, as in the released code")] = False
    moco_loss_scale: Annotated[
        float | None, Gt(0), Doc("mocov3: factor of the loss (default: twice the temperature)")
    ] = None
    stop_grad_patch_embed: Annotated[bool | None, Doc("freeze the patch kernel (default: mocov3 only)")] = None
    head_layers: Annotated[Positive | None, Doc("layers of the projector (default: 2; mocov3 3)")] = None
    head_hidden: Annotated[
        Positive | None,
        Doc("hidden width of the heads (default: 2048, mocov3 4096; at most 16 times the ViT's width)"),
    ] = None
    head_out: Annotated[Positive | None, Doc("width of the embedding (default: 128; mocov3, dino 256)")] = None
    prototypes: Annotated[
        Positive | None, Doc("dino: outputs of the head (default: 65536 from 100,000 images on, else 4096)")
    ] = None
    teacher_temperature: Annotated[
        float, Gt(0), Doc("dino: final temperature of the teacher, which starts at 0.04")
    ] = 0.04
    teacher_warmup: Annotated[
        float, Ge(0), Le(1), Doc("dino: share of the budget over which this temperature rises")
    ] = 0.0
    freeze_last: Annotated[
        float, Ge(0), Le(1), Doc("dino: share of the budget during which the last layer is frozen")
    ] = 0.01
    drop_path: Annotated[float, Ge(0), Lt(1), Doc("stochastic depth of the query view's last block")] = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1), Doc("supervised: label smoothing")] = 0.0
    augment: Annotated[
        Literal["none", "flip", "crop-flip", "pad-crop-flip", "rrc-flip"], Doc("clip, supervised: training transform")
    ] = "none"
    eval_data: Annotated[tuple[str, ...], DATASET, Doc("clip: further data sets to classify at the end")] = ()


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How features are evaluated."""

    panel: ClassVar[str] = "Evaluation"

    num_bank: Annotated[Positive, Doc("training pictures whose labels the k-NN and linear probes see")] = 5000
    eval_batch_size: Annotated[Positive, Doc("pictures per step on each device")] = 256


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(
    RunOptions,
    DataOptions,
    PromptOptions,
    ModelOptions,
    MethodTrainOptions,
    ProbeOptions,
    ViewOptions,
    LengthOptions,
    MethodOptions,
):
    """Train a network from scratch."""

    common: ClassVar[tuple[str, ...]] = (
        *("method", "data", "model", "epochs", "budget", "schedule", "keep"),
        *("batch_size", "lr", "precision", "device", "seed", "out"),
    )

    panel: ClassVar[str] = "Method"

    def __post_init__(self) -> None:
        """Check the options against one another."""
        _refuse_foreign(self, self.method)
        fill(self, defaults_of(self))
        if self.method in VIEW_METHODS:
            _check_invariance(self)
        elif (self.steps is None) == (self.epochs is None):
            raise ValueError("the length is missing or given twice. Give --steps or --epochs")

    @property
    def units(self) -> float | None:
        """`--budget` as a number."""
        return parse_budget(self.budget)

    @property
    def compares(self) -> bool:
        """Whether an uncompressed arm is trained too."""
        return self.data == EMBEDDED and self.schedule != "none" if self.baseline is None else self.baseline


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunOptions, DataOptions, ModelOptions, MethodTrainOptions, ProbeOptions, ViewOptions, MethodOptions):
    """Measure the gradient error of compressions along a training, and choose a schedule."""

    common: ClassVar[tuple[str, ...]] = (
        *("run", "along", "method", "data", "model", "budget", "pilot_budget", "pilot_schedule"),
        *(
            "candidate_patches",
            "candidate_keeps",
            "measure_at",
            "search_share",
            "criterion",
            "metric",
        ),
        *("order", "ties", "lookahead", "final_full", "device", "seed", "out"),
    )

    panel: ClassVar[str] = "Search"
    run_optional: ClassVar[bool] = True

    run: Annotated[
        str | None,
        ARTEFACT,
        Doc("run of pretrain to measure along; with --pilot-budget or --along accelerated only its options count"),
    ] = None
    budget: Annotated[str | None, Doc("budget of the training that the schedule is for (default: RUN's)")] = None
    along: Annotated[
        Literal["pilot", "accelerated"] | None,
        Doc(
            "measure along RUN or a pilot, or along the accelerated training: measure, choose, go on; it is kept "
            "(default: accelerated, unless RUN or --pilot-budget is given)"
        ),
    ] = None
    pilot_budget: Annotated[
        Fraction | None, Doc("train a pilot for this share of the budget (--along pilot without RUN: 0.1)")
    ] = None
    pilot_schedule: Annotated[
        str,
        ARTEFACT,
        Doc("compression of the pilot, and of the start --along accelerated: mixed (all in turn), none, .., a file"),
    ] = "mixed"
    candidates: Annotated[
        str | None,
        ARTEFACT,
        Doc("YAML list of {patch, keep_q, keep_k}, in place of patches x keeps"),
    ] = None
    candidate_patches: Annotated[tuple[Positive, ...], Doc("patch sizes to compare, px (default: all that fit)")] = ()
    candidate_keeps: Annotated[tuple[Fraction, ...], Doc("keep rates to compare at each patch size")] = (1.0,)
    measure_at: Annotated[
        tuple[Annotated[float, Ge(0), Le(1)], ...],
        Doc("shares of the training whose checkpoints are measured; 0 is measured, but not used"),
    ] = KEPT_AT
    num_grad_batches: Annotated[
        int | None, Ge(4), Doc("batches that each gradient is measured on (default: 4 to 32, as --search-share pays)")
    ] = None
    search_share: Annotated[
        Fraction, Doc("what gradients and pilot may cost, as a share of the budget; says how many batches")
    ] = 0.15
    grad_batch_size: Annotated[Positive | None, Doc("images in each (default: --batch-size; bias depends on it)")] = (
        None
    )
    grad_scope: Annotated[Literal["backbone", "all", "last-block"], Doc("parameters whose gradients are compared")] = (
        "backbone"
    )
    metric: Annotated[
        Literal["plain", "adam"], Doc("measure of gradients: as they are, or as AdamW's second moments scale them")
    ] = "plain"
    criterion: Annotated[
        Literal["ca-mse", "progress"],
        Doc("choose by the smallest squared bias + cost-adjusted variance, or by the largest progress per cost"),
    ] = "ca-mse"
    order: Annotated[
        Literal["path", "ratchet", "free"],
        Doc("costs never fall along the schedule: the best sequence, or stage by stage; free: they may fall"),
    ] = "path"
    ties: Annotated[
        Literal["cheaper", "dearer", "none"],
        Doc("within one paired standard error of the chosen compression, take the cheaper or the dearer one"),
    ] = "cheaper"
    average: Annotated[
        Positive, Doc("mean of the gradients of so many states, 1 % of the training apart, each with its own batches")
    ] = 1
    lookahead: Annotated[
        int,
        Ge(0),
        Le(8),
        Doc("try up to so many nearly equal compressions at a stage, judged by 20-NN on validation images; 0: none"),
    ] = 0
    lookahead_share: Annotated[
        float, Gt(0), Le(0.1), Doc("length of the first trials, as a share of the budget; longer ones are twice that")
    ] = 0.01
    early_stop: Annotated[
        Count, Doc("after every so many batches give up compressions that are clearly worse than the best; 0: never")
    ] = 4
    final_full: Annotated[float, Ge(0), Lt(1), Doc("final share of the budget that is left uncompressed")] = 0.1

    def __post_init__(self) -> None:
        """Check the options against one another."""
        if self.method not in VIEW_METHODS:
            raise ValueError(f"--method is {self.method}, which has no views. Give one of {', '.join(VIEW_METHODS)}")
        fill(self, defaults_of(self))
        parse_budget(self.budget)
        if self.candidates and self.candidate_patches:
            raise ValueError("--candidates and --candidate-patches are both given. Leave one out")
        if not any(self.measure_at) or not {*self.measure_at} <= {*KEPT_AT}:
            shown, kept = (",".join(f"{t:g}" for t in row) for row in (self.measure_at, KEPT_AT))
            raise ValueError(
                f"--measure-at is {shown!r}. Give some of {kept}, at which checkpoints are kept, not 0 alone"
            )
        if self.grad_batch_size == 1:
            raise ValueError("--grad-batch-size is 1. A contrastive loss needs at least 2 images")
        if self.lookahead == 1:
            raise ValueError("--lookahead is 1, which leaves no choice. Give 2 to 8, or 0 for none")
        if self.closed_loop:
            self._check_loop()

    def _check_loop(self) -> None:
        if self.pilot_budget is not None:
            raise ValueError("--pilot-budget and --along accelerated are both given. Leave one out")
        if not self.loop_shares:
            shown = ",".join(f"{t:g}" for t in self.measure_at)
            raise ValueError(
                f"--measure-at is {shown!r}. Give a share between 0 and the uncompressed end, "
                f"{1 - self.final_full:g}, to choose at"
            )

    @property
    def closed_loop(self) -> bool:
        """Whether the accelerated training is measured as it goes."""
        if self.along is None:
            return self.run is None and self.pilot_budget is None
        return self.along == "accelerated"

    @property
    def pilot_share(self) -> float:
        """Budget of the pilot as a share; 0: there is none."""
        if self.closed_loop:
            return 0.0
        return self.pilot_budget or (0.0 if self.run else 0.1)

    @property
    def batches(self) -> int:
        """`--num-grad-batches`, once it is settled."""
        assert self.num_grad_batches is not None
        return self.num_grad_batches

    @property
    def loop_shares(self) -> list[float]:
        """Shares at which a training that is measured as it goes is measured: what is chosen there is used."""
        return sorted({t for t in self.measure_at if 0 < t < 1 - self.final_full})

    @property
    def units(self) -> float | None:
        """`--budget` as a number."""
        return parse_budget(self.budget)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunOptions, DataOptions, ProbeOptions):
    """Evaluate the features of a trained backbone."""

    panel: ClassVar[str] = "Evaluation"

    run: Annotated[
        str | None, ARTEFACT, Doc("run folder or checkpoint of pretrain (default: the newest completed one)")
    ] = None
    num_images: Annotated[Positive, Doc("pictures taken from an endless data set")] = 10_000
    sgd_epochs: Annotated[Count, Doc("epochs of a linear probe by SGD on augmented pictures; 0: none")] = 0
    sgd_lr: Annotated[
        tuple[Rate, ...], Doc("its learning rates at batch 256, tried together; the best on validation counts")
    ] = (*(0.1, 0.3, 1.0, 3.0),)
    sgd_batch_size: Annotated[Positive, Doc("its pictures per step")] = 256
    cls_blocks: Annotated[Positive, Doc("number of last blocks whose CLS tokens are concatenated (DINO ViT-S: 4)")] = 1
    save_features: Annotated[
        bool, Doc("write the features of every picture of --feature-split, as one view for `effvl cpr-mine mine`")
    ] = False
    feature_split: Annotated[Literal["train", "val", "test"], Doc("of which pictures")] = "train"
    view_name: Annotated[str | None, Doc("name of the view and of its file (default: the method of RUN)")] = None


def _refuse_foreign(config: PretrainConfig, method: str) -> None:
    """Refuse an option of another method instead of ignoring it."""
    for item in dataclasses.fields(config):
        known = methods_with(item.name)
        if method not in known and getattr(config, item.name) != item.default:
            flag = item.name.replace("_", "-")
            raise ValueError(
                f"--{flag} belongs to --method {', '.join(known)}, and the method is {method}. Leave it out"
            )


def _check_invariance(config: PretrainConfig) -> None:
    if config.units is not None and config.epochs is not None:
        raise ValueError("the length is given twice. Give --budget or --epochs")
    if config.units is None and config.epochs is None and config.data != EMBEDDED:
        raise ValueError("the length is missing. Give --budget (e.g. 550k, 100M) or --epochs")
    if config.schedule is not None and (config.keep is not None or config.patch is not None):
        raise ValueError("--schedule and --keep or --patch set the same thing. Give one or the other")
    if config.batch_size < 2:
        raise ValueError(f"--batch-size is {config.batch_size}. A contrastive loss needs at least 2 images a process")


def parse_budget(text: str | None) -> float | None:
    """E.g. "550k" to 550000.0.

    Raises:
        ValueError: not a positive number with k, M or G.
    """
    if text is None:
        return None
    found = _BUDGET.fullmatch(text.strip())
    value = float(found[1]) * _SUFFIX[found[2]] if found else 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"--budget is {text[:40]!r}. Give a number above 0, e.g. 550000, 550k or 100M")
    return value
