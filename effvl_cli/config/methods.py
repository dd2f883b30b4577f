"""The methods of `effvl pretrain`: a new one is a row here and the file that the row names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

REFERENCE_BATCH = 256  # batch size that released recipes give their rates for
_VIEW_OPTIONS = (
    *("budget", "schedule", "patch", "keep", "baseline", "cost_model", "compile", "image_size"),
    *("size_policy", "keep_neighbours"),
    *("patch_resize", "crop_min", "aug_device", "temperature", "stop_grad_patch_embed", "drop_path"),
    *("head_layers", "head_hidden", "head_out"),
)
_LABEL_OPTIONS = ("steps", "accumulate", "augment", "templates")

WIDEST = 16  # largest hidden width of default heads, in widths of the backbone: a ViT-S gets the released ones
EMBEDDED = "shape-captions"

Arguments = Callable[[Any, int, int], dict[str, Any]]
"""From (options, width of the backbone, training pictures) to the arguments of the method's networks."""


def _heads(config: Any, width: int) -> dict[str, int]:
    """Widths of the heads: as given, else those of the method; small ones on the embedded data and for small ViTs."""
    hidden, out = METHODS[config.method].heads
    if is_embedded(config):
        hidden, out = 4 * width, width
    return {"hidden": config.head_hidden or min(hidden, WIDEST * width), "out": config.head_out or out}


def _simclr(config: Any, width: int, num_images: int) -> dict[str, Any]:
    return {**_heads(config, width), "layers": config.head_layers or 2, "temperature": config.temperature or 0.2}


def _mocov3(config: Any, width: int, num_images: int) -> dict[str, Any]:
    return {
        **_heads(config, width),
        "layers": config.head_layers or 3,
        "temperature": config.temperature or 0.2,
        "momentum": config.ema or 0.99,
        "symmetric": config.symmetric_loss,
        "loss_scale": config.moco_loss_scale,
    }


def _dino(config: Any, width: int, num_images: int) -> dict[str, Any]:
    heads = _heads(config, width)
    return {
        "hidden": heads["hidden"],
        "bottleneck": heads["out"],
        "prototypes": config.prototypes or (65536 if num_images >= 100_000 else 4096),  # many collapse on few pictures
        "momentum": config.ema or 0.996,
        "student_temperature": config.temperature or 0.1,
        "teacher_temperature": config.teacher_temperature,
        "teacher_warmup": config.teacher_warmup,
        "freeze_last": config.freeze_last,
        "local_crops": config.local_crops,
    }


@dataclass(frozen=True)
class MethodSpec:
    """Description of a method.

    Attributes:
        target: "module:Class", the networks and loss of a method that compares views, else the engine's objective.
        options: the ones that this method has of those that only some methods have.
        defaults: values of options that are not given.
        heads: hidden width and output of the released heads.
        base_lr: peak learning rate at a batch of `REFERENCE_BATCH`, in proportion to the batch; None: in `defaults`.
        compares_views: trained from pictures alone, under a schedule of compressions.
        views: pair of augmentations, by the method that they were released with.
        arguments: of the networks, from the options.
        compresses_keys: whether the second view is compressed as much as the first; a teacher's is whole.
        both_ways: whether each of the two views is both a query and a key.
        same_views: whether the teacher sees the views of the student.
        init: initialisation of a random backbone, where the method has its own.
        freezes_patches: whether the patch kernel keeps its random initial values.
        hint: option that helps where the loss is not finite.
    """

    target: str
    options: tuple[str, ...]
    defaults: Mapping[str, Any]
    heads: tuple[int, int] = (0, 0)
    base_lr: float | None = None
    compares_views: bool = False
    views: str = "simclr"
    arguments: Arguments = field(default=lambda config, width, num_images: {})
    compresses_keys: bool = False
    both_ways: Callable[[Any], bool] = field(default=lambda config: False)
    same_views: bool = False
    init: Literal["moco"] | None = None
    freezes_patches: bool = False
    hint: str = "raise --temperature"


