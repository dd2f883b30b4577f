"""Mean and standard deviation of a network's inputs, where they differ from the default of its name."""

from dataclasses import replace

from effvl_cli.config.options import ModelOptions
from effvl_cli.core.errors import UsageError
from effvl_cli.data.transforms import Preprocess

Channels = tuple[float, float, float]

# Of red, green and blue in 0..1, over the training images of each data set.
STATISTICS: dict[str, tuple[Channels, Channels]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalised(preprocess: Preprocess, options: ModelOptions) -> Preprocess:
    """The preprocessing with the mean and standard deviation that the options give, if any.

    Raises:
        UsageError: both a name and numbers, not three numbers, or a standard deviation that is not above 0.
    """
    if options.normalise:
        if options.mean or options.std:
            raise UsageError("--normalise and --mean or --std set the same thing", "Leave one out")
        mean, std = STATISTICS[options.normalise]
        return replace(preprocess, mean=mean, std=std)
    mean = _three("mean", options.mean) or preprocess.mean
    std = _three("std", options.std) or preprocess.std
    if min(std) <= 0:
        raise UsageError(f"--std is {min(std):g} for a channel", "Give numbers above 0")
    return replace(preprocess, mean=mean, std=std)


def _three(name: str, values: tuple[float, ...]) -> Channels | None:
    if len(values) not in (0, 3):
        raise UsageError(
            f"--{name} has {len(values)} numbers", "Give three, of red, green and blue in 0..1, e.g. 0.5,0.5,0.5"
        )
    return (values[0], values[1], values[2]) if values else None
