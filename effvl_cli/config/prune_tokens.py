"""Options of `effvl prune-tokens` and its verbs."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Le

from effvl_cli.config.options import (
    ARTEFACT,
    VOLATILE,
    Count,
    DataOptions,
    Fraction,
    ModelOptions,
    Positive,
    PromptOptions,
    Rate,
    RunOptions,
    SaveOptions,
)

Selector = Literal["predictor", "golden", "cls-attn", "random"]


@dataclass(frozen=True, kw_only=True)
class TowerOptions:
    """Where the tower is pruned."""

    panel: ClassVar[str] = "Pruning"

    layer: Annotated[
        Count | None, Doc("blocks run before pruning (default: 0 for tiny:clip, else a quarter of the blocks)")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Golden-ranking search of an image."""

    panel: ClassVar[str] = "Ranking"

    block: Annotated[Positive, Doc("side of the removal window, in patches")] = 1
    block_stride: Annotated[Positive, Doc("stride of the removal windows")] = 1
    group: Annotated[Count, Doc("tokens removed per round: 1 exact greedy, 0 one shot")] = 0
    rank_until: Annotated[Fraction, Doc("stop removing when this share is alive")] = 0.3
    candidate_tokens: Annotated[
        Positive | None, VOLATILE, Doc("tokens in one chunk of candidates (default: from the device's memory)")
    ] = None


@dataclass(frozen=True, kw_only=True)
class RankOptions(SearchOptions):
    """Golden rankings of the training images."""

    panel: ClassVar[str] = "Ranking"

    shots: Annotated[Positive, Doc("training images per class to rank, train and tune on")] = 16


@dataclass(frozen=True, kw_only=True)
class PredictorOptions:
    """Training of the predictor."""

    panel: ClassVar[str] = "Predictor"

    predictor_width: Annotated[Positive, Doc("channels that the token states are pooled to")] = 64
    predictor_epochs: Annotated[Positive, Doc("epochs over the ranked images")] = 50
    predictor_lr: Annotated[Rate, Doc("Adam learning rate, cosine to a tenth")] = 1e-3
    predictor_weight_decay: Annotated[float, Ge(0), Doc("Adam weight decay")] = 1e-4
    predictor_batch_size: Annotated[Positive, Doc("ranked images per step, over all processes")] = 64


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Prompt tuning with pruning active."""

    panel: ClassVar[str] = "Tuning"

    prompts: Annotated[Literal["none", "visual"], Doc("learnable tokens")] = "visual"
    num_visual_tokens: Annotated[Positive, Doc("visual prompt tokens per block")] = 2
    prompt_depth: Annotated[Positive, Doc("blocks with prompts of their own")] = 9
    tune_epochs: Annotated[Positive, Doc("epochs over the tuning images")] = 5
    tune_lr: Annotated[Rate, Doc("SGD learning rate")] = 0.01
    tune_batch_size: Annotated[Positive, Doc("images per step, over all processes")] = 16
    tune_objective: Annotated[Literal["ce", "distill", "ce+distill"], Doc("labels, the dense tower, or both")] = (
        "ce+distill"
    )
    tune_augment: Annotated[Literal["none", "flip", "crop-flip"], Doc("training transform")] = "none"


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Evaluation of pruned towers."""

    panel: ClassVar[str] = "Evaluation"

    num_golden: Annotated[Count, Doc("test images searched for the golden oracle; 0: none")] = 100
    eval_batch_size: Annotated[Positive, VOLATILE, Doc("test images per step on each device")] = 128


@dataclass(frozen=True, kw_only=True)
class _Base(TowerOptions, RunOptions, DataOptions, PromptOptions, ModelOptions):
    """What every step needs."""


@dataclass(frozen=True, kw_only=True)
class PruneTokensConfig(_Base, RankOptions, PredictorOptions, TuneOptions, EvalOptions, SaveOptions):
    """The whole job: rank, predict, tune, evaluate."""

    panel: ClassVar[str] = "Pruning"

    keep: Annotated[Fraction, Doc("share of the patch tokens that is kept")] = 0.6


@dataclass(frozen=True, kw_only=True)
class _OnRun:
    """A verb that starts from an earlier run."""

    panel: ClassVar[str] = "Run"

    run: Annotated[
        str | None, ARTEFACT, Doc("run folder or checkpoint of prune-tokens (default: the newest completed one)")
    ] = None


@dataclass(frozen=True, kw_only=True)
class RankConfig(_Base, RankOptions):
    """Search the golden rankings of the training images; needs no earlier run."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(_OnRun, _Base, RankOptions, PredictorOptions, SaveOptions):
    """Train a predictor on the rankings of RUN."""

    keep: Annotated[Fraction, Doc("share of the patch tokens that validation keeps")] = 0.6


@dataclass(frozen=True, kw_only=True)
class TuneConfig(_OnRun, _Base, TuneOptions, SaveOptions):
    """Tune prompts with the predictor of RUN pruning."""

    panel: ClassVar[str] = "Pruning"

    shots: Annotated[Positive, Doc("training images per class")] = 16
    keep: Annotated[Fraction, Doc("share of the patch tokens that is kept")] = 0.6


@dataclass(frozen=True, kw_only=True)
class EvalConfig(_OnRun, _Base, SearchOptions, EvalOptions):
    """Accuracy of selectors at keep rates, with RUN's predictor and prompts."""

    panel: ClassVar[str] = "Evaluation"

    keep: Annotated[tuple[Fraction, ...], Doc("kept shares, comma separated")] = (0.6,)
    selector: Annotated[tuple[Selector, ...], Doc("selectors, comma separated")] = (
        "predictor",
        "cls-attn",
        "random",
    )


@dataclass(frozen=True, kw_only=True)
class VizConfig(_OnRun, _Base):
    """Pictures of kept and dropped patches, with RUN's predictor."""

    keep: Annotated[tuple[Fraction, ...], Doc("kept shares, comma separated")] = (0.6,)
    num_images: Annotated[int, Ge(1), Le(64), Doc("test images shown")] = 8
