"""Which videos a split has: official lists of UCF101, HMDB51 and Kinetics-400, tables, and folders.

Where a data set has two parts only, the second is both "val" and "test": the official counts stay as they are. Videos
that were cut from one source have the same `source`.
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.core.errors import DataError
from effvl_cli.data.files import natural, readable, some
from effvl_cli.data.folders import NAMES, class_folders
from effvl_cli.data.listings import number_of, read_lines
from effvl_cli.data.tables import SPLIT_WORDS

VIDEOS = frozenset(
    (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".ts")
)
UCF_COUNTS = ((9537, 3783), (9586, 3734), (9624, 3696))
HMDB_COUNTS = (3570, 1530)
LAYOUT = "Expected FOLDER/CLASS/*.mp4, FOLDER/*.mp4, or either below FOLDER/train and FOLDER/test"
COLUMNS = "path, and as far as they are known label, source, start, end (seconds) and split"


@dataclass(frozen=True)
class Listed:
    """A video, or a part of one.

    Attributes:
        path: from the data set's folder.
        label: number of its class; -1 where it is unknown.
        source: name of what it was cut from; "" for the file itself.
        start: second at which the part begins.
        end: second at which it ends.
    """

    path: str
    label: int = -1
    source: str = ""
    start: float | None = None
    end: float | None = None

    @property
    def name(self) -> str:
        """The path, and which part."""
        if self.start is None and self.end is None:
            return self.path
        return f"{self.path}@{self.start or 0:g}-{'' if self.end is None else f'{self.end:g}'}"


@dataclass(frozen=True)
class VideoList:
    """The videos of a split.

    Attributes:
        root: folder that paths start from.
        videos: in order.
        classes: readable names by number.
        expected: how many the authors count.
        remark: a note for reports.
    """

    root: Path
    videos: Sequence[Listed]
    classes: tuple[str, ...]
    expected: int | None = None
    remark: str = ""


def _first_folder(places: Iterable[Path], what: str, layout: str) -> Path:
    tried = list(places)
    for place in tried:
        if place.is_dir():
            return place
    raise DataError(f"no {what} at {tried[0]}", layout)


def _homes(root: Path, *names: str) -> list[Path]:
    return [home for home in (root / name for name in names) if home.is_dir()] or [root]


def _refuse_none(found: VideoList, layout: str) -> VideoList:
    """A list of videos of which at least one is there; it says how many are not."""
    missing = [video.path for video in found.videos if not (found.root / video.path).is_file()]
    if len(missing) == len(found.videos):
        raise DataError(f"{found.root} holds none of the {len(missing)} listed videos", layout)
    if not missing:
        return found
    said = f"{len(missing)} of {len(found.videos)} videos are missing: {some(missing)}"
    remark = "; ".join(filter(None, (found.remark, said)))
    return VideoList(found.root, found.videos, found.classes, found.expected, remark)


# --- UCF101 and HMDB51 -----------------------------------------------------------------------------------------------

UCF_LAYOUT = "Expected videos/CLASS/v_CLASS_gGG_cCC.avi and ucfTrainTestlist/trainlist01.txt below --data-root"
LAST_NUMBER = re.compile(r"_\d+$")
HMDB_LAYOUT = "Expected videos/CLASS/*.avi and testTrainMulti_7030_splits/CLASS_test_split1.txt below --data-root"


def ucf101(root: Path, split: str, number: int) -> VideoList:
    """UCF101; clips of one group, `v_CLASS_gGG`, were cut from one source.

    Raises:
        DataError: videos or lists are missing, or a line of a list is wrong.
    """
    home = _homes(root, "ucf101", "UCF101")[0]
    lists = _first_folder((home / name for name in ("ucfTrainTestlist", "splits", "")), "lists", UCF_LAYOUT)
    videos = _first_folder((home / name for name in ("videos", "UCF-101")), "videos of UCF101", UCF_LAYOUT)
    names = [line.split()[1] for line in read_lines(lists / "classInd.txt", _with_number)]
    numbers = {name: place for place, name in enumerate(names)}

    def parse(line: str) -> Listed:
        path = re.sub(r"\s+\d+$", "", line)
        label = number_of(path.rpartition("/")[0], numbers, "classInd.txt")
        return Listed(path, label, re.sub(r"_c\d+$", "", Path(path).stem))

    part = "train" if split == "train" else "test"
    found = read_lines(lists / f"{part}list{number:02d}.txt", parse)
    counted = UCF_COUNTS[number - 1][part == "test"]
    return _refuse_none(VideoList(videos, found, readable(names, lists), counted), UCF_LAYOUT)


def _with_number(line: str) -> str:
    number, name = line.split()
    return f"{int(number)} {name}"


def hmdb51(root: Path, split: str, number: int) -> VideoList:
    """HMDB51; clips whose names differ in the last number only were cut from one source.

    Raises:
        DataError: videos or lists are missing, or a line of a list is wrong.
    """
    home = _homes(root, "hmdb51", "HMDB51")[0]
    named = ("testTrainMulti_7030_splits", "test_train_splits", "splits")
    lists = _first_folder((home / name for name in named), "lists of HMDB51", HMDB_LAYOUT)
    videos = _first_folder((home / name for name in ("videos", "hmdb51_org", "")), "videos", HMDB_LAYOUT)
    ending = f"_test_split{number}.txt"
    files = sorted(lists.glob(f"*{ending}"))
    if not files:
        raise DataError(f"{lists} holds no CLASS{ending}", HMDB_LAYOUT)
    wanted = "1" if split == "train" else "2"
    found = []
    for label, file in enumerate(files):
        action = file.name.removesuffix(ending)
        for name, tag in read_lines(file, _with_tag):
            if tag == wanted:
                found.append(Listed(f"{action}/{name}", label, f"{action}/{re.sub(LAST_NUMBER, '', Path(name).stem)}"))
    classes = readable([file.name.removesuffix(ending) for file in files], lists)
    return _refuse_none(VideoList(videos, found, classes, HMDB_COUNTS[wanted == "2"]), HMDB_LAYOUT)


def _with_tag(line: str) -> tuple[str, str]:
    name, tag = line.rsplit(maxsplit=1)
    if tag not in ("0", "1", "2"):
        raise ValueError(f"the tag is {tag!r}, and 0, 1 and 2 have a meaning")
    return name, tag


# --- Kinetics --------------------------------------------------------------------------------------------------------

KINETICS_LAYOUT = "Expected train/CLASS/ID_000000_000010.mp4 and val/CLASS/... below --data-root, with a CSV or without"
KINETICS_TABLES = ("{}.csv", "kinetics400_{}.csv", "kinetics-400_{}.csv", "kinetics_{}.csv", "annotations/{}.csv")
KINETICS_LISTS = ("kinetics400_{}_list_videos.txt", "{}_list.txt", "{}.csv")


def kinetics400(root: Path, split: str) -> VideoList:
    """Kinetics-400 by its official table, by a list of "path label" lines, or as it lies in folders.

    Videos of one YouTube id have one source. Videos of the official table that are not there are left out, and counted.

    Raises:
        DataError: the split is missing, or a line of a list is wrong.
    """
    home = _homes(root, "kinetics400", "kinetics-400", "k400")[0]
    parts = ("train",) if split == "train" else ("test", "val", "validate") if split == "test" else ("val", "validate")
    part = next((name for name in parts if (home / name).is_dir()), "train" if split == "train" else "val")
    if rows := _kinetics_table(home, part):
        return _kinetics_of_table(home, part, rows)
    for name in KINETICS_LISTS:
        if (home / name.format(part)).is_file():
            return _kinetics_of_list(home, part, home / name.format(part))
    found = folder(_first_folder((home / part,), f"{part} folder of Kinetics-400", KINETICS_LAYOUT), split)
    videos = [Listed(f"{part}/{v.path}", v.label, _youtube(v.path)) for v in found.videos]
    return VideoList(home, videos, found.classes, remark=found.remark)


def _youtube(path: str) -> str:
    return re.sub(r"_\d{6}_\d{6}$", "", Path(path).stem)


def _kinetics_table(home: Path, part: str) -> list[dict[str, str]]:
    for name in KINETICS_TABLES:
        path = home / name.format(part)
        if path.is_file():
            rows = _table_rows(path)
            if rows and {"label", "youtube_id", "time_start", "time_end"} <= set(rows[0]):
                return rows
    return []


def _kinetics_of_table(home: Path, part: str, rows: list[dict[str, str]]) -> VideoList:
    names = sorted({row["label"] for row in rows}, key=natural)
    listed = []
    for row in rows:
        try:
            times = f"{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        except ValueError as error:
            raise DataError(f"the table of {home}, {part}, has no times for {row['youtube_id']}", str(error)) from error
        stem = f"{row['youtube_id']}_{times}.mp4"
        folders = (row["label"], row["label"].replace(" ", "_"))
        paths = [f"{part}/{name}/{stem}" for name in folders]
        path = next((path for path in paths if (home / path).is_file()), "")
        listed.append(Listed(path, names.index(row["label"]), row["youtube_id"]))
    there = [video for video in listed if video.path]
    if not there:
        raise DataError(f"{home / part} holds none of the {len(listed)} listed videos", KINETICS_LAYOUT)
    gone = len(listed) - len(there)
    remark = f"{gone} of the {len(listed)} listed videos are not there" if gone else ""
    return VideoList(home, there, readable(names, home), len(listed), remark)


def _kinetics_of_list(home: Path, part: str, path: Path) -> VideoList:
    def parse(line: str) -> tuple[str, int]:
        name, label = line.rsplit("," if "," in line else None, maxsplit=1)
        return name.strip(), int(label)

    rows = read_lines(path, parse)
    named = {label: Path(name).parent.name for name, label in rows}
    classes = [named.get(label) or f"class {label}" for label in range(max(named, default=-1) + 1)]
    base = home if (home / rows[0][0]).is_file() else home / part
    found = [Listed(name, label, _youtube(name)) for name, label in rows]
    return _refuse_none(VideoList(base, found, readable(classes, path)), KINETICS_LAYOUT)


# --- tables ----------------------------------------------------------------------------------------------------------


def table(path: Path, split: str) -> VideoList:
    """A table of videos with a header, or without one the "path,n_frames" of CoCLR, whose paths count from the end.

    Without a column `split`, every split is everything; where it has no "val" or no "test", the other serves.

    Raises:
        DataError: missing, not a table, or a row that cannot be read; names the line.
    """
    if not path.is_file():
        raise DataError(f"no table at {path}", f"Give video:FILE.csv with columns {COLUMNS}")
    rows = _table_rows(path)
    if rows and "path" not in rows[0]:
        if len(rows[0]) == 2 and (only := _coclr(path)):
            return only
        raise DataError(f"{path} line 1 has columns {', '.join(rows[0])}", f"Give {COLUMNS}")
    chosen = _of_split(path, rows, split)
    if not chosen:
        raise DataError(f"{path} has no row for split {split}", "Add some, or leave the split column out")
    names = sorted({row["label"] for row in rows if row.get("label")}, key=natural)
    numbers = {name: place for place, name in enumerate(names)}
    found = [
        Listed(
            row["path"],
            numbers.get(row.get("label", ""), -1),
            row.get("source", ""),
            _seconds(path, row, "start"),
            _seconds(path, row, "end"),
        )
        for row in chosen
    ]
    return _refuse_none(VideoList(path.parent, found, readable(names, path)), "Paths start from the table's folder")


def _table_rows(path: Path) -> list[dict[str, str]]:
    """Rows by the header's names in lower case."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            lines = [row for row in csv.reader(file, delimiter="\t" if "\t" in header else ",") if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table: {error}", "Give comma or tab separated text in UTF-8") from error
    names = [name.strip().lower() for name in lines[0]] if lines else []
    return [dict(zip(names, map(str.strip, row), strict=False)) for row in lines[1:]] if len(lines) > 1 else []


