"""Public data sets by name, each in the folder that CoOp or torchvision gives it under the data root.

The division into splits is the first that is found of
1. `split_zhou_NAME.json`, CoOp's (DATASETS.md of KaiyangZhou/CoOp), with which published tables were made;
2. the lists that the data set was published with, a fifth of every class held out where they know no validation split;
3. class folders, divided 50/20/30 by hash of the file names.
A split whose images differ from those of (1) says so in `remark`, which reports repeat.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data import SPLITS
from effvl_cli.data.files import FileImages
from effvl_cli.data.listings import Place, Splits, class_names, read_split_file
from effvl_cli.data.video_frames import cached_middle_frame

FEW = 3  # how many missing images an error names


@dataclass(frozen=True)
class Lists:
    """One way to divide the images into splits.

    Attributes:
        needs: files, relative to the data set's folder.
        read: makes the splits from them.
        same: splits that hold the same images as CoOp's.
    """

    needs: tuple[str, ...]
    read: Callable[[Place], Splits]
    same: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """A data set as in the literature.

    Attributes:
        key: its name here.
        places: its folder and its image folder, below the data root; CoOp's first, then torchvision's.
        template: CoOp's.
        counts: images of CoOp's train, val and test.
        split_file: CoOp's, or "" where the published lists are those that CoOp takes.
        others: other ways to divide the images, in order.
        videos: folder of videos, below the data set's, whose middle frames serve where there are no images.
    """

    key: str
    places: tuple[tuple[str, str], ...]
    template: str
    counts: tuple[int, int, int]
    split_file: str
    others: tuple[Lists, ...]
    videos: str = ""

    @property
    def lists(self) -> tuple[Lists, ...]:
        """All ways, the best first."""
        if not self.split_file:
            return self.others
        coop = Lists((self.split_file,), lambda place: read_split_file(place.folder / self.split_file), SPLITS)
        return (coop, *self.others)


class PublishedImages(FileImages):
    """One split of a public data set.

    Attributes:
        layout: where it was found and what divided it.
        expected: images that the split has in published tables.
        remark: why figures on it are not comparable with published ones; empty when they are.
    """

    layout = ""
    expected: int | None = None


class MiddleFrames(PublishedImages):
    """One split of a public data set of which only the videos are there: A_Name/v_x.jpg is of AName/v_x.avi."""

    def image(self, index: int) -> Image.Image:
        """The middle frame of one video, from the cache after the first time."""
        return cached_middle_frame(self._root, video_of(self.ids[index]))

    def files(self) -> list[str]:
        """The videos."""
        return [video_of(name) for name in self.ids]


def video_of(image: str) -> str:
    """The video in the folders of UCF101 whose frame an image of CoOp's is."""
    action, _, clip = image.rpartition("/")
    return f"{action.replace('_', '')}/{clip.removesuffix('.jpg')}.avi"


def build(dataset: Published, argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> PublishedImages:
    """Registry builder.

    Raises:
        DataError: missing, lists that cannot be read, or listed images that are missing.
    """
    if argument:
        raise UsageError(f"{dataset.key} takes no argument, got {argument!r}", "Say where it lies with --data-root")
    place, lists = _find(dataset, root or Path())
    divided_by = " and ".join(lists.needs) or "its class folders"
    splits = lists.read(place)
    classes = class_names(splits, place.folder)
    items = splits[split]
    if not items:
        raise DataError(f"{dataset.key} has no {split} image by {divided_by}", f"Looked in {place.folder}")
    only_videos = bool(dataset.videos) and place.images == place.folder / dataset.videos
    source = (MiddleFrames if only_videos else PublishedImages)(
        dataset.key,
        split,
        root=place.images,
        ids=[path for path, _, _ in items],
        labels=np.array([label for _, label, _ in items], dtype=np.int64),
        classes=classes,
        templates=(dataset.template,),
    )
    refuse_absent(place.images, source.files(), f"{dataset.key} {split} by {divided_by}")
    source.layout = f"{place.folder}, divided by {divided_by}"
    source.expected = dataset.counts[SPLITS.index(split)]
    if only_videos:
        source.remark = "frames taken from the videos here, not CoOp's: not comparable with published figures"
    elif split not in lists.same:
        source.remark = f"not CoOp's division ({divided_by}): not comparable with published figures"
    elif len(items) != source.expected:
        source.remark = f"{len(items)} of {source.expected} images: not comparable with published figures"
    return source


def refuse_absent(root: Path, ids: Sequence[str], what: str) -> None:
    """Check that listed images exist, a folder at a time.

    Raises:
        DataError: some are missing; it says how many, and names the first few.
    """
    there: dict[str, set[str]] = {}
    absent = []
    for path in ids:
        folder, _, name = path.rpartition("/")
        if folder not in there:
            place = root / folder
            there[folder] = {entry.name for entry in os.scandir(place)} if place.is_dir() else set()
        if name not in there[folder]:
            absent.append(path)
    if absent:
        first = ", ".join(absent[:FEW]) + (f" and {len(absent) - FEW} more" if len(absent) > FEW else "")
        raise DataError(f"{what}: {len(absent)} of {len(ids)} images are not in {root}: {first}", "Extract them again")


def _find(dataset: Published, root: Path) -> tuple[Place, Lists]:
    places = [Place(root / folder, root / folder / images) for folder, images in dataset.places]
    videos = [Place(place.folder, place.folder / dataset.videos) for place in places if dataset.videos]
    for lists in dataset.lists:
        for place in places + videos:
            if place.images.is_dir() and all((place.folder / name).is_file() for name in lists.needs):
                return place, lists
    here = next((place for place in places if place.folder.is_dir()), places[0])
    missing = str(here.folder)
    if here.folder.is_dir():
        wanted = [here.images, *(here.folder / name for name in dataset.lists[0].needs)]
        missing = ", ".join(str(path) for path in wanted if not path.exists())
    raise DataError(f"no {dataset.key} under {root}: {missing} is missing", _tree(dataset, here))


def _tree(dataset: Published, here: Place) -> str:
    """What was expected, in one line."""
    folders = " or ".join(f"{folder}/{images}".rstrip("/") for folder, images in dataset.places)
    lists = " or ".join(" and ".join(lists.needs) for lists in dataset.lists if lists.needs)
    if dataset.videos:
        folders += f" (or videos in {here.folder.name}/{dataset.videos})"
    return f"Expected images in {folders} under --data-root, and beside them {lists}"
