"""Options of `effvl prune-tokens` and its verbs."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_doc import Doc
from annotated_types import Ge, Le

from effvl_cli.config.options import (
    MEMORY,
    VOLATILE,
    Checked,
    Count,
    DataOptions,
    Fraction,
    GuardOptions,
    ModelOptions,
    Positive,
    PromptOptions,
    Rate,
    RunInput,
    RunOptions,
    SaveOptions,
)
from effvl_cli.core.errors import UsageError

Shots = Positive | Literal["all"]
Selector = Literal["predictor", "golden", "cls-attn", "evit", "tome", "random", "grid", "center", "norm", "taylor"]
# Selectors fit for deployment: no oracle, no backward pass.
Timed = Literal["predictor", "cls-attn", "evit", "tome", "random", "grid", "center", "norm"]
LEAST_DIVERSITY = 0.1  # as in techniques/prune_tokens/keeping.py


@dataclass(frozen=True, kw_only=True)
class TowerOptions(Checked):
    """Where the tower is pruned."""

    panel: ClassVar[str] = "Pruning"

    layer: Annotated[
        Count | None, Doc("blocks run before pruning (default: 0 for tiny:clip, else a quarter of the blocks)")
    ] = None
    dropped: Annotated[
        Literal["auto", "discard", "fuse", "average", "merge"],
        Doc(
            "what becomes of the other patches: nothing, one token for all, averaged into the most similar kept one, "
            "or merged into it, so that it counts for more; auto: discard or merge, by validation images"
        ),
    ] = "auto"
    diversity: Annotated[
        float | None,
        Ge(0),
        Doc(
            "0: the highest scores stay; 0.1 and more: those that stand for all, weighted by scores / this "
            "(default: 2 with average and merge, else 0)"
        ),
    ] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.diversity and not LEAST_DIVERSITY <= self.diversity < math.inf:
            raise ValueError(f"--diversity is {self.diversity:g}. Give 0, or {LEAST_DIVERSITY:g} and more")


@dataclass(frozen=True, kw_only=True)
class KeepOptions:
    """How many patches stay."""

    panel: ClassVar[str] = "Pruning"
    alternatives: ClassVar[tuple[str, ...]] = ("keep", "num_keep")

    keep: Annotated[Fraction, Doc("share of the patch tokens to keep")] = 0.6
    num_keep: Annotated[Positive | None, Doc("number of patch tokens to keep, in place of --keep")] = None


@dataclass(frozen=True, kw_only=True)
class KeepListOptions:
    """How many patches stay: one arm for each number."""

    panel: ClassVar[str] = "Pruning"
    alternatives: ClassVar[tuple[str, ...]] = ("keep", "num_keep")

    keep: Annotated[tuple[Fraction, ...], Doc("shares of the patch tokens to keep, comma separated")] = (0.6,)
    num_keep: Annotated[
        tuple[Positive, ...] | None, Doc("numbers of patch tokens to keep, comma separated, in place of --keep")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Checked):
    """Golden-ranking search of an image."""

    panel: ClassVar[str] = "Ranking"
    alternatives: ClassVar[tuple[str, ...]] = ("group", "group_share")

    scorer: Annotated[
        Literal["feature", "label", "maxconf", "taylor"],
        Doc("damage is measured on the embedding, on the label's or the largest posterior, or estimated by gradients"),
    ] = "feature"
    score_space: Annotated[
        Literal["log", "prob", "logit"], Doc("label and maxconf as log-posterior, posterior, or scaled cosine")
    ] = "log"
    maxconf_anchor: Annotated[
        Literal["each", "first"], Doc("maxconf: class of each candidate, or of the first one for all")
    ] = "each"
    feature_space: Annotated[
        Literal["proj", "pre-proj"], Doc("embedding of feature and taylor: after or before the last projection")
    ] = "proj"
    block: Annotated[Positive, Doc("side of the removal window, in patches")] = 1
    block_stride: Annotated[Positive, Doc("stride of the removal windows")] = 1
    group: Annotated[Count, Doc("tokens removed per round: 1 exact greedy, 0 one shot")] = 0
    group_share: Annotated[
        Fraction | None, Doc("tokens removed per round as a share of the image's, in place of --group, e.g. 0.06")
    ] = None
    rank_until: Annotated[Fraction, Doc("stop removing when this share is left")] = 0.3
    shortlist: Annotated[
        Count, Doc("evaluate only the patches that matter least by gradients, this many times --group; 0: all of them")
    ] = 0
    candidate_tokens: Annotated[
        Positive | None, MEMORY, VOLATILE, Doc("tokens in one chunk of candidates (default: from the device's memory)")
    ] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        by_class = self.scorer in ("label", "maxconf")
        if self.block_stride > self.block:
            raise ValueError(
                f"--block-stride is {self.block_stride}, and windows of --block {self.block} would leave patches out. "
                f"Give 1 to {self.block}"
            )
        if self.score_space != "log" and not by_class:
            raise ValueError(f"--score-space is {self.score_space}, which is for --scorer label or maxconf")
        if self.maxconf_anchor != "each" and self.scorer != "maxconf":
            raise ValueError(f"--maxconf-anchor is {self.maxconf_anchor}, which is for --scorer maxconf")
        if self.feature_space != "proj" and by_class:
            raise ValueError(f"--feature-space is {self.feature_space}, which is for --scorer feature or taylor")
        if self.shortlist and (self.scorer == "taylor" or not (self.group or self.group_share)):
            raise ValueError(
                f"--shortlist is {self.shortlist}, and needs rounds of evaluated candidates. "
                "Give --group 1 or more, and another --scorer than taylor"
            )


@dataclass(frozen=True, kw_only=True)
class ShotOptions:
    """How many training images."""

    panel: ClassVar[str] = "Data"

    shots: Annotated[Shots, Doc("training images per class to rank, train and tune on")] = 16


@dataclass(frozen=True, kw_only=True)
class RankOptions(SearchOptions, ShotOptions):
    """Golden rankings of the training images."""

    panel: ClassVar[str] = "Ranking"

    audit: Annotated[bool, Doc("on 16 images, compare this search, one shot and 10 a round with the exact one")] = False


@dataclass(frozen=True, kw_only=True)
class PredictorOptions(Checked):
    """Training of the predictor."""

    panel: ClassVar[str] = "Predictor"

    predictor: Annotated[
        Literal["mixer", "mlp", "linear"], Doc("network; mixer works for one number of patches only")
    ] = "mixer"
    predictor_width: Annotated[Positive, Doc("channels that mixer pools the token states to")] = 64
    predictor_loss: Annotated[
        Literal["listwise", "keepset", "pairwise", "mse"], Doc("loss on the ranking; keepset: as in the official code")
    ] = "listwise"
    predictor_keeps: Annotated[
        tuple[Fraction, ...] | None, Doc("kept shares that keepset learns, comma separated (default: --keep)")
    ] = None
    predictor_flip: Annotated[
        bool, Doc("learn from the mirrored images too, by their mirrored rankings: twice as many, and no more search")
    ] = False
    predictor_epochs: Annotated[Positive, Doc("epochs over the ranked images")] = 50
    predictor_lr: Annotated[Rate, Doc("Adam learning rate, cosine to a tenth")] = 1e-3
    predictor_weight_decay: Annotated[float, Ge(0), Doc("Adam weight decay")] = 1e-4
    predictor_batch_size: Annotated[Positive, Doc("ranked images per step, over all processes")] = 64

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        width = PredictorOptions.predictor_width
        if self.predictor_width != width and self.predictor != "mixer":
            raise ValueError(
                f"--predictor-width is {self.predictor_width}, which is for --predictor mixer. Leave it out, or {width}"
            )
        if self.predictor_keeps and self.predictor_loss != "keepset":
            raise ValueError(
                f"--predictor-keeps is for --predictor-loss keepset, and the loss is {self.predictor_loss}"
            )


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Checked):
    """Prompt tuning with pruning active."""

    panel: ClassVar[str] = "Tuning"

    prompts: Annotated[
        Literal["none", "visual", "text", "independent", "coupled"],
        Doc("learnable tokens: none, in one tower, independent in both, or visual ones mapped from the text's"),
    ] = "coupled"
    num_visual_tokens: Annotated[Positive, Doc("visual prompt tokens per block")] = 2
    num_text_tokens: Annotated[Positive, Doc("text prompt tokens per block")] = 2
    prompt_depth: Annotated[Positive, Doc("number of blocks with their own prompts, in each tower")] = 9
    prompt_start: Annotated[
        Count | None,
        Doc("first block with visual prompts (default: --layer, so that the predictor reads what it was trained on)"),
    ] = None
    tune_epochs: Annotated[Positive, Doc("epochs over the tuning images")] = 5
    tune_lr: Annotated[Rate, Doc("SGD learning rate")] = 0.01
    tune_batch_size: Annotated[Positive, Doc("images per step, over all processes")] = 16
    tune_objective: Annotated[Literal["ce", "distill", "ce+distill"], Doc("labels, the dense tower, or both")] = (
        "ce+distill"
    )
    tune_augment: Annotated[Literal["none", "flip", "crop-flip"], Doc("training transform")] = "none"
    tune_keeps: Annotated[
        Literal["fixed", "mix"],
        Doc("keep rate while tuning: --keep, or one drawn per step, for prompts that serve any rate"),
    ] = "fixed"

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        has_text = self.prompts in ("text", "independent", "coupled")
        if has_text and self.tune_objective == "distill":
            raise ValueError(
                f"--prompts {self.prompts} need labels: the dense tower says nothing about texts. "
                "Give --tune-objective ce or ce+distill, or --prompts visual"
            )
        counts = {
            "text": ("num_text_tokens", TuneOptions.num_text_tokens, has_text or self.prompts == "none"),
            "visual": ("num_visual_tokens", TuneOptions.num_visual_tokens, self.prompts != "text"),
        }
        for tower, (name, usual, used) in counts.items():
            if getattr(self, name) != usual and not used:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}, and --prompts {self.prompts} has none in "
                    f"the {tower} tower. Leave it out, or {usual}"
                )
        if self.prompts == "coupled" and self.num_visual_tokens != self.num_text_tokens:
            raise ValueError(
                f"--prompts coupled maps each text token to a visual one, and --num-visual-tokens is "
                f"{self.num_visual_tokens}, --num-text-tokens {self.num_text_tokens}. Give both the same number"
            )


@dataclass(frozen=True, kw_only=True)
class SelectorOptions:
    """What the selectors read."""

    panel: ClassVar[str] = "Pruning"

    cls_block: Annotated[
        Literal["own", "prev"], Doc("CLS attention of the block after the pruning point, or before it")
    ] = "own"


@dataclass(frozen=True, kw_only=True)
class EvalOptions(SelectorOptions):
    """Evaluation of pruned towers."""

    panel: ClassVar[str] = "Evaluation"

    num_golden: Annotated[Count, Doc("test images searched for the golden oracle; 0: none")] = 100


@dataclass(frozen=True, kw_only=True)
class TowerConfig(TowerOptions, RunOptions, DataOptions, PromptOptions, ModelOptions):
    """What every step needs."""


@dataclass(frozen=True, kw_only=True)
class JudgedConfig(TowerConfig, GuardOptions):
    """A step whose result means nothing where the dense tower does not know its classes."""

    panel: ClassVar[str] = "Evaluation"

    eval_batch_size: Annotated[Positive, VOLATILE, Doc("images per step on each device, outside training")] = 128


@dataclass(frozen=True, kw_only=True)
class PruneTokensConfig(
    KeepOptions, JudgedConfig, RankOptions, PredictorOptions, TuneOptions, EvalOptions, SaveOptions
):
    """The whole job: rank, predict, tune, evaluate."""

    common: ClassVar[tuple[str, ...]] = (
        *("keep", "data", "model", "weights", "download", "shots", "layer"),
        *("templates", "prompts", "device", "seed", "out"),
    )


@dataclass(frozen=True, kw_only=True)
class RankConfig(JudgedConfig, RankOptions):
    """Search the golden rankings of the training images; needs no earlier run."""

    panel: ClassVar[str] = "Ranking"

    sample_shard: Annotated[str, Doc("i/n: every n-th image from the i-th on; the cache joins the shards")] = "0/1"


@dataclass(frozen=True, kw_only=True)
class PredictConfig(KeepOptions, RunInput, JudgedConfig, RankOptions, PredictorOptions, SaveOptions):
    """Train a predictor on the rankings of RUN; validation keeps `--keep` of the patches."""


@dataclass(frozen=True, kw_only=True)
class TuneConfig(KeepOptions, RunInput, JudgedConfig, TuneOptions, ShotOptions, SaveOptions):
    """Tune prompts while the predictor of RUN prunes."""

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.prompts == "none":
            raise ValueError("--prompts is none, and nothing else is tuned. Give visual, text, independent or coupled")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(KeepListOptions, RunInput, JudgedConfig, SearchOptions, EvalOptions):
    """Measure the accuracy of selectors at keep rates, with RUN's predictor and prompts."""

    panel: ClassVar[str] = "Evaluation"

    selector: Annotated[tuple[Selector, ...], Doc("selectors, comma separated")] = (
        *("predictor", "cls-attn", "evit", "tome", "grid", "random"),
    )


