"""Which images of annotations are train, val and test where the data set does not say.

With val alone beside train, its images are test images too, and no training image is taken away; with test alone, a
tenth of train is used for validation; with neither, all is divided 80/10/10. Frames of one sequence stay together, and
day and night are divided apart, as far as the annotations tell them.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.errors import DataError, NoSplitError
from effvl_cli.core.files import file_or_folder
from effvl_cli.data.annotations import Annotations, Content, Listed, box_source, time_of
from effvl_cli.data.boxes import BoxSource, Reading
from effvl_cli.data.folders import NAMES, TENTHS, drawn_from, split_words
from effvl_cli.data.sequences import name_sequences

TOLERANCE = 2.0  # how far a share may be from what is wanted before sequences are cut


CHOICE = re.compile(r",(train|val|test)=([^,]*)$")


def place_and_choices(argument: str, root: Path | None) -> tuple[Path, dict[str, str]]:
    """The path of "PATH,train=NAME,test=NAME", and the names of files or lists that are chosen for splits."""
    choices: dict[str, str] = {}
    while match := CHOICE.search(argument):
        choices[match[1]] = match[2]
        argument = argument[: match.start()]
    return (root / argument) if root else Path(argument), choices


def choose(found: Mapping[str, Path], choices: Mapping[str, Path]) -> dict[str, Path]:
    """Files or lists by split, with those that are chosen.

    Where other training images are chosen, a validation split that is not chosen too could be among them, and is left
    out: a part of the training images then is for validation.
    """
    kept = dict(found)
    if "train" in choices and choices["train"] != found.get("train"):
        kept.pop("val", None)
    return {**kept, **choices}


@dataclass(frozen=True)
class Part:
    """Where the images of a split are.

    Attributes:
        name: the split of the data set that holds them.
        tenths: of it; None: all.
        remark: note for reports, where the names tell something else.
        same_as: split that has the same images.
    """

    name: str
    tenths: range | None
    remark: str = ""
    same_as: str = ""


VAL_AS_TEST = (
    "no test images are named: those called val are measured. If they choose the best step of a training too, its "
    "figures are a little too high; with --select last they do not choose"
)


def part_of(split: str, found: Sequence[str], *, whole: bool) -> Part:
    """Which of the splits that a data set has holds one.

    Args:
        split: that is asked for.
        found: splits that there are.
        whole: a split that the data set has is taken whole, also where a tenth of it would be for validation.

    Raises:
        NoSplitError: there is nothing to take it from.
    """
    if split == "test" and "val" in found and "test" not in found:
        return Part("val", None, VAL_AS_TEST, same_as="val")
    name, tenths = (split, None) if "val" in found else drawn_from(split, val=False, test="test" in found)
    if whole and split in found:
        name, tenths = split, None
    if name not in found:
        origin = "" if name == split else f", which {split} is taken from"
        raise NoSplitError(f"no annotations of split {name}{origin}", "Give files for it")
    return Part(name, tenths)


def opened(
    name: str,
    split: str,
    found: Annotations,
    reading: Reading,
    *,
    part: Part,
    choose_rows: Callable[[Annotations], Annotations] | None = None,
    more: Sequence[str] = (),
) -> BoxSource:
    """The data set of a split, from all that its files say.

    Args:
        name: of the data set.
        split: that is asked for.
        found: what the files say.
        reading: how.
        part: which of it.
        choose_rows: takes the listed images, after sequences have been named over all.
        more: what else the content is told by.
    """
    content = Content(split, found, more)
    name_sequences(found.images, reading.seq_regex)
    found, remark = divided(choose_rows(found) if choose_rows else found, part.tenths)
    remark = "; ".join(filter(None, (part.remark, remark)))
    source = box_source(name, split, found, reading, content=content, remark=remark)
    return source.with_records(source.records, same_as=part.same_as)


def divided(found: Annotations, tenths: range | None) -> tuple[Annotations, str]:
    """Some tenths of the images, and a remark where sequences had to be cut for it."""
    if tenths is None:
        return found, ""
    groups: dict[str, list[int]] = {}
    for row, image in enumerate(found.images):
        groups.setdefault(time_of(image) or "", []).append(row)
    tenth_of = np.zeros(len(found.images), dtype=np.int64)
    cut = False
    for members in groups.values():
        part = _of_sequences(found.images, members)
        if not _is_even(part):
            part, cut = _of_frames(found.images, members), True
        tenth_of[members] = part
    cut = _fill(tenth_of, found.images) or cut
    remark = f"the parts of {found.where.name} share sequences: too few to keep them whole" if cut else ""
    return found.keep_images(np.flatnonzero(np.isin(tenth_of, tenths))), remark


def _fill(tenth_of: NDArray[np.int64], images: Sequence[Listed]) -> bool:
    """Give test and validation an image each where so few images left them none; whether that cuts a sequence.

    Args:
        tenth_of: (N,) changed in place.
        images: N of them.
    """
    cut = False
    for (tenth,) in (TENTHS["test"], TENTHS["val"]):
        rest = np.flatnonzero(tenth_of < TENTHS["val"].start)
        if len(rest) > 1 and not (tenth_of == tenth).any():
            row = int(rest[np.argsort(tenth_of[rest], kind="stable")[-1]])
            tenth_of[row] = tenth
            cut |= sum(image.seq == images[row].seq for image in images) > 1
    return cut


def _of_sequences(images: Sequence[Listed], rows: Sequence[int]) -> list[int]:
    """Tenth of each image: sequences in the order of a hash of their names, each in the tenth of its middle."""
    sizes: dict[str, int] = {}
    for row in rows:
        name = images[row].seq or images[row].file
        sizes[name] = sizes.get(name, 0) + 1
    tenth, start = {}, 0
    for name in sorted(sizes, key=_hash):
        tenth[name] = int(10 * (start + sizes[name] / 2) / len(rows))
        start += sizes[name]
    return [tenth[images[row].seq or images[row].file] for row in rows]


def _is_even(part: Sequence[int]) -> bool:
    """Whether the last two tenths, which validation and test take, hold about as much as they should."""
    wanted = len(part) / 10
    counts = [part.count(tenth) for tenth in (8, 9)]
    return all(wanted / TOLERANCE <= max(count, 1e-9) <= wanted * TOLERANCE for count in counts) or len(part) < 10


def _of_frames(images: Sequence[Listed], rows: Sequence[int]) -> list[int]:
    """Tenth of each image: the frames of each sequence in order, so that only neighbours at the cuts are shared."""
    order: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        order.setdefault(images[row].seq or images[row].file, []).append(place)
    part = [0] * len(rows)
    for places in order.values():
        places.sort(key=lambda place: (images[rows[place]].frame or 0, images[rows[place]].file))
        for number, place in enumerate(places):
            part[place] = int(10 * (number + 0.5) / len(places))
    return part


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def split_files(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by the split that they are for; "{}" of a pattern stands for a split's name.

    Patterns are tried in order for each split, and the first match counts.
    """
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        for pattern in patterns:
            matches = [path for name in names for path in sorted(folder.glob(pattern.replace("{}", name)))]
            if matches:
                found[split] = matches[0]
                break
    return found


