"""The objective of a detector's training, as the loop runs it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from effvl_cli.core import distributed, seeds
from effvl_cli.core.loop import StepOutput, Task
from effvl_cli.core.run import Run
from effvl_cli.core.stage_meter import StageMeter
from effvl_cli.data.box_batches import BoxBatch
from effvl_cli.models.detector import CascadeRCNN
from effvl_cli.techniques.detect.shared_batch import Group, use_group
from effvl_cli.techniques.detect.subclass import child_labels

Validate = Callable[[CascadeRCNN], dict[str, float]]
"""Figures of a detector, the same on every process."""

Tensors = tuple[Tensor, ...] | list[Tensor]

_SHORT = {"loss_objectness": "rpn_cls", "loss_rpn_box_reg": "rpn_box"}
_STAGE = {"loss_classifier_s": "s{}_cls", "loss_box_reg_s": "s{}_box"}


class Trainee(nn.Module):
    """A detector, and the moving average of its weights where one is kept.

    Args:
        detector: what is trained.
        momentum: of the average; None: there is none.
    """

    def __init__(self, detector: CascadeRCNN, momentum: float | None) -> None:
        super().__init__()
        self.detector = detector
        self.average: AveragedModel | None = None
        if momentum is not None:
            self.average = AveragedModel(detector, multi_avg_fn=_moved(momentum), use_buffers=True)
            self.average.requires_grad_(False)

    @property
    def result(self) -> CascadeRCNN:
        """The detector that is evaluated and kept."""
        found = self.detector if self.average is None else self.average.module
        assert isinstance(found, CascadeRCNN)
        return found


def _moved(momentum: float) -> Callable[[Tensors, Tensors, Any], None]:
    """Moves averages towards current values; whole numbers, as the classes of outputs, are copied.

    torch's own rounds the averages of equal whole numbers down to others.
    """
    move = get_ema_multi_avg_fn(momentum)

    def moved(averages: Tensors, current: Tensors, count: Any) -> None:
        if averages[0].is_floating_point():
            move(averages, current, count)
        else:
            torch._foreach_copy_(averages, current)

    return moved


class DetectionTask(Task):
    """The losses of a detector, and its figures on validation images.

    Args:
        trainee: what is trained.
        run: device.
        validate: figures of a detector, the same on every process.
    """

    def __init__(self, trainee: Trainee, run: Run, validate: Validate) -> None:
        self.module, self.run, self.validate = trainee, run, validate
        self.num_classes = trainee.detector.num_classes
        self.subclasses: Tensor | None = trainee.detector.spec.present(self.num_classes)
        self.meter = StageMeter()
        use_group(
            trainee.detector,
            Group(distributed.world().size, distributed.all_reduce_sum, distributed.all_reduce_max),
        )

    def train_step(self, batch: BoxBatch, step: int) -> StepOutput:
        """Sum of the losses of this process's images, as its part of the mean over the processes.

        What is drawn for an image depends on the seed, the step and the image alone.
        """
        batch = batch.to(self.run.device)
        generators = [
            seeds.generator(self.run.report.seed, "boxes", step, index, device=self.run.device)
            for index in batch.indices.tolist()
        ]
        targets = [self._labelled(target) for target in batch.targets]
        losses = self.module.detector(batch.images, targets, generators)
        total: Tensor = torch.stack(list(losses.values())).sum()
        diagnostics = self.module.detector.roi_heads.diagnostics
        logs = _over_processes({"loss": total, **{short_name(name): value for name, value in losses.items()}})
        return StepOutput(total, logs | {name: torch.nan_to_num(value.float()) for name, value in diagnostics.items()})

    def _labelled(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With labels of what is learned: classes, or classes by day and by night."""
        labels = target["labels"]
        if self.subclasses is not None:
            labels = child_labels(labels, int(target["night"]), self.num_classes, self.subclasses)
        return {**target, "labels": labels}

    def after_step(self, step: int, *, counted: bool) -> None:
        """Move the average with each step that counts."""
        if counted and self.module.average is not None:
            self.module.average.update_parameters(self.module.detector)
        self.meter.step_done(0)

    def evaluate(self) -> dict[str, float]:
        """Figures of what would be kept now; all processes have the first one's buffers from here on."""
        distributed.share_buffers(self.module)
        return self.validate(self.module.result)

    def state_dict(self) -> dict[str, Any]:
        """Times so far."""
        return {"meter": self.meter.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.meter.load_state_dict(state["meter"])


def short_name(name: str) -> str:
    """As in metrics.jsonl: `loss_classifier_s0` -> `s0_cls`, `loss_objectness` -> `rpn_cls`."""
    for long, short in _STAGE.items():
        if name.startswith(long):
            return short.format(name.removeprefix(long))
    return _SHORT.get(name, name)


def _over_processes(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over the processes."""
    world = distributed.world().size
    if world == 1:
        return dict(logs)
    values = torch.stack([value.detach().float() for value in logs.values()])
    means = distributed.all_reduce_sum(values) / world
    return dict(zip(logs, means, strict=True))
