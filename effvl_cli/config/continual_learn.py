"""Options of `effvl continual`, which `effvl continual add-task` shares."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le, Lt

from effvl_cli.config.options import (
    ARTEFACT,
    VOLATILE,
    Checked,
    Count,
    DataOptions,
    Fraction,
    ModelOptions,
    Positive,
    Rate,
    RunOptions,
    SaveOptions,
    fill,
)

EMBEDDED = "digits"
METHODS = ("cpg", "pae", "packnet", "finetune", "individual")
UNOWNED = ("individual", "finetune")
"""Methods in which weights have no owners."""
CONTROLS = ("individual", "individual-matched", "finetune")
OF_EMBEDDED: Mapping[str, Any] = {
    **{"epochs": 10, "batch_size": 16, "lr": 0.05, "schedule": "cosine"},
    **{"prune_ratios": (0.3, 0.5, 0.7, 0.8, 0.9), "prune_epochs": 2, "prune_ramp_epochs": 1, "prune_every": 5},
    **{"prune_lr": 0.01, "prune_schedule": "cosine", "retrain_epochs": 3, "controls": CONTROLS},
}
"""What suits the embedded data."""
OF_OTHERS: Mapping[str, Any] = {
    **{"epochs": 100, "batch_size": 64, "lr": 0.01, "schedule": "step"},
    **{"prune_ratios": (*(k / 10 for k in range(1, 10)), 0.95), "prune_epochs": 20, "prune_ramp_epochs": 4},
    **{"prune_every": 10, "prune_lr": 1e-3, "prune_schedule": "constant", "retrain_epochs": 30, "controls": ("none",)},
}
"""What the official code trains with."""
CHUNK, GROUPING = "chunk", ("num_classes_per_task", "class_order")
"""The way of making tasks that groups classes, and the options that are for it alone."""
PER_TASK = (
    *("epochs", "batch_size", "lr", "schedule", "milestones", "gamma", "momentum", "weight_decay", "warmup"),
    *("clip_grad", "augment", "shots", "val_fraction", "method", "norm_init", "release_init", "train_acc_gate"),
    *("pick_init", "pick_threshold", "pick_lr", "pick_decay_at", "pick_decay", "pick_stop_at"),
    *("prune_ratios", "prune_epochs", "prune_ramp_epochs", "prune_every", "prune_lr", "prune_schedule"),
    *(
        "prune_keep",
        "prune_patience",
        "min_ratio",
        "retrain_epochs",
        "retrain_lr",
        "retrain_pick_lr",
        "retrain_patience",
    ),
    *("goal", "goal_value", "goal_file", "num_goal_repeats", "goal_slack", "goal_lr", "on_unreachable", "on_exhausted"),
    *("grow_step", "grow_max", "data_root"),
)
"""Options that a row of a task list may set for its task alone."""


Follows = Mapping[str, tuple[str, Callable[[Any, Any], bool]]]
"""Options by name: the one that each follows from, and whether two values, as written, go together."""


def _no_longer(ramp: Any, epochs: Any) -> bool:
    """Whether a ramp fits into a stage; values that are no numbers are refused elsewhere."""
    return not (str(ramp).isdecimal() and str(epochs).isdecimal()) or int(ramp) <= int(epochs)


def _of(name: str) -> str:
    """Both defaults of an option, for its help."""
    embedded, other = (
        ", ".join(f"{x:g}" if isinstance(x, float) else str(x) for x in (v if isinstance(v, tuple) else (v,)))
        for v in (OF_EMBEDDED[name], OF_OTHERS[name])
    )
    return f"(default: {other}; {EMBEDDED} {embedded})"


@dataclass(frozen=True, kw_only=True)
class LearnOptions(SaveOptions):
    """How a task is learned."""

    panel: ClassVar[str] = "Training"

    epochs: Annotated[
        Count | None,
        Doc(f"passes over the task's training images; 0: a first task takes --weights as they are {_of('epochs')}"),
    ] = None
    batch_size: Annotated[
        Positive | None, Doc(f"images per step, over all processes; fewer for a task with fewer {_of('batch_size')}")
    ] = None
    lr: Annotated[Rate | None, Doc(f"peak rate of SGD with Nesterov momentum {_of('lr')}")] = None
    schedule: Annotated[
        Literal["step", "cosine", "plateau"] | None,
        Doc(f"decay of the rate; plateau: after --plateau epochs without a better figure {_of('schedule')}"),
    ] = None
    milestones: Annotated[tuple[Fraction, ...], Doc("step: shares of the training at which the rate falls")] = (
        *(0.5, 0.8),
    )
    gamma: Annotated[Fraction, Doc("step, plateau: factor of the rate when it falls")] = 0.1
    plateau: Annotated[Positive, Doc("plateau: epochs without a better figure; the third fall ends the training")] = 5
    warmup: Annotated[float, Ge(0), Lt(1), Doc("share of the training over which the rate rises")] = 0.0
    momentum: Annotated[float, Ge(0), Lt(1), Doc("momentum of SGD")] = 0.9
    weight_decay: Annotated[float, Ge(0), Doc("decay of the task's own weights; norms, biases and heads have none")] = (
        4e-5
    )
    clip_grad: Annotated[float, Ge(0), Doc("largest gradient norm; 0: no clipping")] = 0.0
    augment: Annotated[Literal["none", "flip", "crop-flip", "pad-crop-flip", "rrc-flip"], Doc("training transform")] = (
        "none"
    )
    sync_bn: Annotated[bool, Doc("several processes: batch norm over the images of all of them")] = False
    check_steps: Annotated[bool, Doc("check after every step that no weight of an earlier task has changed")] = False


@dataclass(frozen=True, kw_only=True)
class PickOptions(Checked):
    """Which weights of earlier tasks a task uses."""

    panel: ClassVar[str] = "Picking"

    pick_init: Annotated[float, Doc("score that every older weight begins with")] = 0.01
    pick_threshold: Annotated[float, Doc("a weight is used where its score is above this")] = 0.005
    pick_lr: Annotated[float, Ge(0), Lt(10), Doc("rate of the scores (Adam); 0: every older weight is used")] = 5e-4
    pick_decay_at: Annotated[Fraction, Doc("share of the training at which that rate falls")] = 0.5
    pick_decay: Annotated[Fraction, Doc("factor by which it falls")] = 0.2
    pick_stop_at: Annotated[
        Fraction, Doc("share at which it becomes 0, for a task that has weights of its own; 1: never")
    ] = 0.7

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        if self.pick_threshold >= self.pick_init:
            raise ValueError(
                f"--pick-threshold is {self.pick_threshold:g} and --pick-init {self.pick_init:g}: no older weight "
                "would be used. Give a threshold below it"
            )


@dataclass(frozen=True, kw_only=True)
class PruneOptions(Checked):
    """How a task's weights are made few."""

    panel: ClassVar[str] = "Compaction"
    follows: ClassVar[Follows] = {"prune_ramp_epochs": ("prune_epochs", _no_longer)}

    prune_ratios: Annotated[
        tuple[Annotated[float, Gt(0), Lt(1)], ...] | None,
        Doc(f"shares of the task's weights to release, tried in turn {_of('prune_ratios')}"),
    ] = None
    prune_epochs: Annotated[Positive | None, Doc(f"epochs of each stage {_of('prune_epochs')}")] = None
    prune_ramp_epochs: Annotated[
        Positive | None,
        Doc(f"epochs of a stage in which weights are released, at most --prune-epochs {_of('prune_ramp_epochs')}"),
    ] = None
    prune_every: Annotated[Positive | None, Doc(f"steps between two releases in them {_of('prune_every')}")] = None
    prune_lr: Annotated[Rate | None, Doc(f"rate of the stages {_of('prune_lr')}")] = None
    prune_schedule: Annotated[
        Literal["constant", "cosine"] | None, Doc(f"its course in each stage {_of('prune_schedule')}")
    ] = None
    prune_keep: Annotated[
        Literal["last", "best"], Doc("state that a stage ends with: its last one, or its best one after the ramp")
    ] = "last"
    prune_patience: Annotated[Count, Doc("stages in a row below the goal that end the sweep; 0: all are tried")] = 2
    min_ratio: Annotated[float, Ge(0), Lt(1), Doc("share that a task releases at least, whatever the goal says")] = 0.0

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        ratios = self.prune_ratios
        if ratios is not None and (not ratios or any(a >= b for a, b in itertools.pairwise(ratios))):
            shown = ",".join(f"{ratio:g}" for ratio in ratios)
            raise ValueError(f"--prune-ratios is {shown!r}. Give rising numbers between 0 and 1, e.g. 0.3,0.5,0.7")


