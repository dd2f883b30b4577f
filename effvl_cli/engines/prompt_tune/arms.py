"""The methods that a run compares, and what each of them is trained and measured on."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from effvl_cli.config.prompt_tune import UNTRAINED, PromptTuneConfig
from effvl_cli.engines.prompt_tune.context import Context
from effvl_cli.engines.prompt_tune.features import Features
from effvl_cli.engines.prompt_tune.label_sets import LabelSet, Training
from effvl_cli.techniques.prompt_tune.class_head import ClassHead

Comparing = Context[PromptTuneConfig]


@dataclass(frozen=True)
class Arm:
    """A method, and its loss where it is trained by SGD."""

    method: str
    loss: str = ""

    @property
    def name(self) -> str:
        """In metrics and files, e.g. "prompt_gce"."""
        return "_".join(filter(None, (self.method, self.loss))).replace("-", "_")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained method.

    Attributes:
        arm: which one.
        test: (M, K) logits of the test images.
        train: (N, K) logits of the middle of the training images.
        head: the same as class weights, where it is that.
        learned: tensors of the text tower's side that were trained, by name.
        about: what describes the training, for the report.
    """

    arm: Arm
    test: Tensor
    train: Tensor
    head: ClassHead | None = None
    learned: dict[str, Tensor] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """What the methods are trained and measured on: the images and labels of one noise rate."""

    context: Comparing
    training: Training
    labels: LabelSet
    test: Features

    @property
    def centres(self) -> Tensor:
        """(N, D) features of the middle of the training images."""
        return self.training.centres(self.labels)

    def phase(self, arm: Arm) -> str:
        """Name of a method's training, unique in the run."""
        return f"{arm.name}{self.labels.suffix}"

    def applied(
        self,
        arm: Arm,
        head: ClassHead,
        learned: dict[str, Tensor] | None = None,
        about: dict[str, Any] | None = None,
    ) -> Fitted:
        """A method that ends as class weights."""
        return Fitted(arm, head(self.test.first), head(self.centres), head, learned or {}, about or {})


def arms_of(config: PromptTuneConfig) -> list[Arm]:
    """Every method, those that are trained by SGD with every loss."""
    found = []
    for method in config.method:
        found += [Arm(method)] if method in UNTRAINED else [Arm(method, loss) for loss in config.loss]
    return found