@dataclass(frozen=True, kw_only=True)
class VizConfig(KeepListOptions, RunInput, TowerConfig, SearchOptions, SelectorOptions):
    """Draw kept, dropped and merged patches, with RUN's predictor."""

    panel: ClassVar[str] = "Pictures"

    selector: Annotated[tuple[Selector, ...], Doc("selectors, comma separated; golden searches the images shown")] = (
        *("predictor", "cls-attn", "random"),
    )
    num_images: Annotated[int, Ge(1), Le(64), Doc("test images shown")] = 8


@dataclass(frozen=True, kw_only=True)
class ExportConfig(KeepOptions, RunInput, TowerConfig):
    """Export RUN's pruned tower to files for use elsewhere."""

    panel: ClassVar[str] = "Export"

    format: Annotated[
        tuple[Literal["state", "pt2", "onnx"], ...],
        Doc("what to write, comma separated: for load_pruned, a torch.export program, ONNX"),
    ] = ("state", "pt2", "onnx")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(KeepListOptions, RunInput, TowerConfig, SelectorOptions):
    """Time pruned towers against the dense one."""

    panel: ClassVar[str] = "Measurement"

    selector: Annotated[tuple[Timed, ...], Doc("selectors, comma separated")] = ("predictor",)
    batch_size: Annotated[
        tuple[Positive, ...], Doc("batch sizes, comma separated; those that do not fit in memory are left out")
    ] = (*(1, 32, 256),)
    compile: Annotated[bool, Doc("torch.compile all towers, the dense one too")] = False
    channels_last: Annotated[bool, Doc("use the channels-last layout for images and patch embedding")] = True
    end_to_end: Annotated[bool, Doc("include decoding and resizing of test images, and the class texts")] = False


