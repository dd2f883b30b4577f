"""`imagenet`: ILSVRC 2012 in class folders, CoOp's imagenet/images/{train,val} or plain imagenet/{train,val}.

Names are those of imagenet/classnames.txt (CoOp's: "n01440764 tench"), else open_clip's. As everywhere, val/ is what is
reported (split test), and a tenth of train/, by hash of the file names, is held out for choices (val). A subset of
the classes is enough.
"""

from pathlib import Path

import numpy as np

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.folders import TENTHS_OF_TRAIN, class_folders, list_images, passed_over_remark
from effvl_cli.data.listings import read_lines
from effvl_cli.data.published import PublishedImages

PLACES = ("imagenet/images", "imagenet")
LAYOUT = "Expected imagenet/images/{train,val}/n*/*.JPEG or imagenet/{train,val}/n*/*.JPEG under --data-root"
TEST_IMAGES = 50_000


def build(argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> PublishedImages:
    """Registry builder.

    Raises:
        DataError: not there, no class folders, or a class without a name.
    """
    if argument:
        raise UsageError(f"imagenet takes no argument, got {argument!r}", "Say where it lies with --data-root")
    root = root or Path()
    part = "val" if split == "test" else "train"
    place = next((root / name for name in PLACES if (root / name / part).is_dir()), None)
    if place is None:
        raise DataError(f"no imagenet under {root}: {root / PLACES[0] / part} is missing", LAYOUT)
    folders = _classes(place)
    names_file = root / "imagenet" / "classnames.txt"
    names = _names(names_file)
    nameless = next((folder for folder in folders if folder not in names), None)
    if nameless:
        raise DataError(f"class folder {nameless} of {place} has no name", f"Add it to {names_file}, or remove it")
    passed_over: list[str] = []
    ids, labels = list_images(place / part, folders, TENTHS_OF_TRAIN.get(split), place, passed_over)
    if not ids:
        raise DataError(f"{place / part} holds no images for split {split}", LAYOUT)
    source = PublishedImages(
        "imagenet",
        split,
        root=place,
        ids=ids,
        labels=np.array(labels, dtype=np.int64),
        classes=tuple(names[folder].replace("_", " ") for folder in folders),
        templates=("a photo of a {}.",),
    )
    source.layout = f"{place}, names of {names_file if names_file.is_file() else 'open_clip'}"
    source.expected = TEST_IMAGES if split == "test" else None
    source.remark = passed_over_remark(passed_over)
    if len(folders) != 1000:
        part = f"{len(folders)} of 1,000 classes: not comparable with published figures"
        source.remark = "; ".join(filter(None, (part, source.remark)))
    return source


def _classes(place: Path) -> list[str]:
    """Class folders, the same in both parts where both are there."""
    found = {part: class_folders(place / part) for part in ("train", "val") if (place / part).is_dir()}
    first = next(iter(found.values()))
    for part, folders in found.items():
        if not folders:
            raise DataError(
                f"{place / part} holds no class folders", "Move its images into one folder a class, as train/ has them"
            )
        odd = sorted(set(folders) ^ set(first))
        if odd:
            raise DataError(
                f"class {odd[0]} is in one of train and val of {place} only", "Both need the same class folders"
            )
    return first


def _names(path: Path) -> dict[str, str]:
    if path.is_file():
        return dict(read_lines(path, _named))
    import open_clip
    from timm.data.imagenet_info import ImageNetInfo

    return dict(zip(ImageNetInfo().label_names(), open_clip.IMAGENET_CLASSNAMES, strict=True))


def _named(line: str) -> tuple[str, str]:
    folder, name = line.split(maxsplit=1)
    return folder, name
