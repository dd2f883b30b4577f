"""`yolo:PATH`: a text file of `class x y width height` for each image, in shares of the image.

PATH is a data.yaml with `path`, `train`, `val`, `test` (folders of images, or text files that list them) and `names`,
or a folder that holds one, or a folder with images/[train/]*.jpg, labels/[train/]*.txt and classes.txt, a name a line,
or one that holds images, their text files and classes.txt side by side; or Darknet's obj.data.
Labels of .../images/x.jpg are in .../labels/x.txt, else beside the image; an image without a file has no boxes.
A sixth value, the score of a prediction, is passed over; of a polygon, `class x1 y1 x2 y2 x3 y3 ...`, it is the box.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from effvl_cli.config.recipe_file import read_yaml
from effvl_cli.core.errors import DataError, NoSplitError, UsageError
from effvl_cli.core.files import file_or_folder
from effvl_cli.data.annotations import Annotations, Boxes, Listed, check_unique
from effvl_cli.data.box_splits import opened, part_of
from effvl_cli.data.boxes import BoxSource, Problems, Reading
from effvl_cli.data.files import SUFFIXES, natural
from effvl_cli.data.folders import NAMES
from effvl_cli.data.listings import read_lines

LAYOUT = "Expected data.yaml with train, val and names, or images/, labels/ and classes.txt"
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
DARKNET = ".data"  # suffix of a file of lines like `train = data/train.txt`
MOST = 2.0  # a value above that is no share of an image that was written a little outside
A_LINE = "Write class x y width height, the class from 0, the others as shares of the image from 0 to 1"


def build(
    argument: str, split: str, *, root: Path | None = None, seed: int = 0, reading: Reading | None = None
) -> BoxSource:
    """Registry builder; the argument is a data.yaml or a folder.

    Raises:
        DataError: missing, or something that cannot be read; names the file.
    """
    reading = reading or Reading()
    place = (root / argument) if root else Path(argument)
    page = _page(place)
    if page is None:
        classes, parts = _plain(place)
    else:
        classes, parts = (_of_darknet if page.suffix == DARKNET else _described)(page)
    part = part_of(split, list(parts), whole=reading.whole)
    found = read(page or place, parts[part.name], classes, reading)
    return opened(f"yolo:{place.stem}", split, found, reading, part=part)


def _page(place: Path) -> Path | None:
    """The data.yaml, if there is one."""
    kind = file_or_folder(place)
    if not kind:
        raise DataError(f"no YOLO data at {place}", LAYOUT)
    patterns = ("data.yaml", "*.yaml", f"*{DARKNET}")
    pages = [place] if kind == "file" else [path for pattern in patterns for path in sorted(place.glob(pattern))]
    return next((page for page in pages if page.is_file()), None)


def read_data_yaml(page: Path) -> Any:
    """Content of a YAML file of data, every scalar a string.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_yaml(page)
    except UsageError as error:
        raise DataError(error.message, error.hint) from error


def _described(page: Path) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    """Class names, and folders or lists of each split, by a data.yaml."""
    content = read_data_yaml(page)
    if not isinstance(content, dict) or not content.get("names"):
        raise DataError(f"{page} has no names", LAYOUT)
    base = page.parent / str(content.get("path") or "")
    parts = {
        split: [_resolved(base, page.parent, name) for name in _as_list(content[key])]
        for split, keys in NAMES.items()
        for key in keys
        if content.get(key)
    }
    return _names(content["names"], page), parts


def _names(given: Any, page: Path) -> tuple[str, ...]:
    if isinstance(given, Mapping):
        numbers = sorted(int(key) if str(key).isdecimal() else -1 for key in given)
        if numbers != list(range(len(given))):
            raise DataError(f"{page}: names are numbered {', '.join(given)}", "Number them 0, 1, 2 ...")
        given = [given[key] for key in sorted(given, key=int)]
    names = tuple(str(name) for name in _as_list(given))
    check_unique(names, "class names", page)
    return names


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _resolved(base: Path, folder: Path, name: str) -> Path:
    """Where a path of a data.yaml leads; exporters write ../train/images for train/images beside the file."""
    choices = [base / name, folder / name, folder / name.removeprefix("../")]
    return next((path for path in choices if path.exists()), choices[0])