def _of_split(path: Path, rows: list[dict[str, str]], split: str) -> list[dict[str, str]]:
    if not rows or "split" not in rows[0]:
        return rows
    unknown = [row["split"] for row in rows if row["split"].lower() not in SPLIT_WORDS]
    if unknown:
        raise DataError(f"{path}: split is {unknown[0]!r}", "Give train, val or test")
    words = [SPLIT_WORDS[row["split"].lower()] for row in rows]
    for name in {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}[split]:
        if name in words:
            return [row for row, word in zip(rows, words, strict=True) if word == name]
    return []


def _seconds(path: Path, row: dict[str, str], name: str) -> float | None:
    if not row.get(name):
        return None
    try:
        return float(row[name])
    except ValueError as error:
        raise DataError(f"{path}: {name} of {row['path']} is {row[name]!r}", "Give seconds") from error


def _coclr(path: Path) -> VideoList | None:
    """Lines "path,n_frames" with paths of the author's machine; None where the numbers are none."""
    try:
        names = read_lines(path, lambda line: (line.rsplit(",", 1)[0], int(line.rsplit(",", 1)[1]))[0])
    except DataError:
        return None
    ends = ["/".join(Path(name).parts[-2:]) for name in names]
    folders = sorted({Path(end).parent.name for end in ends}, key=natural)
    numbers = {name: place for place, name in enumerate(folders)}
    base = next((place for place in (path.parent, path.parent / "videos") if _file(place, ends[0])), path.parent)
    found = [
        Listed(_file(base, end) or end, numbers[Path(end).parent.name], re.sub(r"_c\d+$", "", Path(end).stem))
        for end in ends
    ]
    return _refuse_none(VideoList(base, found, readable(folders, path)), "Give CLASS/VIDEO beside the table")


