"""The training images of a run, with their true and their given labels: the same for every method."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from effvl_cli.config.prompt_tune import LearningConfig
from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.fewshot import candidates, drawn, few_shot, listed_shots, shuffled
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.prompt_tune.noise_files import read_labels, read_matrix, read_noise
from effvl_cli.engines.prompt_tune.noisy_shots import NoisyShots
from effvl_cli.techniques.prompt_tune import noise

ENDLESS_SHOTS = 100  # what `--shots all` means on data without an end

ZeroShotLogits = Callable[[NDArray[np.int64]], Tensor]
"""(N,) positions in the training split to logits (N, K)."""


def noisy_shots(
    config: LearningConfig, source: ImageSource, rate: float, zero_shot_logits: ZeroShotLogits | None = None
) -> NoisyShots:
    """Images and labels at one noise rate, from (data, seed, rate, model, shots) and nothing else.

    Models but `fp` use the same images at all rates; rate 0 is the true labels. `matrix` and `--labels` know no rate:
    any above 0 stands for what the file says, and the rate is then the share that differs from the data.

    Args:
        config: options.
        source: the training split.
        rate: 0 to below 1.
        zero_shot_logits: for `confusion`.

    Raises:
        UsageError: a rate that `--noise-from` does not have, or options that contradict one another.
        DataError: a file that cannot be read, a class without images, or too few of other classes.
    """
    if config.noise_from:
        return read_noise(Path(config.noise_from), source, rate)
    if config.labels:
        return _labelled(config, source, rate)
    if config.noise == "fp" and (rate or not config.fewshot_file):
        return _false_positives(config, source, rate)
    indices = _shots(config, source)
    clean = torch.as_tensor(np.asarray(source.labels[indices]))
    given = clean
    if rate:
        given = _model(config, source, rate, indices, zero_shot_logits)(clean)
    found = NoisyShots(indices, clean.numpy(), given.numpy(), rate, config.noise)
    return replace(found, rate=found.rate_realised) if config.noise == "matrix" else found


def _stream(config: LearningConfig) -> Generator:
    """Independent of the rate, so that what is wrong at a low one is wrong at a higher one."""
    return seeds.generator(config.seed, "noise", config.noise)


def _model(
    config: LearningConfig,
    source: ImageSource,
    rate: float,
    indices: NDArray[np.int64],
    zero_shot_logits: ZeroShotLogits | None,
) -> Callable[[Tensor], Tensor]:
    """From true labels (N,) to given ones."""
    generator, num_classes = _stream(config), len(source.classes)
    if config.noise == "matrix":
        matrix = torch.from_numpy(read_matrix(Path(config.noise_matrix or ""), num_classes))
        return partial(noise.by_matrix, matrix=matrix, generator=generator)
    if config.noise == "confusion":
        assert zero_shot_logits is not None
        logits = zero_shot_logits(indices).cpu()
        return partial(noise.confusion, logits=logits, rate=rate, generator=generator, pick=config.confusion_pick)
    models = {
        "symmetric": noise.symmetric,
        "pair": noise.pair,
        "global-symmetric": noise.global_symmetric,
        "global-pair": noise.global_pair,
    }
    return partial(models[config.noise], num_classes=num_classes, rate=rate, generator=generator)


def _num_shots(config: LearningConfig, source: ImageSource) -> int | None:
    """None: all."""
    if config.shots != "all":
        return config.shots
    return ENDLESS_SHOTS if source.endless else None


def _shots(config: LearningConfig, source: ImageSource) -> NDArray[np.int64]:
    """Sorted positions of the images that labels are given to.

    Raises:
        DataError: a class has none.
    """
    shots, allow_empty = _num_shots(config, source), config.allow_empty_class
    if shots is not None and not config.fewshot_file:
        return few_shot(source, shots, config.seed, allow_empty=allow_empty)
    if config.fewshot_file:
        listed = listed_shots(Path(config.fewshot_file), source, "train")
    else:
        listed = np.arange(len(source), dtype=np.int64)
    return np.sort(drawn(source, listed, None, allow_empty=allow_empty))


def _false_positives(config: LearningConfig, source: ImageSource, rate: float) -> NoisyShots:
    """Images of the first half of each class, some of which give way to images of other classes' second halves."""
    if config.fewshot_file:
        raise UsageError("--noise fp draws its own images, and --fewshot-file names them", "Give --noise symmetric")
    shots = _num_shots(config, source)
    listed = candidates(source, shots or 0)
    labels = torch.as_tensor(np.asarray(source.labels[listed]))
    first, donors = noise.pools(labels, len(source.classes))
    order = shuffled(listed[first.numpy()], config.seed)
    clean = torch.from_numpy(drawn(source, order, shots, allow_empty=config.allow_empty_class))
    try:
        positions, given = noise.false_positives(labels, clean, donors, len(source.classes), rate, _stream(config))
    except noise.TooFewDonorsError as error:
        raise DataError(
            f"--noise-rate {rate:g} with --noise fp: class {source.classes[error.label]!r} needs {error.needed} of "
            f"the images of other classes, and {error.left} are left",
            "Give a lower rate, fewer shots or --noise symmetric",
        ) from error
    places = positions.argsort()
    indices = listed[positions[places].numpy()]
    return NoisyShots(indices, np.asarray(source.labels[indices]), given[places].numpy(), rate, config.noise)


def _labelled(config: LearningConfig, source: ImageSource, rate: float) -> NoisyShots:
    """Images that `--labels` lists, drawn by the labels that it gives them."""
    listed, labels, remark = read_labels(Path(config.labels or ""), source)
    order = shuffled(np.arange(len(listed)), config.seed)
    shots = _num_shots(config, source)
    chosen = np.sort(drawn(source, order, shots, labels[order], allow_empty=config.allow_empty_class))
    indices, given = listed[chosen], labels[chosen]
    clean = np.asarray(source.labels[indices])
    found = NoisyShots(indices, clean, given if rate else clean, 0.0, "file", remark)
    return replace(found, rate=found.rate_realised)