def annotation_files(place: Path, chosen: bool, *, patterns: Sequence[str]) -> dict[str, Path]:
    """JSON files of a folder by split, or the one file.

    Args:
        place: folder or file.
        chosen: whether the user names files, so that none need be found.
        patterns: of the files' names.

    Raises:
        DataError: nothing is found.
    """
    kind = file_or_folder(place)
    if kind == "file":
        return {split_words(place.stem) or "train": place}
    if kind == "folder":
        if (found := split_files(place, patterns)) or chosen:
            return found
        for pattern in ("*.json", "annotations/instances_*.json", "annotations/*.json"):
            if only := sorted(place.glob(pattern)):
                return {"train": only[0]}
    raise DataError(f"no annotations at {place}", "Give a JSON file, or a folder with train.json and test.json")


def open_files(
    kind: str,
    argument: str,
    split: str,
    *,
    root: Path | None,
    reading: Reading | None,
    find: Callable[[Path, bool], dict[str, Path]],
    read: Callable[[Path, Path, Reading], Annotations],
) -> BoxSource:
    """The data set of a split whose annotations lie in one file, or a folder of files, for each split.

    Args:
        kind: the format, e.g. "coco".
        argument: "PATH[,train=NAME,...]", of a file or a folder.
        split: "train", "val" or "test".
        root: folder that a relative path starts from.
        reading: how annotations are read.
        find: gives these by split, from the file or folder and whether the user names some.
        read: gives all that one of them says, from it, the folder of the data set and `reading`.

    Raises:
        DataError: missing, or something that cannot be read; names the file.
    """
    reading = reading or Reading()
    place, choices = place_and_choices(argument, root)
    chosen = {name: place / file for name, file in choices.items()}
    files = choose(find(place, bool(choices)), chosen)
    part = part_of(split, list(files), whole=reading.whole)
    found = read(files[part.name], place if place.is_dir() else place.parent, reading)
    return opened(f"{kind}:{place.stem}", split, found, reading, part=part)
