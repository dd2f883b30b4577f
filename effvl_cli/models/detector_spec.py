"""What a detector is made of, and its name in the registry: `cascade-rcnn:PRESET[,WORD=VALUE,...]`.

The name says all that differs from the preset, so that a checkpoint's manifest needs nothing else to build it again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from effvl_cli.core.errors import UsageError
from effvl_cli.core.registry import nearest
from effvl_cli.techniques.detect.cascade_head import IOUS, LOSS_WEIGHTS, ScoreAverage, Weights
from effvl_cli.techniques.detect.subclass import Merge

FAMILY = "cascade-rcnn"
_REGRESSION = (10.0, 20.0, 30.0)
_MOST_USUAL = 5  # stages with a usual IoU
_PYRAMID = 5  # levels
_SMALLEST_IMAGE = 32  # px, the stride of the coarsest level with parameters
Norm = Literal["frozen", "batch", "group"]
Preset = Literal["paper", "light", "tiny"]


@dataclass(frozen=True, kw_only=True)
class DetectorSpec:
    """A detector without its weights and classes. Tuples over stages have one value for each of them.

    Attributes:
        preset: paper (ResNet-18, FPN 256), light (ResNet-18, FPN 128) or tiny (thin ResNet, FPN 32).
        num_stages: K of the cascade.
        iou: IoU of a positive, for each stage.
        reg_weights: factor of the regression targets of x and y, twice that of width and height, for each stage.
        loss_weights: for each stage.
        box_loss_beta: of the smooth L1 loss.
        class_agnostic: one box for all classes.
        head_width: of the two fully connected layers of a stage.
        fpn: channels of the pyramid.
        anchors: side in px on each level.
        min_size: shortest side of the images; several: drawn in training, the last one in evaluation.
        max_size: longest side.
        norm: of the backbone.
        trainable_layers: of the backbone's five, from the last.
        roi_aligned: half-pixel shift of RoIAlign, as in detectron2 and mmdetection.
        score_avg: mean of the stages' probabilities or of their logits.
        merge: how the scores of subclasses become those of classes.
        resample: rows are drawn before every stage.
        stage_grad_scale: the gradient of pooled features is divided by K.
        rois: rows of an image that a stage is trained on.
        pre_nms: proposals of a level before NMS, in training and evaluation.
        post_nms: proposals of an image, likewise.
        score_thresh: a detection has more.
        nms_thresh: IoU of the final NMS.
        detections: of an image, at most.
        conditions: names of the subclasses of every class; empty: none.
        absent: subclasses that are not learned, as condition.class, numbered from 0 and from 1.
    """

    preset: Preset
    num_stages: int = 3
    iou: tuple[float, ...] = IOUS
    reg_weights: tuple[float, ...] = _REGRESSION
    loss_weights: tuple[float, ...] = LOSS_WEIGHTS
    box_loss_beta: float = 1.0
    class_agnostic: bool = True
    head_width: int
    fpn: int
    anchors: tuple[int, ...]
    min_size: tuple[int, ...]
    max_size: int
    norm: Norm = "batch"
    trainable_layers: int = 5
    roi_aligned: bool = False
    score_avg: ScoreAverage = "prob"
    merge: Merge = "max"
    resample: bool = True
    stage_grad_scale: bool = False
    rois: int = 512
    pre_nms: tuple[int, ...] = (2000, 1000)
    post_nms: tuple[int, ...] = (1000, 1000)
    score_thresh: float = 0.05
    nms_thresh: float = 0.5
    detections: int = 100
    conditions: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @classmethod
    def of(cls, preset: str = "tiny", **changes: Any) -> "DetectorSpec":
        """A preset with changes; a change of None is none, and one of `num_stages` shortens what the stages have.

        Raises:
            UsageError: unknown preset, or values that do not fit one another.
        """
        if preset not in PRESETS:
            raise UsageError(
                f"unknown --preset {preset!r}", nearest(preset, list(PRESETS)) or f"Give one of {', '.join(PRESETS)}"
            )
        changes = {name: value for name, value in changes.items() if value is not None}
        stages = changes.get("num_stages", PRESETS[preset].num_stages)
        found = replace(PRESETS[preset], **(_first(stages) | changes))
        found._check()
        return found

    @classmethod
    def parse(cls, argument: str) -> "DetectorSpec":
        """From what follows `cascade-rcnn:`.

        Raises:
            UsageError: a word or value that it does not have.
        """
        preset, *words = argument.split(",")
        kinds = get_type_hints(cls)
        changes = {}
        for word in words:
            short, _, text = word.partition("=")
            name = _FIELDS.get(short)
            if name is None:
                hint = nearest(short, list(_FIELDS)) or f"Known: {', '.join(_FIELDS)}"
                raise UsageError(f"{FAMILY}:{argument} has the unknown word {short!r}", hint)
            try:
                changes[name] = _value(text, kinds[name])
            except ValueError as error:
                raise UsageError(f"{FAMILY}:{argument}: {word} cannot be read", "E.g. iou=.5/.6/.7") from error
        return cls.of(preset, **changes)

    @property
    def name(self) -> str:
        """In the registry, with all that differs from the preset."""
        usual = replace(PRESETS[self.preset], **_first(self.num_stages))
        words: list[str] = [self.preset]
        for short, name in _FIELDS.items():
            if getattr(self, name) != getattr(usual, name):
                words.append(f"{short}={_text(getattr(self, name))}")
        return f"{FAMILY}:{','.join(words)}"

    @property
    def stage_weights(self) -> list[Weights]:
        """Factors of x, y, width and height for each stage."""
        return [(value, value, value / 2, value / 2) for value in self.reg_weights]

    def present(self, num_classes: int) -> Tensor | None:
        """(S, C) bool: the subclasses that are learned; None without subclasses.

        Raises:
            UsageError: `absent` names others than there are.
        """
        if not self.conditions:
            return None
        found = torch.ones(len(self.conditions), num_classes, dtype=torch.bool)
        for text in self.absent:
            condition, _, label = text.partition(".")
            if not (condition.isdecimal() and label.isdecimal()):
                raise UsageError(f"absent={text} cannot be read", "Write condition.class, e.g. 1.3")
            if not (int(condition) < len(self.conditions) and 1 <= int(label) <= num_classes):
                raise UsageError(f"absent={text}: there is no such subclass", "Numbers are from 0, and from 1")
            found[int(condition), int(label) - 1] = False
        return found

    def without(self, present: Tensor) -> "DetectorSpec":
        """The same with the subclasses that are not `present` (S, C) left out."""
        absent = (~present).nonzero().tolist()
        return replace(self, absent=tuple(f"{condition}.{label + 1}" for condition, label in absent))

    def _check(self) -> None:
        """Refuse what could not be built.

        Raises:
            UsageError: see the message.
        """
        for option in ("num_stages", "head_width", "fpn", "max_size", "rois", "detections"):
            if getattr(self, option) < 1:
                raise UsageError(f"{_flag(option)} {getattr(self, option)} is below 1", "Give a larger number")
        for option in ("iou", "reg_weights", "loss_weights"):
            values = getattr(self, option)
            if len(values) != self.num_stages:
                what = f"{len(values)} values for {self.num_stages} stages"
                raise UsageError(f"{_flag(option)} {_given(values)} has {what}", "Give one for each of --num-stages")
        if not all(0 < value < 1 for value in self.iou):
            raise UsageError(f"--iou {_given(self.iou)} is not inside (0, 1)", "E.g. --iou .5,.6,.7")
        self._check_sizes()

    def _check_sizes(self) -> None:
        if len(self.anchors) != _PYRAMID or min(self.anchors) < 1:
            text = f"--anchors {_given(self.anchors)} are not {_PYRAMID} sides in px"
            raise UsageError(text, "E.g. --anchors 8,16,32,64,128")
        if not self.min_size or min(self.min_size) < _SMALLEST_IMAGE:
            text = f"--min-size {_given(self.min_size)} is below {_SMALLEST_IMAGE} px"
            raise UsageError(text, "Give one or more sides from there on")
        if max(self.min_size) > self.max_size:
            text = f"--min-size {max(self.min_size)} exceeds --max-size {self.max_size}"
            raise UsageError(text, "Raise --max-size, or lower --min-size")
        if len(self.pre_nms) != 2 or len(self.post_nms) != 2 or min(self.pre_nms + self.post_nms) < 1:
            text = f"proposals {_text(self.pre_nms)} before and {_text(self.post_nms)} after NMS cannot be used"
            raise UsageError(text, "Each is two numbers, for training and for evaluation")


_FIELDS: Mapping[str, str] = {
    "stages": "num_stages",
    "reg": "reg_weights",
    "loss": "loss_weights",
    "beta": "box_loss_beta",
    "agnostic": "class_agnostic",
    "head": "head_width",
    "min": "min_size",
    "max": "max_size",
    "trainable": "trainable_layers",
    "aligned": "roi_aligned",
    "avg": "score_avg",
    "gradscale": "stage_grad_scale",
    "pre": "pre_nms",
    "post": "post_nms",
    "score": "score_thresh",
    "nms": "nms_thresh",
} | {
    name: name
    for name in ("iou", "fpn", "anchors", "norm", "merge", "resample", "rois", "detections", "conditions", "absent")
}
PRESETS: Mapping[str, DetectorSpec] = {
    "paper": DetectorSpec(
        preset="paper", head_width=1024, fpn=256, anchors=(32, 64, 128, 256, 512), min_size=(720,), max_size=1280
    ),
    "light": DetectorSpec(
        preset="light",
        head_width=256,
        fpn=128,
        anchors=(16, 32, 64, 128, 256),
        min_size=(480,),
        max_size=864,
        post_nms=(1000, 300),
    ),
    "tiny": DetectorSpec(
        preset="tiny",
        head_width=64,
        fpn=32,
        anchors=(8, 16, 32, 64, 128),
        min_size=(160,),
        max_size=256,
        rois=32,
        pre_nms=(500, 300),
        post_nms=(200, 100),
    ),
}


def _first(stages: int) -> dict[str, Any]:
    """The usual values of the first stages; those beyond the published three go on as these do, up to an IoU of 0.9."""
    further = range(len(IOUS), stages)
    return {
        "iou": IOUS[:stages] + tuple(round(0.5 + k / 10, 1) for k in further if k < _MOST_USUAL),
        "reg_weights": _REGRESSION[:stages] + tuple(10.0 * (k + 1) for k in further),
        "loss_weights": LOSS_WEIGHTS[:stages] + tuple(0.5**k for k in further),
    }


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _given(values: tuple[float, ...]) -> str:
    """Values as an option takes them."""
    return ",".join(map(_text, values))


def _text(value: Any) -> str:
    """A value as it stands in a name."""
    if isinstance(value, tuple):
        return "/".join(map(_text, value))
    if isinstance(value, bool):
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def _value(text: str, kind: Any) -> Any:
    """What a text of a name stands for.

    Raises:
        ValueError: nothing of that kind.
    """
    if get_origin(kind) is tuple:
        return tuple(_value(part, get_args(kind)[0]) for part in text.split("/")) if text else ()
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(text)
        return text
    if kind is bool:
        return {"0": False, "1": True}[text] if text in {"0", "1"} else int("no bool")
    return kind(text)
