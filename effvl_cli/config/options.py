"""Shared option groups: flat, frozen, keyword-only dataclasses.

A field is `Annotated[type, bounds..., Doc("help")]`. That one line defines the flag, its default, its range, its help
and its recipe key. The class in which a field is defined is its panel in `--help` (the attribute `panel`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt


@dataclass(frozen=True)
class Marker:
    """Metadata on a field: how it takes part in a run's identity, and what its value names."""

    name: str


VOLATILE = Marker("volatile")  # may change between a run and its resumption: not part of the run's identity
GROWABLE = Marker("growable")  # may grow when a run is continued
MEMORY = Marker("memory")  # smaller values need less memory, as those of every ..batch-size do
DATASET = Marker("dataset")  # names a data set, or several
ARTEFACT = Marker("artefact")  # names a file or run folder: its content is part of the identity, not only its name

Fraction = Annotated[float, Gt(0), Le(1)]
Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Rate = Annotated[float, Gt(0), Lt(10)]


def fill(config: Any, usual: Mapping[str, tuple[Any, str]]) -> None:
    """Give options that are None their usual value, and say in `derived` where it is from.

    Args:
        config: a frozen config under construction.
        usual: value and origin by the option's name; names that the config lacks are passed over.
    """
    derived = {}
    for name, (value, origin) in usual.items():
        if getattr(config, name, config) is None:
            object.__setattr__(config, name, value)
            derived[name] = origin
    object.__setattr__(config, "derived", derived)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """End of the chain of checks that the option groups of one command make together."""

    def __post_init__(self) -> None:
        """What no single option can say."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a run happens."""

    panel: ClassVar[str] = "Run"
    computes: ClassVar[bool] = True
    """Whether --precision is that of computing, not of what is written."""

    out: Annotated[str | None, VOLATILE, Doc("exact path of the run folder (default: runs/COMMAND/NAME)")] = None
    name: Annotated[str | None, VOLATILE, Doc("name of the run folder (default: hash of the options)")] = None
    seed: Annotated[int, Ge(0), Doc("seed of every random stream")] = 0
    device: Annotated[str, VOLATILE, Doc("cpu, cuda, cuda:N, mps or auto")] = "auto"
    precision: Annotated[Literal["fp32", "bf16", "fp16"], Doc("autocast type of training and inference")] = "fp32"
    workers: Annotated[Count | None, VOLATILE, Doc("loader processes (default: 0 on a CPU, else up to 8)")] = None
    deterministic: Annotated[
        bool, Doc("use only deterministic kernels; an op without one is an error that names it")
    ] = False
    log: Annotated[
        tuple[Literal["tensorboard"], ...],
        VOLATILE,
        Doc("log in addition to metrics.jsonl and .csv: tensorboard (an extra)"),
    ] = ()
    cache_dir: Annotated[str | None, VOLATILE, Doc("folder of the content-keyed cache (default: ~/.cache/effvl)")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images."""

    panel: ClassVar[str] = "Data"

    data: Annotated[str, Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets`")] = "shape-captions"
    data_root: Annotated[str | None, Doc("folder that holds the data set, or that its path is relative to")] = None
    on_bad: Annotated[Literal["error", "skip"], Doc("an unreadable image: stop, or skip up to 1 %")] = "error"


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """Text around the class names."""

    panel: ClassVar[str] = "Data"

    templates: Annotated[
        str | None,
        Doc("'a photo of a {}.', several separated by '|', a file, coop (the data set's own), simple or imagenet80"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network."""

    panel: ClassVar[str] = "Model"
    alternatives: ClassVar[tuple[str, ...]] = ("normalise", "mean+std")

    model: Annotated[
        str | None, Doc("network, see `effvl list models` (default: the one of --weights, else the command's own)")
    ] = None
    weights: Annotated[
        str | None, ARTEFACT, Doc("run folder, file (safetensors, .pt state dict), pretrained tag, or none = random")
    ] = None
    download: Annotated[
        bool, VOLATILE, Doc("allow downloads: pretrained tags that are not cached, public --data that are missing")
    ] = False
    weights_key: Annotated[
        str | None, Doc("which network of a --weights file that holds several, e.g. teacher or model_ema")
    ] = None
    normalise: Annotated[
        Literal["imagenet", "cifar10", "cifar100", "clip", "half", "none"] | None,
        Doc("mean and standard deviation of the network's training images (default: its own)"),
    ] = None
    mean: Annotated[tuple[float, ...], Doc("the mean as numbers: red, green, blue in 0..1")] = ()
    std: Annotated[tuple[float, ...], Doc("the standard deviation, likewise")] = ()


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """Whether a network that does not know its classes is refused."""

    panel: ClassVar[str] = "Model"

    force: Annotated[bool, Doc("continue with a network that is hardly better than chance")] = False


@dataclass(frozen=True, kw_only=True)
class RunInput:
    """A verb that starts from an earlier run of its technique."""

    panel: ClassVar[str] = "Run"

    run: Annotated[
        str | None, ARTEFACT, Doc("run folder or checkpoint of this technique (default: the newest completed one)")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """When state is written."""

    panel: ClassVar[str] = "Training"

    save_every: Annotated[
        Count, VOLATILE, Doc("steps between checkpoints; 0: chosen so that saving takes less than 2 % of the time")
    ] = 0
    log_every: Annotated[Positive, VOLATILE, Doc("steps between records in metrics.jsonl")] = 20


@dataclass(frozen=True, kw_only=True)
class TrainOptions(SaveOptions):
    """Optimisation, the same words for every command."""

    panel: ClassVar[str] = "Training"

    epochs: Annotated[Positive | None, GROWABLE, Doc("passes over the training data")] = None
    steps: Annotated[Positive | None, GROWABLE, Doc("optimizer steps")] = None
    batch_size: Annotated[Positive, Doc("samples per step, over all processes")] = 64
    accumulate: Annotated[Positive, Doc("backward passes per step")] = 1
    optimizer: Annotated[Literal["adamw", "sgd", "muon"], Doc("muon: AdamW for all but the block matrices")] = "adamw"
    lr: Annotated[Rate, Doc("peak learning rate")] = 1e-3
    lr_decay: Annotated[
        Literal["cosine", "poly", "poly-concave", "step"],
        Doc("decay after the warm-up, over the rest u: half a cosine, (1-u)^p, 1-u^p, or gamma at each milestone"),
    ] = "cosine"
    lr_power: Annotated[float, Gt(0), Doc("p of poly and poly-concave")] = 2.0
    lr_milestones: Annotated[tuple[Fraction, ...], Doc("step: shares of the training, e.g. 0.5,0.75")] = (0.5, 0.75)
    lr_gamma: Annotated[Fraction, Doc("step: factor at each milestone")] = 0.1
    lr_floor: Annotated[float, Ge(0), Lt(1), Doc("share of the peak rate that cosine and poly end at")] = 0.0
    weight_decay: Annotated[float, Ge(0), Doc("weight decay")] = 0.02
    weight_decay_end: Annotated[
        float | None, Ge(0), Doc("final weight decay, reached along half a cosine (default: constant)")
    ] = None
    decay_all: Annotated[bool, Doc("apply weight decay to biases and norms too, not to matrices alone")] = False
    momentum: Annotated[float, Ge(0), Lt(1), Doc("momentum of sgd and muon")] = 0.9
    warmup: Annotated[float, Ge(0), Lt(1), Doc("share of the training over which the rate rises")] = 0.05
    clip_grad: Annotated[float, Ge(0), Doc("largest gradient norm; 0: no clipping")] = 1.0
    clip_mode: Annotated[
        Literal["global", "per-param"], Doc("clip by the norm of all gradients, or by that of each tensor")
    ] = "global"
    eval_every: Annotated[Count, Doc("steps between evaluations; 0: each epoch, or halfway and at the end")] = 0
