"""The methods that a run compares, each trained on the same images and labels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effvl_cli.config.prompt_tune import LEARNERS, UNTRAINED, PromptTuneConfig
from effvl_cli.core.phases import Phases
from effvl_cli.engines.prompt_tune.context import Context, prompt_rate
from effvl_cli.engines.prompt_tune.features import Features
from effvl_cli.engines.prompt_tune.head_training import loss_of, train_module
from effvl_cli.engines.prompt_tune.label_sets import LabelSet, Training
from effvl_cli.engines.prompt_tune.learners import learner_of
from effvl_cli.techniques.prompt_tune.class_head import ClassHead

Comparing = Context[PromptTuneConfig]
Logits = Callable[[Tensor], Tensor]
"""Features (B, D) to logits (B, K)."""


@dataclass(frozen=True)
class Arm:
    """A method, and its loss where it is trained by SGD."""

    method: str
    loss: str = ""

    @property
    def name(self) -> str:
        """In metrics and tables, e.g. "prompt_gce"."""
        return "_".join(filter(None, (self.method.replace("-", "_"), self.loss)))

    @property
    def title(self) -> str:
        """For readers, e.g. "prompt + gce"."""
        return " + ".join(filter(None, (self.method, self.loss)))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained method.

    Attributes:
        arm: which one.
        test: (M, K) logits of the test images.
        train: (N, K) logits of the middle of the training images.
        head: the same as weights of the classes, where it is that.
        state: what was learned, for methods that have more than their class weights.
        steps: of its training.
        seconds: of its training, in the attempt that did it.
        notes: figures of the training for the report.
    """

    arm: Arm
    test: Tensor
    train: Tensor
    head: ClassHead | None = None
    state: dict[str, Tensor] | None = None
    steps: int = 0
    seconds: float = 0.0
    notes: dict[str, object] | None = None


@dataclass(frozen=True)
class Bench:
    """What a method is trained and measured on."""

    context: Comparing
    training: Training
    labels: LabelSet
    test: Features

    @property
    def centres(self) -> Tensor:
        """(N, D) features of the middle of the training images."""
        return self.training.centres(self.labels)


def arms_of(config: PromptTuneConfig) -> list[Arm]:
    """Every method, those that are trained by SGD with every loss."""
    found = []
    for method in config.method:
        found += [Arm(method)] if method in UNTRAINED else [Arm(method, loss) for loss in config.loss]
    return found


def fit_arm(bench: Bench, arm: Arm) -> Fitted:
    """Train a method, or take it from an earlier attempt of the run."""
    fits = {
        "zero-shot": _zero_shot,
        "linear-probe": _linear_probe,
        **dict.fromkeys(LEARNERS, _learner),
    }
    return fits[arm.method](bench, arm)


def _applied(bench: Bench, arm: Arm, head: ClassHead, **more: object) -> Fitted:
    return Fitted(arm, head(bench.test.first), head(bench.centres), head, **more)  # type: ignore[arg-type]


def _zero_shot(bench: Bench, arm: Arm) -> Fitted:
    return _applied(bench, arm, zero_shot_head(bench.context))


def zero_shot_head(context: Comparing) -> ClassHead:
    """The class features of the templates."""
    return ClassHead(context.classifier.cpu(), scale=context.scale)


def _learner(bench: Bench, arm: Arm) -> Fitted:
    context = bench.context
    module = learner_of(context, arm.method)
    lr = context.config.tenc_lr if arm.method == "tenc-ft" else prompt_rate(context)
    return _trained(bench, arm, module, lr)


def _trained(bench: Bench, arm: Arm, module: nn.Module, lr: float) -> Fitted:
    context = bench.context
    train = bench.training.of(bench.labels)
    phase = f"{arm.name}{bench.labels.suffix}"
    fitted = train_module(context, module, train, loss_of(context, arm.loss), lr, phase)
    with torch.no_grad():
        weight = module().float().cpu()
    state = {key: value.detach().cpu() for key, value in module.state_dict().items()}
    head = ClassHead(weight, scale=context.scale)
    return _applied(bench, arm, head, state=state, steps=fitted.steps, seconds=fitted.seconds)


def _linear_probe(bench: Bench, arm: Arm) -> Fitted:
    from sklearn.linear_model import LogisticRegression

    context = bench.context

    def make() -> dict[str, Tensor]:
        probe = LogisticRegression(C=context.config.probe_c, max_iter=1000, tol=1e-4)
        probe.fit(bench.centres.numpy(), bench.labels.given.numpy())
        return {"weight": torch.from_numpy(probe.coef_).float(), "bias": torch.from_numpy(probe.intercept_).float()}

    found = Phases.of(context.run).tensors(f"{arm.name}{bench.labels.suffix}", make)
    return _applied(bench, arm, ClassHead(found["weight"], found["bias"], normalize=False))