@dataclass(frozen=True, kw_only=True)
class RetrainOptions:
    """Training after the compaction."""

    panel: ClassVar[str] = "Retraining"

    retrain_epochs: Annotated[
        Count | None, Doc(f"epochs in which kept weights and scores learn again; 0: none {_of('retrain_epochs')}")
    ] = None
    retrain_lr: Annotated[Rate, Doc("rate of the weights")] = 1e-3
    retrain_pick_lr: Annotated[float, Ge(0), Lt(10), Doc("rate of the scores")] = 1e-4
    retrain_patience: Annotated[Count, Doc("epochs without a better figure that end it; 0: none")] = 5


@dataclass(frozen=True, kw_only=True)
class GoalOptions(Checked):
    """Which accuracy a task has to reach."""

    panel: ClassVar[str] = "Goal"
    follows: ClassVar[Follows] = {
        "goal_value": ("goal", lambda value, goal: goal == "value"),
        "goal_file": ("goal", lambda path, goal: goal == "file"),
    }

    goal: Annotated[
        Literal["individual", "finetune-avg", "finetune-max", "value", "file", "none"],
        Doc("accuracy of a network of the task alone; of such networks that began as an earlier task's; or a number"),
    ] = "individual"
    goal_value: Annotated[float | None, Doc("--goal value: the accuracy, in 0..1")] = None
    goal_file: Annotated[str | None, ARTEFACT, Doc("--goal file: JSON object of accuracies by name of the task")] = None
    num_goal_repeats: Annotated[Positive, Doc("finetune-avg, finetune-max: networks of each task")] = 5
    goal_lr: Annotated[Rate | None, Doc("finetune-avg, finetune-max: their rate (default: --lr)")] = None
    goal_slack: Annotated[float, Ge(0), Lt(1), Doc("how far below the goal an accuracy still counts")] = 0.0
    train_acc_gate: Annotated[
        Fraction | None, Doc("accuracy on the training images that a task has to reach as well")
    ] = None
    on_unreachable: Annotated[
        Literal["share", "fail", "accept"],
        Doc("goal missed at the largest width: leave later tasks their share, stop, or take what was reached as goal"),
    ] = "share"
    on_exhausted: Annotated[
        Literal["pick-only", "fail"], Doc("no free weights at the largest width: pick from older ones alone, or stop")
    ] = "pick-only"
    num_reserve_tasks: Annotated[Count | None, Doc("tasks expected after the listed ones, for their share")] = None

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        value = self.goal_value
        if value is not None and not 0 < value <= 1:
            hint = f"Percent are divided by 100: {value / 100:g}" if 1 < value <= 100 else "Give an accuracy, e.g. 0.93"
            raise ValueError(f"--goal-value is {value:g}, not in 0..1. {hint}")
        for kind, given, example in (("value", value, "0.93"), ("file", self.goal_file, "goals.json")):
            if self.goal == kind and given is None:
                raise ValueError(f"--goal is {kind} without --goal-{kind}. Give one, e.g. --goal-{kind} {example}")
            if self.goal != kind and given is not None:
                raise ValueError(
                    f"--goal-{kind} is {given} and --goal {self.goal}. Give --goal {kind}, or leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class GrowOptions(Checked):
    """When and how the network grows."""

    panel: ClassVar[str] = "Growth"

    grow_step: Annotated[float, Gt(0), Doc("what a goal that is missed adds to the width, in parameters")] = 0.5
    grow_max: Annotated[
        float,
        Ge(1),
        Doc("largest width, as a multiple of the parameters; above 1 for vgg, resnet, smallcnn, vit: and timm's ViTs"),
    ] = 1.5
    grow_round: Annotated[Positive, Doc("channel counts are multiples of this")] = 1


@dataclass(frozen=True, kw_only=True)
class OwnershipOptions:
    """Which tensors tasks share, and what each begins with."""

    panel: ClassVar[str] = "Tasks"

    exclude: Annotated[
        tuple[str, ...], Doc("weights that the first task trains and the others leave alone, with * and ?")
    ] = ()
    own_patch_embed: Annotated[bool, Doc("ViT: the patch embedding is shared like the other weights")] = True
    norm_init: Annotated[
        Literal["previous", "fresh", "pretrained"],
        Doc("what norms and biases begin with: those of the task before, a random network's, or those of --weights"),
    ] = "previous"
    release_init: Annotated[
        Literal["zero", "kaiming-scaled"], Doc("what released weights begin with in the next task")
    ] = "zero"


@dataclass(frozen=True, kw_only=True)
class TaskDataOptions(DataOptions):
    """The data of the tasks."""

    data: Annotated[str, Doc("data set: NAME or NAME:ARGUMENT, see `effvl list datasets`")] = EMBEDDED
    shots: Annotated[Positive | None, Doc("training images per class (default: all)")] = None
    val_fraction: Annotated[
        float | None,
        Gt(0),
        Lt(1),
        Doc("share of the training images that decisions are made on (default: the data set's own validation split)"),
    ] = None
    select_on: Annotated[
        Literal["val", "test"], Doc("images that goals, growth and ratios are decided on; test: as the official code")
    ] = "val"


@dataclass(frozen=True, kw_only=True)
class TaskModelOptions(ModelOptions):
    """The network of all tasks."""

    normalise: Annotated[
        Literal["imagenet", "cifar10", "cifar100", "clip", "half", "none", "per-task"] | None,
        Doc("mean and standard deviation of pixels; per-task: of the task's training images (default: the network's)"),
    ] = None  # type: ignore[assignment]  # of the shared option


@dataclass(frozen=True, kw_only=True)
class TaskOptions(
    RunOptions,
    TaskDataOptions,
    TaskModelOptions,
    LearnOptions,
    OwnershipOptions,
    RetrainOptions,
    PruneOptions,
    PickOptions,
    GrowOptions,
    GoalOptions,
):
    """What learning one task needs to know, in the job and in `add-task`."""

    panel: ClassVar[str] = "Tasks"
    derived: ClassVar[Mapping[str, str]] = {}

    method: Annotated[
        Literal["cpg", "pae", "packnet", "finetune", "individual"],
        Doc("cpg: compact, pick, grow; pae: without picking; packnet: one release; finetune: forgets; individual"),
    ] = "cpg"
    controls: Annotated[
        tuple[Literal["individual", "individual-matched", "finetune", "none"], ...] | None,
        Doc(f"what is trained beside, for comparison {_of('controls')}"),
    ] = None
    packnet_ratio: Annotated[float, Gt(0), Lt(1), Doc("packnet: share of its weights that every task releases")] = 0.6
    eval_batch_size: Annotated[Positive, VOLATILE, Doc("images per step on each device, outside training")] = 256
    deterministic: Annotated[
        bool, Doc("use only deterministic kernels; an op without one is an error that names it")
    ] = True

    def __post_init__(self) -> None:
        """Check the options against one another, and fill those that depend on the data."""
        super().__post_init__()
        usual = dict(OF_EMBEDDED if self.data == EMBEDDED else OF_OTHERS)
        if self.method != "cpg":  # what is compared with others is compared in a table of runs
            usual["controls"] = ("none",)
        origin = EMBEDDED if self.data == EMBEDDED else "default"
        fill(self, {name: (value, origin) for name, value in usual.items()})
        if "prune_ramp_epochs" in self.derived and self.prune_epochs and self.prune_ramp_epochs:
            object.__setattr__(self, "prune_ramp_epochs", min(self.prune_epochs, self.prune_ramp_epochs))
        controls = self.controls or ()
        if "none" in controls and len(controls) > 1:
            raise ValueError(f"--controls is {','.join(controls)}. Leave none out")
        if self.prune_ramp_epochs and self.prune_epochs and self.prune_ramp_epochs > self.prune_epochs:
            raise ValueError(
                f"--prune-ramp-epochs is {self.prune_ramp_epochs} and --prune-epochs {self.prune_epochs}. "
                "A stage has to last as long as its ramp"
            )
        if self.norm_init == "pretrained" and self.weights in (None, "none"):
            raise ValueError("--norm-init is pretrained without --weights. Give these, or --norm-init fresh")
        if self.prune_ratios and self.min_ratio > self.prune_ratios[-1]:
            raise ValueError(
                f"--min-ratio is {self.min_ratio:g}, and the largest of --prune-ratios {self.prune_ratios[-1]:g}. "
                "Give a smaller one"
            )


@dataclass(frozen=True, kw_only=True)
class ContinualConfig(TaskOptions):
    """Learn tasks one after another in one network, without forgetting."""

    panel: ClassVar[str] = "Tasks"
    follows: ClassVar[Follows] = dict.fromkeys(GROUPING, ("tasks", lambda value, tasks: tasks == CHUNK))
    common: ClassVar[tuple[str, ...]] = (
        *("tasks", "num_tasks", "num_classes_per_task", "method", "controls", "data", "model", "weights", "epochs"),
        *("lr", "prune_ratios", "goal", "goal_value", "grow_max", "batch_size", "precision", "device", "seed", "out"),
    )

    tasks: Annotated[
        str,
        ARTEFACT,
        Doc("chunk: classes of --data in groups; coarse: by their coarse labels; or a YAML list of tasks"),
    ] = "chunk"
    num_tasks: Annotated[Positive | None, Doc("learn the first so many tasks (default: all)")] = None
    num_classes_per_task: Annotated[int, Ge(2), Le(100_000), Doc("chunk: classes of each task")] = 2
    class_order: Annotated[Literal["label", "seed"], Doc("chunk: order of the classes; seed: shuffled")] = "label"
    shared_format: Annotated[
        Literal["dense", "sparse"],
        Doc("shared weights on disk: all values, or those alone that a task owns; both exact"),
    ] = "dense"

    def __post_init__(self) -> None:
        """Check the options against one another."""
        super().__post_init__()
        refuse_ungrouped("tasks", self)


def refuse_ungrouped(name: str, options: Any) -> None:
    """Refuse options that divide classes into groups where something else does.

    Args:
        name: of the option that says what does.
        options: with it.

    Raises:
        ValueError: one is given, and it would be left unused.
    """
    way = getattr(options, name)
    for other in GROUPING:
        value = getattr(options, other)
        if way != CHUNK and value != getattr(type(options), other):
            raise ValueError(
                f"--{other.replace('_', '-')} is {value} and --{name} {way}: only {CHUNK} takes it. Leave it out"
            )
