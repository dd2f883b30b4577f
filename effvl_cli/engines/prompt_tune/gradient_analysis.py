"""How much of the gradient comes from wrong labels while a method is trained (`--grad-analysis`)."""

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from effvl_cli.core import records, seeds
from effvl_cli.core.files import write_text
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.engines.prompt_tune.arms import Arm, Trial
from effvl_cli.techniques.prompt_tune.gradient_shares import (
    GradientShares,
    in_class_features,
    in_parameters,
    in_unit_weights,
    logit_gradients,
)
from effvl_cli.techniques.prompt_tune.linear_classifiers import UnitClassifier
from effvl_cli.techniques.prompt_tune.robust_losses import Loss

FILE, EVENT = "grads.jsonl", "gradients"
EARLY = 5  # epoch up to which the ratios of the report's metrics are taken

Row = dict[str, Any]


def watched_epochs(epochs: int) -> frozenset[int]:
    """Epochs 1, 2, 4, 8 and so on, and the last."""
    return frozenset({epochs, *(2**power for power in range(epochs.bit_length()) if 2**power <= epochs)})


class GradientWatch:
    """Records the gradients of right and wrong labels on all training images, with the parameters as they are.

    Args:
        trial: images and labels; their true labels are known.
        arm: the method that is trained.
        loss: of each sample.
        steps_per_epoch: of the training.
    """

    def __init__(self, trial: Trial, arm: Arm, loss: Loss, steps_per_epoch: int) -> None:
        device = trial.context.run.device
        self.trial, self.arm, self.loss, self.steps_per_epoch = trial, arm, loss, steps_per_epoch
        self.features = F.normalize(trial.centres, dim=1).to(device)
        self.given = trial.labels.given.to(device)
        self.flipped = torch.from_numpy(trial.labels.shots.flipped).to(device)

    def before(self, module: nn.Module) -> None:
        """Record those before the first step."""
        phases = Phases.of(self.trial.context.run)
        phases.once(f"{self.trial.phase(self.arm)} gradients at epoch 0", lambda: self(module, 0))

    def __call__(self, module: nn.Module, step: int) -> None:
        """Record those after `step` steps: in the method's own parameters, and in the class features of all methods."""
        context = self.trial.context
        about = {"epoch": step // self.steps_per_epoch, "method": self.arm.name, "rate": self.trial.labels.shots.rate}
        with torch.enable_grad():
            own, common = self._shares(module)
        for space, found in (("own", own), ("common", common)):
            for group, share in (("clean", found.clean), ("noisy", found.noisy)):
                both = {"ratio": found.ratio, "cosine": found.cosine}
                context.run.record(EVENT, **about, space=space, group=group, **vars(share), **both)

    def _shares(self, module: nn.Module) -> tuple[GradientShares, GradientShares]:
        config, scale = self.trial.context.config, self.trial.context.scale
        classes = module().float()
        by_logits = logit_gradients(scale * self.features @ classes.T, self.given, self.loss)
        common = in_class_features(by_logits, self.features, scale, self.flipped)
        if isinstance(module, UnitClassifier):
            weight = module.weight.detach()
            return in_unit_weights(by_logits, self.features, scale, self.flipped, weight), common
        own = in_parameters(
            by_logits,
            self.features,
            scale,
            self.flipped,
            classes,
            [p for p in module.parameters() if p.requires_grad],
            num_samples=config.num_grad_samples,
            generator=seeds.generator(config.seed, "gradients"),
        )
        return own, common


def record_gradients(run: Run, suffixes: Mapping[float, str]) -> None:
    """Write `grads.jsonl`, and the ratio of wrong to right labels' gradients in the class features, early on.

    Args:
        run: whose records.
        suffixes: ends of the names of metrics, by noise rate.
    """
    rows = gradient_rows(run)
    run.write(FILE, write_text, as_lines(rows))
    early = {(row["method"], row["rate"]): row["ratio"] for row in rows if _is_early(row)}
    for (method, rate), ratio in early.items():
        run.report.metric(
            f"grad_ratio_{method}{suffixes[rate]}", ratio, unit="ratio", split="train", higher_is_better=False
        )


def _is_early(row: Row) -> bool:
    return bool(row["space"] == "common" and row["rate"] and row["ratio"] is not None and row["epoch"] <= EARLY)


def gradient_rows(run: Run) -> list[Row]:
    """What was recorded: a row for each epoch, method, noise rate, space and group."""
    found = records.read(run.folder / records.RECORDS)
    return [{key: value for key, value in row.items() if key != "event"} for row in found if row["event"] == EVENT]


def as_lines(rows: list[Row]) -> str:
    """One JSON object a line."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)