_PLAIN = {"weight_decay": 0.02, "clip_grad": 1.0, "clip_mode": "global", "warmup": 0.05}
SMALL = MappingProxyType({"lr": 1e-3, **_PLAIN})
"""Values that suit the embedded data and model, and labelled training."""

METHODS: dict[str, MethodSpec] = {
    "simclr": MethodSpec(
        target="effvl_cli.techniques.pretrain.simclr:SimCLR",
        options=_VIEW_OPTIONS,
        defaults={
            **{"weight_decay": 0.05, "clip_grad": 0.0, "clip_mode": "global", "warmup": 0.05},
            "head_layers": 2,
        },
        heads=(2048, 128),
        base_lr=3e-4,
        compares_views=True,
        arguments=_simclr,
        compresses_keys=True,
    ),
    "mocov3": MethodSpec(
        target="effvl_cli.techniques.pretrain.mocov3:MoCoV3",
        options=(*_VIEW_OPTIONS, "ema", "symmetric_loss", "moco_loss_scale"),
        defaults={
            **{"weight_decay": 0.1, "clip_grad": 0.0, "clip_mode": "global", "warmup": 0.1333},  # 40 of 300 epochs
            "head_layers": 3,
        },
        heads=(4096, 256),
        base_lr=1.5e-4,
        compares_views=True,
        views="mocov3",
        arguments=_mocov3,
        both_ways=lambda config: bool(config.symmetric_loss),
        init="moco",
        freezes_patches=True,
    ),
    "dino": MethodSpec(
        target="effvl_cli.techniques.pretrain.dino:DINO",
        options=(
            *(*_VIEW_OPTIONS, "ema", "prototypes", "teacher_temperature", "teacher_warmup", "freeze_last"),
            *("local_crops", "local_size"),
        ),
        defaults={
            **{"weight_decay": 0.04, "weight_decay_end": 0.4, "clip_grad": 3.0, "clip_mode": "per-param"},
            "warmup": 0.1,
        },
        heads=(2048, 256),
        base_lr=5e-4,
        compares_views=True,
        views="dino",
        arguments=_dino,
        both_ways=lambda config: True,
        same_views=True,
        hint="raise --teacher-temperature",
    ),
    "clip": MethodSpec(
        target="effvl_cli.engines.pretrain.clip:ClipObjective",
        options=(*_LABEL_OPTIONS, "eval_data", "keep"),
        defaults=SMALL,
    ),
    "supervised": MethodSpec(
        target="effvl_cli.engines.pretrain.supervised:SupervisedObjective",
        options=(*_LABEL_OPTIONS, "label_smoothing"),
        defaults=SMALL,
    ),
}
VIEW_METHODS = tuple(name for name, spec in METHODS.items() if spec.compares_views)


def methods_with(option: str) -> tuple[str, ...]:
    """The methods that have an option; one that no row names belongs to all of them."""
    found = tuple(name for name, spec in METHODS.items() if option in spec.options)
    return found or tuple(METHODS)


def is_embedded(config: Any) -> bool:
    """Whether this is the default method on the embedded data, whose network is small."""
    return bool(config.data == EMBEDDED and config.method == type(config).method)


def defaults_of(config: Any) -> dict[str, tuple[Any, str]]:
    """Values of the training options that are not given, each with its origin."""
    spec = METHODS[config.method]
    if is_embedded(config):
        return {name: (value, "default of the embedded data") for name, value in SMALL.items()}
    origin = f"default of {config.method}"
    found = {name: (value, origin) for name, value in spec.defaults.items()}
    if spec.base_lr is not None:
        lr = spec.base_lr * config.batch_size / REFERENCE_BATCH
        found["lr"] = (lr, f"{origin}: {spec.base_lr:g} x {config.batch_size} / {REFERENCE_BATCH}")
    if config.weight_decay is not None:  # then its end is the user's choice too
        found.pop("weight_decay_end", None)
    return found
