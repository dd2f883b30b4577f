"""Options of `effvl prune-blocks` and its verbs."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt

from effvl_cli.config.options import (
    VOLATILE,
    Checked,
    Count,
    DataOptions,
    GuardOptions,
    ModelOptions,
    Positive,
    Rate,
    RunInput,
    RunOptions,
    SaveOptions,
)
from effvl_cli.core.errors import UsageError

EMBEDDED = "digits"
CRITERIA = ("direct", "random", "l1", "bn-scale", "block-influence", "sr-init", "cka")
Removed = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class UnitOptions:
    """What may be removed."""

    panel: ClassVar[str] = "Units"

    unit: Annotated[
        Literal["block", "half", "stage"],
        Doc("units are whole blocks; the attention and the MLP of a ViT block; or whole stages"),
    ] = "block"
    valid: Annotated[
        Literal["identity", "shape"], Doc("units with a proven identity shortcut, or any that keep the shape")
    ] = "identity"
    protect: Annotated[tuple[str, ...], Doc("paths that are never removed, with * and ?, e.g. layer1.*,layer4.2")] = ()
    only: Annotated[tuple[str, ...], Doc("no paths but these")] = ()
    min_per_stage: Annotated[Count, Doc("units, removable or not, that stay in each stage")] = 1


@dataclass(frozen=True, kw_only=True)
class JudgeOptions(GuardOptions):
    """How accuracy is measured."""

    panel: ClassVar[str] = "Measurement"

    eval_batch_size: Annotated[Positive, VOLATILE, Doc("images per step on each device, outside training")] = 256


@dataclass(frozen=True, kw_only=True)
class SplitOptions(JudgeOptions, Checked):
    """Which images decide what is removed."""

    panel: ClassVar[str] = "Scoring"

    score_split: Annotated[
        Literal["holdout", "train", "test"],
        Doc("scoring images: held out from training, training images, or the test split (--allow-test-leak)"),
    ] = "holdout"
    allow_test_leak: Annotated[bool, Doc("let the test split decide what is removed; every figure is marked")] = False
    score_batch_size: Annotated[Positive, Doc("scoring images per step")] = 256
    score_size: Annotated[Positive | None, Doc("scoring images per class (default: all, up to 10,000)")] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.score_split == "test" and not self.allow_test_leak:
            raise ValueError(
                "--score-split is test, and the test images must not choose what is removed. "
                "Give --score-split holdout; or --allow-test-leak, which marks every figure"
            )


@dataclass(frozen=True, kw_only=True)
class RecalOptions:
    """Batch norm after a removal."""

    panel: ClassVar[str] = "Scoring"

    bn_recal: Annotated[
        Count, Doc("training images for new batch-norm statistics after a removal; 0: keep the old ones")
    ] = 0


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(SplitOptions, RecalOptions):
    """How much each unit matters."""

    panel: ClassVar[str] = "Scoring"

    criterion: Annotated[
        str,
        Doc("direct (removal measured), random, l1, bn-scale, block-influence, sr-init, cka, or file:SCORES.json"),
    ] = "direct"
    metric: Annotated[Literal["top1", "loss"], Doc("measure of direct removal; the other one breaks ties")] = "top1"
    tie: Annotated[
        Literal["exact", "loss-ci"], Doc("loss-ci: units that top1 cannot tell apart are ranked by loss")
    ] = "exact"
    impact_per: Annotated[
        Literal["none", "macs", "params", "latency"], Doc("divide the impact by what the removal saves")
    ] = "none"
    sharing: Annotated[
        Literal["auto", "chain", "replay", "off"], Doc("computations shared by candidates; same scores, bit for bit")
    ] = "auto"
    race: Annotated[
        Literal["none", "halving", "bound"], Doc("drop hopeless candidates early: by halving, or by a confidence bound")
    ] = "none"
    loss_clip: Annotated[float, Gt(0), Doc("--race bound with --metric loss: larger losses count as this")] = 8.0
    score_bn: Annotated[
        Literal["keep", "recal"],
        Doc("recal: score each removal with batch-norm statistics re-estimated without the unit, see --bn-recal"),
    ] = "keep"
    score_stack: Annotated[
        Positive, Doc("candidates that run as one larger batch, for GPUs; above 1 no longer equal bit for bit")
    ] = 1

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.criterion != "direct":
            for name in ("race", "score_bn", "score_stack", "tie"):
                value, usual = getattr(self, name), getattr(ScoreOptions, name)
                if value != usual:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option} {value} needs --criterion direct. Give {option} {usual}")
        if self.race != "none" and self.impact_per != "none":
            raise ValueError(
                f"--race {self.race} with --impact-per {self.impact_per}: a race drops by impact alone. Leave one out"
            )
        if self.tie == "loss-ci" and self.metric == "loss":
            raise ValueError("--tie loss-ci with --metric loss. It breaks ties of --metric top1: give --tie exact")
        if self.score_bn == "recal" and not self.bn_recal:
            raise ValueError("--score-bn recal without --bn-recal. Say how many training images: --bn-recal 512")
        if self.score_stack > 1:
            if self.score_bn != "keep":
                raise ValueError(f"--score-stack {self.score_stack} with --score-bn. Give --score-stack 1")
            if self.sharing in ("replay", "off"):
                raise ValueError(
                    f"--score-stack {self.score_stack} with --sharing {self.sharing}. Give --sharing auto or chain"
                )


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """When to stop."""

    panel: ClassVar[str] = "Target"

    remove: Annotated[Positive | None, Doc("units to remove (default: 2 on the embedded data)")] = None
    target_params: Annotated[Removed | None, Doc("share of the parameters to remove")] = None
    target_macs: Annotated[Removed | None, Doc("share of the multiply-adds to remove")] = None
    target_latency: Annotated[Removed | None, Doc("share of the latency at batch 1 to remove")] = None
    stop: Annotated[Literal["all", "any"], Doc("with several targets: stop when all of them, or the first, is met")] = (
        "all"
    )
    max_drop: Annotated[float | None, Ge(0), Lt(1), Doc("largest fall of top-1 on the scoring images; then stop")] = (
        None
    )
    blocks_per_step: Annotated[Positive, Doc("units removed between two fine-tunings")] = 1
    search: Annotated[
        Literal["single", "pairs", "beam"],
        Doc("score single units; all pairs (--blocks-per-step 2); or sets of any size, the 8 best grown unit by unit"),
    ] = "single"
    lookahead: Annotated[
        str | None, Doc("M:E, fine-tune the M best candidates for E epochs each, and continue with the best of them")
    ] = None
    rescore: Annotated[Literal["every", "once"], Doc("score before each removal, or at the start only")] = "every"


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Training after each removal, and at the end."""

    panel: ClassVar[str] = "Fine-tuning"

    finetune_epochs: Annotated[Count, Doc("epochs after each removal")] = 1
    finetune_steps: Annotated[Positive | None, Doc("optimizer steps after each removal, in place of epochs")] = None
    finetune_lr: Annotated[Rate, Doc("SGD learning rate, cosine to zero")] = 0.01
    final_epochs: Annotated[Count, Doc("epochs at the end")] = 3
    final_lr: Annotated[Rate, Doc("SGD learning rate of the final epochs")] = 0.01
    finetune_batch_size: Annotated[Positive, Doc("images per step, over all processes")] = 64
    momentum: Annotated[float, Ge(0), Lt(1), Doc("momentum of SGD")] = 0.9
    weight_decay: Annotated[float, Ge(0), Doc("weight decay")] = 5e-4
    decay_all: Annotated[bool, Doc("apply weight decay to biases and norms too, not to matrices alone")] = False
    augment: Annotated[Literal["none", "flip", "crop-flip", "pad-crop-flip", "rrc-flip"], Doc("training transform")] = (
        "none"
    )
    kd: Annotated[bool, Doc("distil from the original network")] = False
    kd_alpha: Annotated[float, Gt(0), Le(1), Doc("weight of the distillation; the rest is the labels'")] = 0.5
    kd_temperature: Annotated[float, Gt(0), Doc("temperature of both softmaxes")] = 4.0
    mimic: Annotated[float, Ge(0), Doc("weight of the distance to the original's pooled features")] = 0.0
    select: Annotated[
        Literal["last", "best"], Doc("result of a fine-tuning: its last state, or its best one on the scoring images")
    ] = "last"


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """Training of the network to prune, where no weights are given."""

    panel: ClassVar[str] = "Baseline"

    baseline_epochs: Annotated[Positive | None, Doc("epochs of its training (default: 8 on the embedded data)")] = None
    baseline_lr: Annotated[Rate, Doc("peak SGD learning rate, warm-up and cosine")] = 0.1
    baseline_batch_size: Annotated[Positive, Doc("images per step, over all processes")] = 64
    new_head: Annotated[bool, Doc("weights of other classes: draw the classifier anew and train it first")] = False


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What is measured."""

    panel: ClassVar[str] = "Measurement"

    latency_batch_size: Annotated[Positive, Doc("second batch size at which latency is measured, besides 1")] = 32


@dataclass(frozen=True, kw_only=True)
class _Data(DataOptions):
    """The embedded data of this command."""

    data: Annotated[
        str | None,
        Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets` (default: that of --weights, else digits)"),
    ] = None  # type: ignore[assignment]  # of the shared option


@dataclass(frozen=True, kw_only=True)
class PruneBlocksConfig(
    RunOptions,
    _Data,
    ModelOptions,
    SaveOptions,
    MeasureOptions,
    BaselineOptions,
    FinetuneOptions,
    ScoreOptions,
    UnitOptions,
    TargetOptions,
):
    """Remove the residual blocks whose removal hurts least."""

    common: ClassVar[tuple[str, ...]] = (
        *("data", "model", "weights", "download", "remove", "target_params", "target_macs"),
        *("criterion", "finetune_epochs", "final_epochs", "device", "seed", "out"),
    )

    panel: ClassVar[str] = "Target"

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        Lookahead.of(self)
        if self.search == "single":
            return
        together = self.blocks_per_step
        if self.criterion != "direct" or self.rescore == "once":
            raise ValueError(f"--search {self.search} needs --criterion direct and --rescore every. Leave --search out")
        if (self.search == "pairs" and together != 2) or together < 2:
            wanted = "2" if self.search == "pairs" else "2 or more"
            raise ValueError(
                f"--search {self.search} with --blocks-per-step {together}. Give --blocks-per-step {wanted}"
            )
        if self.score_bn == "recal":
            raise ValueError(f"--score-bn recal with --search {self.search}. Give --search single or --score-bn keep")
        if self.score_stack > 1:
            raise ValueError(f"--score-stack {self.score_stack} with --search. Give --score-stack 1")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(RunInput, RunOptions, DataOptions, ModelOptions):
    """A verb on the network of RUN, or on --weights from any source."""

    panel: ClassVar[str] = "Data"
    run_optional: ClassVar[bool] = True
    alternatives: ClassVar[tuple[str, ...]] = ("run", "weights")
    own: ClassVar[tuple[str, ...]] = ("model", "weights_key", "normalise", "mean", "std")
    """Of the file that RUN began with; RUN's checkpoint says them of itself."""

    data: Annotated[
        str | None, Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets` (default: that of RUN)")
    ] = None  # type: ignore[assignment]  # of the shared option


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(NetworkConfig, ScoreOptions, UnitOptions):
    """Importance of every block of RUN's network, or of --weights; removes nothing."""


@dataclass(frozen=True, kw_only=True)
class ApplyConfig(NetworkConfig, SaveOptions, MeasureOptions, FinetuneOptions, RecalOptions, SplitOptions, UnitOptions):
    """Remove the named blocks of RUN's network, or of --weights, without scoring; fine-tune."""

    panel: ClassVar[str] = "Units"

    units: Annotated[tuple[str, ...], Doc("blocks to remove: their indices in `score`, or their paths")] = ()


@dataclass(frozen=True, kw_only=True)
class BenchConfig(RunInput, RunOptions):
    """Time RUN's network and the one it came from, in torch and in onnxruntime."""

    panel: ClassVar[str] = "Measurement"

    batch_size: Annotated[tuple[Positive, ...], Doc("batch sizes, comma separated")] = (1, 32)
    onnx: Annotated[bool, Doc("also in onnxruntime, which the extra `onnx` installs")] = True


@dataclass(frozen=True, kw_only=True)
class ExportConfig(RunInput, RunOptions):
    """RUN's network for use without effvl: ONNX, a torch.export program, rebuild.py."""

    panel: ClassVar[str] = "Run"

    format: Annotated[tuple[Literal["onnx", "pt2", "rebuild"], ...], Doc("what to write, comma separated")] = (
        "onnx",
        "pt2",
        "rebuild",
    )


@dataclass(frozen=True)
class Lookahead:
    """How many candidates, and for how many epochs each."""

    candidates: int
    epochs: float

    @classmethod
    def of(cls, config: PruneBlocksConfig) -> "Lookahead | None":
        """From --lookahead M:E; None without it.

        Raises:
            UsageError: it cannot be read, or more than one unit is removed at a time.
        """
        if config.lookahead is None:
            return None
        first, _, second = config.lookahead.partition(":")
        try:
            found = cls(int(first), float(second))
        except ValueError as error:
            raise UsageError(f"--lookahead is {config.lookahead}", "Write M:E, e.g. 3:0.5") from error
        if found.candidates < 1 or not 0 < found.epochs < float("inf"):
            raise UsageError(f"--lookahead is {config.lookahead}", "M is at least 1, and E above 0")
        if config.blocks_per_step != 1:
            raise UsageError(
                f"--lookahead with --blocks-per-step {config.blocks_per_step}", "Remove one unit at a time"
            )
        return found if found.candidates > 1 else None
