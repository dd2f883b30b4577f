"""Options of `effvl prompt-tune` and its verbs."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt

from effvl_cli.config.options import (
    ARTEFACT,
    DATASET,
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

EMBEDDED = "shape-captions:sketch"
SMALL = "tiny:"  # networks whose logit scale is about a fifth of a full CLIP's, so that they take a larger rate
DEFAULT_TOKENS = 4
DEFAULT_RATES = (0.0, 0.5)

Shots = Positive | Literal["all"]
NoiseRate = Annotated[float, Ge(0), Lt(1)]
Share = Annotated[float, Ge(0), Le(1)]
Method = Literal[
    "zero-shot",
    "linear-probe",
    "linear-probe-sweep",
    "classifier-r",
    "classifier-c",
    "tenc-ft",
    "prompt",
    "full-prompt",
    "cls-tuning",
    "cls-random",
    "tip-adapter",
    "rn50-ft",
]
NoiseModel = Literal["fp", "symmetric", "pair", "confusion", "matrix", "global-symmetric", "global-pair"]
Loss = Literal["ce", "gce", "mae", "sce", "phuber", "ls", "double-softmax"]

UNTRAINED = ("zero-shot", "linear-probe", "linear-probe-sweep", "tip-adapter")
"""Methods without a training by SGD, so without a --loss."""
LEARNERS = ("prompt", "full-prompt", "cls-tuning", "cls-random", "tenc-ft")
"""Methods that train something in the text tower."""
FIXED_CONTEXT = ("cls-tuning", "tenc-ft")
"""Learners whose context is given by words, not by --num-context."""


@dataclass(frozen=True, kw_only=True)
class PromptTokenOptions(Checked):
    """The learned tokens and the text tower that reads them."""

    panel: ClassVar[str] = "Prompts"

    num_context: Annotated[Positive | None, Doc("learned tokens (default: 4, or as many as --context-init has)")] = None
    context_init: Annotated[
        str | None, Doc("words that the learned tokens begin as, e.g. 'a photo of a' (default: random)")
    ] = None
    class_position: Annotated[Literal["end", "middle", "front"], Doc("place of the class name among the tokens")] = (
        "end"
    )
    csc: Annotated[bool, Doc("a context of its own for each class")] = False
    prefix_share: Annotated[
        Literal["auto", "on", "off"], Doc("run the tokens before the class names once for all classes")
    ] = "auto"
    text_chunk: Annotated[
        Positive | Literal["auto"], MEMORY, VOLATILE, Doc("classes that the text tower trains on at once")
    ] = "auto"

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.context_init is not None and not self.context_init.strip():
            raise ValueError("--context-init is empty. Give words, or leave it out for tokens that begin at random")
        if self.prefix_share == "on" and (self.csc or self.class_position == "front"):
            other = "--csc" if self.csc else f"--class-position {self.class_position}"
            raise ValueError(f"--prefix-share on with {other}: classes then share no tokens. Give --prefix-share auto")


@dataclass(frozen=True, kw_only=True)
class GceOptions:
    """The loss of the search for wrong labels."""

    panel: ClassVar[str] = "Losses"

    gce_q: Annotated[Share, Doc("q of gce: 0 is cross entropy, 1 half of mae")] = 0.7


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Constants of the other losses."""

    panel: ClassVar[str] = "Losses"

    sce_alpha: Annotated[float, Ge(0), Doc("sce: weight of the cross entropy")] = 0.1
    sce_beta: Annotated[float, Ge(0), Doc("sce: weight of the reverse cross entropy")] = 1.0
    phuber_tau: Annotated[float, Gt(1), Doc("phuber: linear below a probability of 1/tau")] = 10.0
    ls_eps: Annotated[float, Ge(0), Lt(1), Doc("ls: share of the label spread over the other classes")] = 0.1
    split: Annotated[
        Literal["none", "ot"],
        Doc("ot: --loss only where optimal transport of zero-shot predictions agrees with the label, elsewhere mae"),
    ] = "none"


