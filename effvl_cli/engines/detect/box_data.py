"""Opens the images of the options."""

from collections.abc import Iterator

from effvl_cli.config.detect_data import BoxDataOptions
from effvl_cli.core.errors import NoSplitError
from effvl_cli.core.run import Run
from effvl_cli.data import SPLITS
from effvl_cli.data.boxes import BoxSource, Reading, load_boxes


def open_boxes(
    config: BoxDataOptions, split: str, run: Run, *, seed: int = 0, data: str | None = None, whole: bool = False
) -> BoxSource:
    """One split of --data, or of another data set that is read the same way.

    Args:
        config: options.
        split: "train", "val" or "test".
        run: whose cache keeps drawn scenes.
        seed: of drawn scenes.
        data: another data set.
        whole: also the training images that are held out for validation where there is no validation split.

    Raises:
        UsageError: unknown name, or no data set of images with boxes.
        DataError: missing, empty, unreadable, or too many faults.
    """
    reading = Reading.of(config, run.cache, whole=whole, check_stop=run.check_stop)
    return load_boxes(data or config.data, split, root=config.data_root, seed=seed, reading=reading)


def splits_of(
    config: BoxDataOptions, split: str, run: Run, *, seed: int = 0, data: str | None = None
) -> Iterator[BoxSource]:
    """One split, or with "all" those that there are, each image once; of --data or of another data set.

    All are opened before the first is given, so that a fault of the last one costs no work.

    Raises:
        DataError: the split, or all of them, are missing, or one of those that there are cannot be read.
    """
    if split != "all":
        yield open_boxes(config, split, run, seed=seed, data=data)
        return
    found, missing, left_out = [], [], []
    for name in SPLITS:
        run.check_stop()
        try:
            source = open_boxes(config, name, run, seed=seed, data=data)
        except NoSplitError as error:
            missing.append(error)
            left_out.append(f"split {name} of {data or config.data} is left out: {error.message}")
        else:
            if source.same_as:
                left_out.append(
                    f"split {name} of {data or config.data} is left out: it has the images of {source.same_as}"
                )
            else:
                found.append(source)
    if len(missing) == len(SPLITS):
        raise missing[0]
    for text in left_out:
        run.warn(text)
    yield from found