def _of_darknet(page: Path) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    """Class names and lists of each split, by Darknet's file; its paths start from where Darknet is run."""
    pairs = read_lines(page, lambda line: tuple(part.strip() for part in line.split("=", 1)))
    content = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    if not content.get("names"):
        raise DataError(f"{page} has no names", "Expected lines names = obj.names, train = train.txt")
    listed = _beneath(page.parent, content["names"])
    names = tuple(read_lines(listed, str))
    check_unique(names, "class names", listed)
    parts = {
        split: [_beneath(page.parent, content[key])]
        for split, keys in NAMES.items()
        for key in keys
        if content.get(key)
    }
    return names, parts


def _beneath(folder: Path, name: str) -> Path:
    """Where a path leads that starts from a folder, or from the one above it, whatever that was called there."""
    name = name.replace("\\", "/")
    choices = [folder / name, folder.parent / name, *(folder / rest for rest in _ends(name))]
    return next((path for path in choices if path.exists()), choices[0])


def _ends(name: str) -> Iterator[str]:
    """What is left of a relative path without its first folder, without its first two, and so on."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    yield from ("/".join(parts[first:]) for first in range(1, len(parts)))


def _plain(place: Path) -> tuple[tuple[str, ...], dict[str, list[Path]]]:
    """Class names and folders of a folder without a data.yaml."""
    listed = next((place / name for name in NAME_FILES if (place / name).is_file()), None)
    if listed is None:
        raise DataError(f"{place} has no data.yaml, and no classes.txt", LAYOUT)
    names = tuple(read_lines(listed, str))
    check_unique(names, "class names", listed)
    base = place / "images" if (place / "images").is_dir() else place
    parts = {split: [base / key] for split, keys in NAMES.items() for key in keys if (base / key).is_dir()}
    return names, parts or {"train": [base]}


def read(where: Path, parts: Sequence[Path], classes: tuple[str, ...], reading: Reading) -> Annotations:
    """The images of some folders and lists.

    Args:
        where: what names the data set, for messages.
        parts: folders of images, or text files that list images.
        classes: names.
        reading: its looks at requests to stop.

    Raises:
        DataError: nothing there, or a line that is no box; names it.
    """
    paths = [path for part in parts for path in _images(part)]
    check_unique([str(path) for path in paths], "images", where)
    boxes, problems = Boxes(), Problems()
    for row, path in enumerate(reading.every(paths)):
        labels = _label_file(path)
        for number, box in _boxes(labels, len(classes)):
            if min(box) < 0 or max(box) > 1:
                problems.add("outside [0,1]", f"{labels.name}: {' '.join(f'{value:g}' for value in box)}")
            x, y, width, height = box
            boxes.add(row, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), number)
    folder = where if where.is_dir() else where.parent
    images = [
        Listed(str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path), path) for path in paths
    ]
    columns = boxes.columns()
    return Annotations(
        where=where, classes=classes, category_ids=(), images=images, problems=problems, relative=True, **columns
    )


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _images(part: Path) -> list[Path]:
    kind = file_or_folder(part)
    if kind == "folder":
        found = [path for path in part.rglob("*") if path.suffix.lower() in SUFFIXES]
        return sorted(found, key=lambda path: natural(str(path)))
    if kind == "file":
        return read_lines(part, lambda line: _beneath(part.parent, line))
    raise NoSplitError(f"no images at {part}", LAYOUT)


def _label_file(image: Path) -> Path:
    """The text file of an image: in labels/ in the place of the last images/, else beside it."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            return Path(*parts).with_suffix(".txt")
    beside = image.parent.parent / "labels" / f"{image.stem}.txt"
    return beside if beside.is_file() else image.with_suffix(".txt")


def _boxes(path: Path, classes: int) -> list[tuple[int, tuple[float, float, float, float]]]:
    if not path.exists():
        return []

    def parse(line: str) -> tuple[int, tuple[float, float, float, float]]:
        words = line.split()
        number = float(words[0])
        if not number.is_integer() or not 0 <= number < classes:
            raise ValueError(f"class {words[0]} is none of 0 to {classes - 1}")
        values = [float(word) for word in words[1:]]
        if any(abs(value) > MOST for value in values[:4]):
            raise ValueError(f"{max(values, key=abs):g} is no share of the image; these seem to be px")
        return int(number), _box(values)

    return read_lines(path, parse, A_LINE)


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    """x, y, width and height of a box with or without a score, or of a polygon."""
    if len(values) in (4, 5):
        return values[0], values[1], values[2], values[3]
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(values) + 1} values, and a box has 5: class x y width height")
    (left, right), (top, bottom) = ((min(side), max(side)) for side in (values[0::2], values[1::2]))
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