@dataclass(frozen=True, kw_only=True)
class NoiseOptions(Checked):
    """Wrong labels among the training images."""

    panel: ClassVar[str] = "Label noise"

    noise: Annotated[
        NoiseModel,
        Doc("model; fp: images of other classes take the place of some, as in the official code"),
    ] = "fp"
    noise_rate: Annotated[
        tuple[NoiseRate, ...],
        Doc("shares of wrong labels, comma separated (default: 0,0.5; of --noise-from all that it has)"),
    ] = ()
    noise_from: Annotated[
        str | None, ARTEFACT, Doc("noise.json of an earlier run, whose images and labels are taken")
    ] = None
    noise_matrix: Annotated[
        str | None, ARTEFACT, Doc("matrix: JSON or CSV with a row of shares for each true class")
    ] = None
    labels: Annotated[
        str | None, ARTEFACT, Doc("CSV with the columns path and label: real labels, taken as they are")
    ] = None
    confusion_pick: Annotated[
        Literal["random", "hardest"], Doc("confusion: any images, or those most like the other class")
    ] = "random"

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        given = [name for name in ("noise_from", "labels") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError("--noise-from and --labels both give the labels. Leave one out")
        if given and self.noise not in ("fp", type(self).noise):
            option = given[0].replace("_", "-")
            raise ValueError(f"--noise is {self.noise}, and --{option} gives the labels. Leave --noise out")
        if (self.noise == "matrix") != (self.noise_matrix is not None):
            wanted = "needs --noise-matrix FILE" if self.noise == "matrix" else "does not read --noise-matrix"
            raise ValueError(f"--noise {self.noise} {wanted}. Give --noise matrix --noise-matrix FILE")
        if self.confusion_pick != "random" and self.noise != "confusion":
            raise ValueError(f"--confusion-pick is for --noise confusion, and the noise is {self.noise}. Leave it out")


@dataclass(frozen=True, kw_only=True)
class SetOptions(Checked):
    """Which training images."""

    panel: ClassVar[str] = "Data"

    shots: Annotated[Shots, Doc("training images per class")] = 16
    fewshot_file: Annotated[
        str | None, ARTEFACT, Doc('JSON {"train": [paths], "val": [paths]} of the images to take instead')
    ] = None
    allow_empty_class: Annotated[bool, Doc("continue where a class has no training image")] = False


@dataclass(frozen=True, kw_only=True)
class UnsupervisedOptions(Checked):
    """Training on pseudo-labels instead of labels."""

    panel: ClassVar[str] = "Pseudo-labels"

    unsupervised: Annotated[bool, Doc("read no labels: train on zero-shot predictions of the training images")] = False
    unlabelled: Annotated[
        str | None,
        DATASET,
        Doc("data set whose training images are predicted in place of --data's, e.g. images:DIR; no label is read"),
    ] = None
    select: Annotated[
        Literal["topk", "random", "random-global", "threshold"],
        Doc("images per predicted class: the surest, random ones, random ones of all, or those above --tau"),
    ] = "topk"
    num_select: Annotated[Positive, Doc("images per predicted class")] = 16
    tau: Annotated[Fraction, Doc("threshold: least probability of the predicted class")] = 0.9
    pseudo_models: Annotated[
        tuple[str, ...],
        Doc("MODEL or MODEL=WEIGHTS, comma separated: their logits are averaged (default: the network itself)"),
    ] = ()

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.unsupervised:
            return
        for name in ("unlabelled", "select", "num_select", "tau", "pseudo_models"):
            if getattr(self, name) != getattr(UnsupervisedOptions, name):
                raise ValueError(f"--{name.replace('_', '-')} is for --unsupervised. Leave it out, or give that too")


@dataclass(frozen=True, kw_only=True)
class KeptOptions:
    """How image features are made and kept."""

    panel: ClassVar[str] = "Features"

    cache_dtype: Annotated[Literal["fp16", "fp32"], Doc("type of the kept features")] = "fp16"
    eval_batch_size: Annotated[Positive, VOLATILE, Doc("images per step on each device, outside training")] = 128


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Features that training sees."""

    panel: ClassVar[str] = "Features"

    cache_features: Annotated[
        Literal["off", "center", "views"] | None,
        Doc("of new random crops each epoch, the centre, or --num-views random crops (default: views; tiny: center)"),
    ] = None
    num_views: Annotated[Positive, Doc("random crops of each training image that are kept")] = 8


@dataclass(frozen=True, kw_only=True)
class TuneOptions(SaveOptions):
    """SGD of the paper: one epoch at a small rate, then half a cosine."""

    panel: ClassVar[str] = "Training"

    epochs: Annotated[Positive | None, Doc("epochs (default: 50; 15 for tiny: networks)")] = None
    batch_size: Annotated[Positive, Doc("images per step, over all processes")] = 32
    lr: Annotated[Rate | None, Doc("learning rate of prompts (default: 0.002; 0.02 for tiny: networks)")] = None
    warmup_lr: Annotated[Rate, Doc("learning rate of the first epoch")] = 1e-5
    momentum: Annotated[float, Ge(0), Lt(1), Doc("momentum of SGD")] = 0.9
    weight_decay: Annotated[float, Ge(0), Doc("weight decay, on everything that is trained")] = 5e-4


@dataclass(frozen=True, kw_only=True)
class MethodOptions(Checked):
    """What is compared."""

    panel: ClassVar[str] = "Methods"

    method: Annotated[tuple[Method, ...], Doc("methods, comma separated")] = ("zero-shot", "linear-probe", "prompt")
    loss: Annotated[tuple[Loss, ...], Doc("losses of the methods trained by SGD, comma separated")] = ("ce", "gce")
    probe_c: Annotated[float, Gt(0), Doc("linear-probe: inverse strength of the penalty")] = 1e3
    classifier_lr: Annotated[Rate, Doc("learning rate of classifier-r and classifier-c")] = 0.002
    tenc_lr: Annotated[Rate, Doc("learning rate of tenc-ft")] = 0.002
    tip_alpha: Annotated[float, Ge(0), Doc("tip-adapter: weight of the stored images")] = 1.0
    tip_beta: Annotated[float, Gt(0), Doc("tip-adapter: sharpness of the affinities")] = 5.5
    rn50_model: Annotated[str, Doc("rn50-ft: the network that is fine-tuned")] = "torchvision:resnet50"
    rn50_weights: Annotated[
        str | None, ARTEFACT, Doc("rn50-ft: its weights: file, run folder, pretrained tag, or none")
    ] = None
    rn50_lr: Annotated[Rate, Doc("rn50-ft: learning rate")] = 0.002
    grad_analysis: Annotated[
        bool, Doc("measure how much of the gradient comes from wrong labels, at epochs 0, 1, 2, 4, 8..")
    ] = False
    num_grad_samples: Annotated[Positive, Doc("images of each group whose own gradients are measured")] = 64
    save_logits: Annotated[bool, Doc("write the logits of every test image, for each method")] = False


@dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """Search for wrong labels."""

    panel: ClassVar[str] = "Suspects"

    num_folds: Annotated[
        Count, Doc("folds that rank training images by how wrong their labels look; 0: no ranking")
    ] = 5


@dataclass(frozen=True, kw_only=True)
class ClipConfig(RunOptions, DataOptions, PromptOptions, ModelOptions, GuardOptions):
    """What the job and its verbs need."""

    data: Annotated[str, Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets`")] = EMBEDDED


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(ClipConfig, KeptOptions):
    """What a command with images needs."""


@dataclass(frozen=True, kw_only=True)
class LearningConfig(
    FeatureConfig, SetOptions, NoiseOptions, PromptTokenOptions, GceOptions, FeatureOptions, TuneOptions, FoldOptions
):
    """A command that trains prompts."""


@dataclass(frozen=True, kw_only=True)
class PromptTuneConfig(MethodOptions, LossOptions, UnsupervisedOptions, LearningConfig):
    """Few-shot tuning of a CLIP under label noise, several methods side by side."""

    common: ClassVar[tuple[str, ...]] = (
        *("method", "loss", "noise", "noise_rate", "labels", "unsupervised", "shots", "num_context"),
        *("data", "model", "weights", "download", "templates", "epochs", "device", "seed", "out"),
    )

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        _refuse_twice(self, "method", "loss", "noise_rate")
        if "rn50-ft" in self.method and self.cache_features != "off":
            raise ValueError(
                "--method rn50-ft trains the network that makes the features, so none can be kept. "
                "Give --cache-features off"
            )
        if self.split != "none" and "rn50-ft" in self.method:
            raise ValueError(f"--split is {self.split}, and rn50-ft has no zero-shot predictions. Leave one out")
        if self.unsupervised:
            self._check_unsupervised()

    def _check_unsupervised(self) -> None:
        given = [name for name in ("noise_from", "labels", "noise_matrix", "fewshot_file") if getattr(self, name)]
        if given or self.noise != "fp" or self.noise_rate != NoiseOptions.noise_rate:
            option = given[0].replace("_", "-") if given else "noise"
            raise ValueError(f"--unsupervised reads no labels, and --{option} is about labels. Leave it out")


@dataclass(frozen=True, kw_only=True)
class SuspectsConfig(RunInput, LearningConfig):
    """Rank training images by how wrong their labels look; from the options of RUN, or from --data alone."""

    panel: ClassVar[str] = "Suspects"
    run_optional: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ("shots", "noise_rate")
    off_in_run: ClassVar[dict[str, str]] = {"num_folds": "0"}
    """Values of RUN's options by which it left this out, and which are not taken over."""
    common: ClassVar[tuple[str, ...]] = (
        *("labels", "noise", "noise_rate", "shots", "num_folds", "data", "model", "weights", "download", "templates"),
        *("epochs", "device", "seed", "out"),
    )

    run: Annotated[str | None, ARTEFACT, Doc("run of prompt-tune whose options and data are taken (default: none)")] = (
        None
    )
    shots: Annotated[Shots, Doc("training images per class; of endless data all means 100")] = "all"
    noise: Annotated[NoiseModel, Doc("model of wrong labels, see `effvl prompt-tune --help-all`")] = "symmetric"
    noise_rate: Annotated[
        tuple[NoiseRate, ...], Doc("share of labels made wrong first (default: RUN's on its data, else none)")
    ] = ()
    num_folds: Annotated[int, Ge(2), Doc("folds: each is judged by prompts tuned on the others")] = 5

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if len(self.noise_rate) > 1:
            rates = ",".join(f"{rate:g}" for rate in self.noise_rate)
            raise ValueError(f"--noise-rate is {rates}, and one set of labels is ranked. Give one rate")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(RunInput, FeatureConfig):
    """Measure RUN's methods on other data or with other class names."""

    panel: ClassVar[str] = "Evaluation"

    own: ClassVar[tuple[str, ...]] = ("save_logits",)

    eval_split: Annotated[Literal["test", "val", "train"], Doc("images")] = "test"
    classes: Annotated[
        str | None,
        ARTEFACT,
        Doc("class names in order, separated by '|', or a file with one per line (default: the data's)"),
    ] = None
    ensemble: Annotated[
        tuple[str, ...],
        ARTEFACT,
        Doc("further runs, comma separated: the logits of their methods and RUN's are averaged"),
    ] = ()
    save_logits: Annotated[bool, Doc("write the logits of every image, for each method")] = False


@dataclass(frozen=True, kw_only=True)
class ExportConfig(RunInput, RunOptions, Checked):
    """Export RUN's methods as class weights for open_clip."""

    panel: ClassVar[str] = "Export"

    arms: Annotated[tuple[str, ...], Doc("methods as the report names them, comma separated (default: all)")] = ()

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        _refuse_twice(self, "arms")


def _refuse_twice(config: Checked, *names: str) -> None:
    """Refuse lists that name the same thing twice.

    Raises:
        ValueError: one does.
    """
    for name in names:
        values = getattr(config, name)
        if len(set(values)) < len(values):
            raise ValueError(f"--{name.replace('_', '-')} names the same thing twice. Name each once")


def rates_of(config: NoiseOptions) -> tuple[float, ...]:
    """Noise rates in ascending order; those of a file of `--noise-from` are for whoever reads it."""
    return tuple(sorted(config.noise_rate or DEFAULT_RATES))


def suffix_of(rate: float, rates: tuple[float, ...]) -> str:
    """End of the names of the metrics at a noise rate: none at the highest, `_clean` at 0, else e.g. `_noise25`.

    The figures of a single rate have no suffix.
    """
    if rate == max(rates):
        return ""
    return "_clean" if rate == 0 else f"_noise{100 * rate:g}".replace(".", "_")