def _file(base: Path, name: str) -> str:
    """A file of that name, with the ending of a video where the list has none; "" without."""
    return next((f"{name}{end}" for end in ("", *sorted(VIDEOS)) if (base / f"{name}{end}").is_file()), "")


# --- folders ---------------------------------------------------------------------------------------------------------


def one(path: Path) -> VideoList:
    """One video, which is all that every split has.

    Raises:
        DataError: it is not there.
    """
    if not path.is_file():
        raise DataError(f"no video at {path}", LAYOUT)
    return VideoList(path.parent, [Listed(path.name)], ())


def folder(path: Path, split: str) -> VideoList:
    """Videos in class folders or not; without folders train, val and test, every split is everything.

    Raises:
        DataError: missing or empty, or a class of this split that training does not have.
    """
    if not path.is_dir():
        raise DataError(f"no folder at {path}", LAYOUT)
    parts = {name: next((path / n for n in names if (path / n).is_dir()), None) for name, names in NAMES.items()}
    order = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}[split]
    place = next((parts[name] for name in order if parts[name]), None) if any(parts.values()) else path
    if place is None:
        raise DataError(f"{path} has no folder {split}", LAYOUT)
    names = _class_names(parts["train"] or place)
    extra = sorted(set(_class_names(place)) - set(names)) if names else []
    if extra:
        raise DataError(f"class {extra[0]!r} of {place} is not in {parts['train']}", "Both need the same class folders")
    prefix = f"{place.relative_to(path).as_posix()}/" if place != path else ""
    found = [
        Listed(f"{prefix}{name}", label) for label, kind in enumerate(names) for name in _below(place / kind, place)
    ]
    loose = _below(place, place, deep=not names)
    if not names:
        found = [Listed(f"{prefix}{name}") for name in loose]
    if not found:
        raise DataError(f"{place} holds no videos", f"Looked for {', '.join(sorted(VIDEOS))}. {LAYOUT}")
    remark = f"{len(loose)} videos outside the class folders of {place} are left out" if names and loose else ""
    return VideoList(path, found, readable(names, place), remark=remark)


def _class_names(place: Path) -> list[str]:
    return [name for name in class_folders(place) if _below(place / name, place)]


def _below(place: Path, root: Path, *, deep: bool = True) -> list[str]:
    """Videos in a folder, and in those below it, as paths from `root`."""
    if not place.is_dir():
        return []
    found: Callable[[str], Iterable[Path]] = place.rglob if deep else place.glob
    kept = (file for file in found("*") if file.suffix.lower() in VIDEOS and not file.name.startswith("."))
    return sorted(file.relative_to(root).as_posix() for file in kept if file.is_file())
