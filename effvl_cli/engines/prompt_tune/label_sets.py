"""The training images of a run with their labels, once for each noise rate: the same for every method."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.config.prompt_tune import NoiseOptions, rates_of, suffix_of
from effvl_cli.core.errors import UsageError
from effvl_cli.core.files import write_json
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.prompt_tune.context import Learning, cache_mode
from effvl_cli.engines.prompt_tune.features import Features, features_of
from effvl_cli.engines.prompt_tune.head_training import TrainingSet
from effvl_cli.engines.prompt_tune.noise_files import NOISE, noise_document, recorded_rates
from effvl_cli.engines.prompt_tune.noise_records import noisy_shots
from effvl_cli.engines.prompt_tune.noisy_shots import NoisyShots
from effvl_cli.techniques.prompt_tune.class_head import ClassHead

LARGEST_MATRIX = 100  # classes up to which the report has the transition matrix; noise.json always has
ROUNDED = 0.05  # difference between the rate asked for and that of whole images which goes without saying


@dataclass(frozen=True)
class LabelSet:
    """Training images with the labels that training sees.

    Attributes:
        shots: positions, true and given labels.
        suffix: end of the names of its metrics.
    """

    shots: NoisyShots
    suffix: str

    @property
    def rate(self) -> float | None:
        """Of wrong labels; None where it is not known."""
        return self.shots.if_known(self.shots.rate)

    @cached_property
    def given(self) -> Tensor:
        """(N,) int64."""
        return torch.from_numpy(np.asarray(self.shots.given))


@dataclass(frozen=True)
class Training:
    """Features of the training images of all label sets.

    Attributes:
        source: the split.
        centre: of the middle of each image.
        views: that training sees; None: made anew each epoch.
    """

    source: ImageSource
    centre: Features
    views: Features | None

    def of(self, labels: LabelSet) -> TrainingSet:
        """The images of one label set."""
        indices = labels.shots.indices
        rows = self.centre.rows_of(indices)
        return TrainingSet(self.views, rows, torch.from_numpy(indices), labels.given, self.source)

    def centres(self, labels: LabelSet) -> Tensor:
        """(N, D) features of the middle of its images."""
        return self.centre.first[self.centre.rows_of(labels.shots.indices)]


def label_sets(context: Learning, source: ImageSource) -> list[LabelSet]:
    """One for each noise rate, from the lowest.

    Raises:
        UsageError: several rates where the labels come from a file.
        DataError: see `noisy_shots`.
    """
    config = context.config
    rates = noise_rates(config)

    def zero_shot(indices: NDArray[np.int64]) -> Tensor:
        found = features_of(context.network, source, indices, config, context.run, wanted=True)
        head = ClassHead(context.classifier.cpu(), scale=context.scale)
        return head(found.first)

    sets = []
    for rate in rates:
        shots = noisy_shots(config, source, rate, zero_shot)
        for remark in filter(None, (shots.remark, _rounded(shots))):
            context.run.warn(remark)
        sets.append(LabelSet(shots, suffix_of(rate, rates)))
    if (config.labels or config.noise == "matrix") and not sets[-1].shots.flipped.any():
        return sets[-1:]  # the file says what the data say: there is nothing to compare it with
    return sets


def _rounded(shots: NoisyShots) -> str:
    """What to know where whole images of each class are far from the rate that was asked for."""
    realised = shots.rate_realised
    if shots.clean is None or (abs(realised - shots.rate) <= ROUNDED and bool(realised) == bool(shots.rate)):
        return ""
    share = f"{100 * realised:.3g} % of the labels are" if realised else "no label is"
    return f"{share} wrong at --noise-rate {shots.rate:g}: too few images of each class"


def noise_rates(config: NoiseOptions) -> tuple[float, ...]:
    """Noise rates in ascending order; where a file gives the labels, any above 0 stands for it.

    Raises:
        UsageError: several rates where the labels come from a file.
        DataError: a `--noise-from` that cannot be read.
    """
    if config.noise_from and not config.noise_rate:
        return recorded_rates(Path(config.noise_from))
    rates = rates_of(config)
    if (config.labels or config.noise == "matrix") and sum(rate > 0 for rate in rates) > 1:
        option = "--labels" if config.labels else "--noise-matrix"
        raise UsageError(
            f"--noise-rate is {','.join(f'{rate:g}' for rate in rates)}, and {option} holds one set of labels",
            "Give one rate above 0, or leave it out",
        )
    return rates


def training_features(context: Learning, source: ImageSource, sets: Sequence[LabelSet]) -> Training:
    """Features of every image that some label set has."""
    config, run = context.config, context.run
    indices = np.unique(np.concatenate([labels.shots.indices for labels in sets]))
    centre = features_of(context.network, source, indices, config, run, wanted=True)
    views: Features | None = centre
    if cache_mode(context) == "views":
        views = features_of(context.network, source, indices, config, run, views=config.num_views, wanted=True)
    return Training(source, centre, None if cache_mode(context) == "off" else views)


def write_noise(context: Learning, source: ImageSource, sets: Sequence[LabelSet]) -> None:
    """Write `noise.json`, and what the report says about the labels."""
    config, num_classes = context.config, len(context.classes)
    shots = [labels.shots for labels in sets]
    document = noise_document(source, shots, classes=context.classes, seed=config.seed, shots=config.shots)
    context.run.write(NOISE, write_json, document)
    context.run.report.technique["noise"] = [
        {
            "model": found.model,
            "rate_requested": row["rate"],
            "rate_realised": row["rate_realised"],
            "images": len(found),
            "flipped_ids": found.if_known(found.indices[found.flipped].tolist()),
            "transition": row["transition"] if num_classes <= LARGEST_MATRIX else None,
        }
        for found, row in zip(shots, document["sets"], strict=True)
    ]
