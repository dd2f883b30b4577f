"""The protocols of `effvl cpr-mine eval` that work on stored features: retrieval and linear probes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from effvl_cli.config.cpr_mine_eval import EvalConfig
from effvl_cli.core.errors import DataError
from effvl_cli.core.feature_judges import linear_probabilities
from effvl_cli.core.run import Run
from effvl_cli.engines.cpr_mine.feature_probe import feature_probe
from effvl_cli.engines.cpr_mine.view_encoders import ViewEncoder
from effvl_cli.engines.cpr_mine.window_features import WindowFeatures
from effvl_cli.techniques.cpr_mine.retrieval import KS, centred, chance, hits, nearest

TWO_STREAM = "two_stream"


@dataclass
class Measured:
    """Figures of one official split.

    Attributes:
        correct: 0/1 of each test video, by figure.
        chance: of figures for which it is known.
        about: what else the report says.
    """

    correct: dict[str, Tensor] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    about: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Features:
    """Features (V, D) of each view, and labels (V,), of training and test videos with known labels."""

    train: dict[str, Tensor]
    train_labels: Tensor
    test: dict[str, Tensor]
    test_labels: Tensor
    num_classes: int

    @classmethod
    def of(cls, train: WindowFeatures, test: WindowFeatures) -> "Features":
        """Means over the windows of each video.

        Raises:
            DataError: nothing is labelled.
        """
        parts = []
        for found in (train, test):
            labels, rows = found.labels, {view: found.of_videos(part) for view, part in found.rows.items()}
            known = labels >= 0
            if not known.any():
                raise DataError(f"{found.source.name} {found.source.split} has no labels", "Give --data with classes")
            parts.append(({view: part[known] for view, part in rows.items()}, labels[known]))
        classes = max(len(train.source.classes), int(max(labels.max() for _, labels in parts)) + 1)
        return cls(*parts[0], *parts[1], classes)


def retrieval(config: EvalConfig, encoders: Sequence[ViewEncoder], found: Features, measured: Measured) -> None:
    """R@K of test videos among training videos."""
    for encoder in encoders:
        queries, gallery = centred(found.test[encoder.view], found.train[encoder.view], config.center)
        near = nearest(queries, gallery, max(KS))
        for k, right in hits(near, found.test_labels, found.train_labels).items():
            measured.correct[f"retrieval_r{k}_{encoder.key}"] = right
        for k, value in chance(found.test_labels, found.train_labels).items():
            measured.chance[f"retrieval_r{k}_{encoder.key}"] = value


def linear(encoders: Sequence[ViewEncoder], found: Features, measured: Measured) -> None:
    """Logistic regression."""
    probabilities = {
        encoder.key: linear_probabilities(
            found.train[encoder.view], found.train_labels, found.test[encoder.view], found.num_classes
        )
        for encoder in encoders
    }
    note_classes("linear", probabilities, found.test_labels, measured)


def linear_features(
    config: EvalConfig, run: Run, encoders: Sequence[ViewEncoder], found: Features, measured: Measured, name: str
) -> None:
    """Batch norm and a linear layer by SGD."""
    probabilities, settings = {}, {}
    for encoder in encoders:
        head, chosen = feature_probe(
            config,
            run,
            f"{name}-{encoder.key}",
            found.train[encoder.view],
            found.train_labels,
            found.num_classes,
            seed=config.seed,
        )
        with torch.no_grad():
            logits = head(found.test[encoder.view].to(run.device))[0]
        probabilities[encoder.key] = logits.float().softmax(1).cpu()
        settings[encoder.key] = {"lr": chosen.lr, "weight_decay": chosen.weight_decay}
    measured.about["linear_features"] = settings
    note_classes("linear_features", probabilities, found.test_labels, measured)


def note_classes(name: str, probabilities: dict[str, Tensor], labels: Tensor, measured: Measured) -> None:
    """Top-1 of each view's probabilities (V, C), and of their mean where there are several views."""
    rows = dict(probabilities)
    if len(rows) > 1:
        rows[TWO_STREAM] = torch.stack([part.double() for part in probabilities.values()]).mean(0)
    for key, part in rows.items():
        measured.correct[f"{name}_{key}"] = (part.argmax(1) == labels).float()
