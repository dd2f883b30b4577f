"""DINO (Caron et al., arXiv 2104.14294)."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.techniques.common.momentum import follow, freeze, half_cosine

from .cost import Passes
from .heads import DinoHead
from .method import Gather, Method, MethodLoss, Views, encode
from .precision import full
from .vit import VisionTransformer

CENTRE_MOMENTUM = 0.9


def dino_loss(teacher: list[Tensor], student: list[Tensor], student_temperature: float) -> Tensor:
    """Mean cross entropy of each teacher view with each student view other than itself (eq. 3).

    Args:
        teacher: probabilities (B, K) of the global views.
        student: logits (B, K) of all views, the global ones first and in the same order.
        student_temperature: of the student's softmax.
    """
    log_student = [F.log_softmax(full(view) / student_temperature, dim=1) for view in student]
    terms = [
        -(target * prediction).sum(1).mean()
        for i, target in enumerate(teacher)
        for j, prediction in enumerate(log_student)
        if i != j
    ]
    return torch.stack(terms).mean()


class DINO(Method):
    """A student that matches the centred and sharpened outputs of its moving average.

    Args:
        backbone: the encoder.
        hidden: width of the head's hidden layers.
        bottleneck: width of the head's normalised layer.
        prototypes: K, outputs of the head.
        momentum: of the teacher at t = 0; it rises to 1 along half a cosine.
        student_temperature: temperature of the student.
        teacher_temperature: temperature of the teacher, after its warm-up.
        teacher_warmup: share of the budget over which the teacher's temperature rises from 0.04.
        freeze_last: share of the budget during which the prototypes are frozen.
        local_crops: number of local views.
    """

    centre: Tensor

    def __init__(
        self,
        backbone: VisionTransformer,
        *,
        hidden: int,
        bottleneck: int = 256,
        prototypes: int = 4096,
        momentum: float = 0.996,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        teacher_warmup: float = 0.0,
        freeze_last: float = 0.01,
        local_crops: int = 0,
    ) -> None:
        super().__init__()
        self.backbone: VisionTransformer = backbone
        self.head: DinoHead = DinoHead(backbone.shape.width, hidden, bottleneck, prototypes)
        self.teacher_backbone = freeze(copy.deepcopy(backbone))
        self.teacher_head: DinoHead = copy.deepcopy(self.head)
        freeze(self.teacher_head)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.momentum, self.freeze_last, self.local_crops = momentum, freeze_last, local_crops
        self.student_temperature = student_temperature
        self.teacher_temperature, self.teacher_warmup = teacher_temperature, teacher_warmup

    @property
    def passes(self) -> Passes:
        """Two global views of student and teacher, and the local ones."""
        return Passes(query=2, key=2, local=self.local_crops)

    @property
    def result(self) -> VisionTransformer:
        """The teacher."""
        return self.teacher_backbone  # type: ignore[return-value]

    def temperature(self, t: float) -> float:
        """The teacher's temperature at t."""
        start = min(0.04, self.teacher_temperature)
        share = 1.0 if self.teacher_warmup == 0 else min(1.0, t / self.teacher_warmup)
        return start + share * (self.teacher_temperature - start)

    def loss(self, views: Views, gather: Gather, t: float) -> MethodLoss:
        """Cross entropy of this process's images; the centre used is the one before this batch."""
        features = encode(self.backbone, [*views.query, *views.local])
        student = list(self.head(torch.cat(features)).chunk(len(features)))
        with torch.no_grad():
            known = encode(self.teacher_backbone, views.key)
            embedded = self.teacher_head.embed(torch.cat(known))
            outputs = full(self.teacher_head(torch.cat(known))).chunk(len(known))
            teacher = [F.softmax((view - self.centre) / self.temperature(t), dim=1) for view in outputs]
            logs = self._diagnosis(teacher, student)
            self._move_centre(torch.cat(outputs), gather)
        loss = dino_loss(teacher, student, self.student_temperature)
        return MethodLoss(loss, embedded.chunk(len(known))[0], logs)

    @torch.no_grad()
    def _move_centre(self, outputs: Tensor, gather: Gather) -> None:
        """One step of the mean of the teacher's outputs (B, K), over all processes."""
        mean = gather(outputs.mean(0, keepdim=True)).mean(0)
        self.centre.lerp_(mean, 1 - CENTRE_MOMENTUM)

    def _diagnosis(self, teacher: list[Tensor], student: list[Tensor]) -> dict[str, Tensor]:
        """From the outputs (B, K) of the views to scalars for the log.

        Collapse shows as an entropy near 0, or as one near log K with a divergence near 0.
        """
        entropy = torch.stack([-torch.xlogy(p, p).sum(1).mean() for p in teacher]).mean()
        log_student = F.log_softmax(full(student[1]).detach() / self.student_temperature, dim=1)
        cross = -(teacher[0] * log_student).sum(1).mean()
        own = -torch.xlogy(teacher[0], teacher[0]).sum(1).mean()
        return {"teacher_entropy": entropy / math.log(len(self.centre)), "divergence": cross - own}

    def after_backward(self, t: float) -> None:
        """Drop the prototypes' gradients while they are frozen."""
        if t < self.freeze_last:
            self.head.prototypes.grad = None

    def after_step(self, t: float, ahead: float) -> None:
        """Move the teacher towards the student after the update."""
        momentum = half_cosine(t, self.momentum, 1.0)
        follow(self.teacher_backbone, self.backbone, momentum)
        follow(self.teacher_head, self.head, momentum)
