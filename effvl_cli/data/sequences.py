"""Sequences of images, by the names of their files where the annotations say none."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.annotations import Listed
from effvl_cli.data.folders import split_words

TRAILING = re.compile(r"(\d+)$")


def name_sequences(images: Sequence[Listed], regex: str | None = None) -> None:
    """Give each image a sequence and a frame, in place, where the annotations give none.

    The sequence is the file's name without its last digits where at least two images share that, else the image
    itself; numbered files of a folder that holds all images are no sequence. Where only one name is shared, as by
    img_1.jpg and img_2.jpg, it orders the images and is no evidence that they belong together: `seq_known` is False
    then. Folders and words that name a split make no other name.

    Raises:
        UsageError: no regular expression, or one without a group `seq` or `frame`.
        DataError: it is found in no file's name.
    """
    if regex is not None:
        _by_regex(images, regex)
    stems = [str(Path(image.file).with_suffix("")) for image in images]
    heads = [TRAILING.sub("", stem) for stem in stems]
    shared = Counter(heads)
    one_name = len({_without_splits(head) for head, count in shared.items() if count > 1}) == 1
    for image, stem, head in zip(images, stems, heads, strict=True):
        number = TRAILING.search(stem)
        if image.frame is None and number:
            image.frame = int(number[1])
        if image.seq is None:
            whole_folder = head in ("",) or (head.endswith("/") and shared[head] == len(images))
            alone = shared[head] < 2 or whole_folder
            image.seq, image.seq_known = (stem, True) if alone else (head, not one_name)


def _without_splits(head: str) -> tuple[str, ...]:
    """Folders and the beginning of a file's name, without those that name a split."""
    return tuple(part for part in PurePosixPath(head).parts if not split_words(part))


def _by_regex(images: Sequence[Listed], text: str) -> None:
    try:
        regex = re.compile(text)
    except re.error as error:
        raise UsageError(f"--seq-regex {text!r} is no regular expression: {error}", "Mend it") from error
    if not {"seq", "frame"} & regex.groupindex.keys():
        raise UsageError(f"--seq-regex {text!r} names no group", r"Write e.g. '(?P<seq>.*)_(?P<frame>\d+)'")
    found = 0
    for image in images:
        if match := regex.search(image.file):
            found += 1
            groups = match.groupdict()
            image.seq = groups.get("seq") or image.seq
            if (groups.get("frame") or "").isdecimal():
                image.frame = int(groups["frame"])
    if images and not found:
        raise DataError(f"--seq-regex {text!r} is not found in any file name, e.g. {images[0].file}", "Mend it")