C = TypeVar("C", bound=TowerConfig)


def for_tower(config: C, num_patches: int) -> C:
    """The config with `--num-keep` as the shares that keep that many patches, and `--group-share` as a number.

    Raises:
        UsageError: more than there are, or a recipe sets both ways.
    """
    if isinstance(config, SearchOptions) and config.group_share is not None:
        _refuse_both(config, "group", "group_share")
        taken = max(1, round(config.group_share * num_patches))
        config = dataclasses.replace(config, group=taken, group_share=None)
    if not isinstance(config, KeepOptions | KeepListOptions) or config.num_keep is None:
        return config
    _refuse_both(config, "keep", "num_keep")
    given = config.num_keep
    counts = given if isinstance(given, tuple) else (given,)
    for count in counts:
        if count > num_patches:
            raise UsageError(f"--num-keep is {count}, and the tower has {num_patches} patches", "Give fewer")
    shares = tuple(count / num_patches for count in counts)
    changed: dict[str, Any] = {"keep": shares if isinstance(given, tuple) else shares[0], "num_keep": None}
    return dataclasses.replace(config, **changed)


def _refuse_both(config: TowerConfig, usual: str, other: str) -> None:
    """Refuse two ways to set the same thing, of which the usual one is not as by default."""
    if getattr(config, usual) != getattr(type(config), usual):
        names = " and ".join(name.replace("_", "-") for name in (usual, other))
        raise UsageError(f"{names} set the same thing", "Give one of them")


def check_window(side: int, grid: tuple[int, int]) -> None:
    """Refuse windows larger than the tower's rows and columns of patches.

    Raises:
        UsageError: one does not fit.
    """
    if side > min(grid):
        raise UsageError(
            f"--block is {side}, and the tower has {grid[0]} x {grid[1]} patches", f"Give 1 to {min(grid)}"
        )


def layer_of(given: int | None, name: str, depth: int) -> int:
    """Blocks before pruning: as given, else 0 for tiny:clip (at 1 CLS already attends to the object), else a quarter
    of the blocks (3 of 12, as the official code).

    Raises:
        UsageError: the tower has no such block.
    """
    if given is not None and given >= depth:
        raise UsageError(f"--layer is {given}, and {name} has {depth} blocks", f"Give 0 to {depth - 1}")
    if given is not None:
        return given
    return 0 if name == "tiny:clip" else round(depth / 4)
