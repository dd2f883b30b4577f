"""`boxes:PATH`: images with boxes in whatever format the files are, and data sets mixed of several.

A YAML file mixes sources (for the keys see `Entry`):

    classes: [pedestrian, vehicle, scooter, bicycle]
    sources:
      - {name: ivs, root: DIR, format: coco, ann: train.json, ratio: 0.7}
      - {name: bdd, root: DIR, format: bdd, ann: {train: a.json, val: b.json}, ratio: 0.3, map: bdd100k-4}
      - {name: drawn, data: "road-scenes:style=outside", time: day}

Relative folders start from --data-root, without one from the folder of the file. Validation and test images are those
of the first source, and of others that say `eval: true` and have some: outside samples are for training.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from effvl_cli.core.errors import DataError, NoSplitError, UsageError
from effvl_cli.core.files import file_or_folder
from effvl_cli.core.registry import nearest
from effvl_cli.core.table import counted
from effvl_cli.data import BOXES, SPLITS, open_source
from effvl_cli.data.annotations import TIMES, check_unique
from effvl_cli.data.box_splits import place_and_choices
from effvl_cli.data.boxes import BoxRecord, BoxSource, Problems, Reading, SourceInfo
from effvl_cli.data.class_maps import DROP, IGNORE, REST
from effvl_cli.data.source import digest
from effvl_cli.data.voc import FOLDERS, split_folders
from effvl_cli.data.yolo import DARKNET, NAME_FILES, read_data_yaml

FORMATS = ("coco", "voc", "yolo", "bdd")
PEEK = 65536  # bytes of a JSON file that tell its format
ALLOWED = {
    "name": "a name",
    "root": "a file or folder",
    "data": "a data set of `effvl list datasets`",
    "ann": f"a file or, with braces, one for each of {', '.join(SPLITS)}",
    "map": "the name of a class map, a YAML file or, with braces, `class: target` for each class",
    "seq_regex": "a regular expression",
    "ratio": "a number from 0 on",
    "dedup": "true or false",
    "eval": "true or false",
    "labelled": "a list of classes",
    "time": "day or night",
    "unknown": "error, drop or ignore",
    "format": f"auto, {', '.join(FORMATS)}",
}
"""What a key of a source can be."""
TEXTS = ("name", "root", "data", "seq_regex")
BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}


def build(
    argument: str, split: str, *, root: Path | None = None, seed: int = 0, reading: Reading | None = None
) -> BoxSource:
    """Registry builder; the argument is a file or folder of any format, or a file of sources.

    Raises:
        DataError: missing, of no known format, or something that cannot be read; names the file.
    """
    reading = reading or Reading()
    place, _ = place_and_choices(argument, root)
    if root and not file_or_folder(place) and file_or_folder(place_and_choices(argument, None)[0]) == "file":
        place = place_and_choices(argument, None)[0]  # a file of sources need not lie with the data
    if place.suffix in (".yaml", ".yml") and file_or_folder(place) == "file":
        content = read_data_yaml(place)
        if isinstance(content, dict) and "sources" in content:
            if reading.within:
                raise DataError(f"{place} is itself mixed of several", f"Name its sources in {reading.within}")
            return _Mix(place, content, root, reading, seed).opened(split)
    kind = sniffed(place) if reading.format == "auto" else reading.format
    source = open_source(f"{kind}:{argument}", split, kind=BOXES, root=root, seed=seed, reading=reading)
    return cast(BoxSource, source)


def sniffed(place: Path) -> str:
    """The format of a file or folder.

    Raises:
        DataError: missing, or of none that is known.
    """
    kind = file_or_folder(place)
    if kind == "file":
        return _of_file(place)
    if kind == "folder":
        if _holds(place, *(f"{name}/**/*.xml" for name in FOLDERS), "*.xml") or split_folders(place):
            return "voc"
        if _holds(place, "*.yaml", "labels/**/*.txt"):
            return "yolo"
        for pattern in ("*.json", "*/*.json", "*/*/*.json", "*/*/*/*.json"):
            if found := sorted(place.glob(pattern)):
                return _of_file(found[0])
        if _holds(place, f"*{DARKNET}", *NAME_FILES):
            return "yolo"
    raise DataError(
        f"no annotations of boxes at {place}", "Give COCO or BDD100K JSON, a VOC or YOLO folder, or see --format"
    )


def _holds(place: Path, *patterns: str) -> bool:
    return any(next(place.glob(pattern), None) for pattern in patterns)


def _of_file(path: Path) -> str:
    if path.suffix in (".yaml", ".yml", DARKNET):
        return "yolo"
    if path.suffix == ".json":
        return _of_json(path) or "coco"
    raise DataError(f"{path} is of no known format", f"Give --format {', '.join(FORMATS)}")


def _of_json(path: Path) -> str:
    """The format of a JSON file; "" where its beginning does not tell."""
    with path.open("rb") as file:
        start = file.read(PEEK).lstrip()
    if start[:1] == b"{" and any(word in start for word in (b'"images"', b'"annotations"', b'"categories"')):
        return "coco"
    return "bdd" if b'"frames"' in start or (start[:1] == b"[" and b'"name"' in start) else ""


# --- several sources -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A source in a YAML file.

    Attributes:
        name: of the source, in figures.
        root: folder or file.
        format: as --format.
        ann: annotations in the folder: a file (a list, for VOC) for training, or one for each split.
        data: a data set of `effvl list datasets` in place of root, format and ann.
        ratio: share of the draws of an epoch; 0: not drawn from.
        dedup: whether near-duplicates of it may be skipped.
        map: class map.
        unknown: what a class that is not in the map does.
        time: day or night, where all its images are.
        labelled: classes that are annotated in it, where not all are.
        eval: whether its validation and test images count too.
        seq_regex: as --seq-regex.
    """

    name: str
    root: str | None = None
    format: str = "auto"
    ann: str | Mapping[str, str] | None = None
    data: str | None = None
    ratio: float | None = None
    dedup: bool = True
    map: str | Mapping[str, str] | None = None
    unknown: str | None = None
    time: str | None = None
    labelled: tuple[str, ...] | None = None
    eval: bool = False
    seq_regex: str | None = None

    @classmethod
    def parse(cls, given: Any, where: Path) -> "Entry":
        """One entry of the list.

        Raises:
            DataError: an unknown key, or a value that it cannot have.
        """
        known = [field.name for field in fields(cls)]
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            raise DataError(f"{where}: source {str(given)[:60]} has no name", "Write {name: ..., root: ...}")
        name = given["name"]
        for key in given:
            if key not in known:
                hint = nearest(key, known) or f"Known: {', '.join(known)}"
                raise DataError(f"{where}: source {name!r} has an unknown key {key!r}", hint)
        if ("root" in given) == ("data" in given):
            raise DataError(f"{where}: source {name!r} needs root or data, one of them", "Write root: FOLDER")
        for key in ("format", "ann"):
            if key in given and "data" in given:
                raise DataError(f"{where}: source {name!r} has data and {key}, which belongs to root", "Leave one out")
        return cls(**{key: _value(key, value, f"{where}: source {name!r}") for key, value in given.items()})

    def spec(self, root: Path) -> str:
        """What the registry opens."""
        if self.data is not None:
            return self.data
        chosen = {"train": self.ann} if isinstance(self.ann, str) else self.ann or {}
        where = root / str(self.root)
        return f"{'boxes' if self.format == 'auto' else self.format}:{where}" + "".join(
            f",{split}={file}" for split, file in chosen.items()
        )


def _value(key: str, value: Any, where: str) -> Any:
    try:
        return _parsed(key, value)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where}: {key} is {value!r}", f"Give {ALLOWED[key]}") from error


def _parsed(key: str, value: Any) -> Any:
    """The value of a key; raises something where it cannot have it."""
    if key == "ratio":
        ratio = float(value)
        _need(0 <= ratio < float("inf"))
        return ratio
    if key in ("dedup", "eval"):
        return BOOLEANS[str(value).lower()]
    if key == "labelled":
        names = tuple(value) if isinstance(value, list) else tuple(str(value).split(","))
        _need(all(isinstance(name, str) and name for name in names) and bool(names))
        return names
    _need(_fits(key, value))
    return value


def _fits(key: str, value: Any) -> bool:
    """Whether a value is one that its key can have."""
    if isinstance(value, dict):
        named = all(isinstance(part, str) and part for part in value.values())
        return named and (key == "map" or (key == "ann" and set(value) <= set(SPLITS)))
    choices = {"time": TIMES, "unknown": ("error", "drop", "ignore"), "format": ("auto", *FORMATS)}
    return isinstance(value, str) and value != "" and value in choices.get(key, (value,))


def _need(holds: bool) -> None:
    if not holds:
        raise ValueError


def _remarks(entry: Entry, source: BoxSource, *, ratios: bool) -> Iterator[str]:
    """Notes on a source: its own, what is not drawn from, and classes that it shows perhaps but does not annotate."""
    if source.remark:
        yield f"{entry.name}: {source.remark}"
    if source.split == "train" and ratios and entry.ratio is None:
        yield f"{entry.name} has no ratio beside sources that have one, and none of its images is drawn"
    counts = source.summary()[0]["per_class"]
    beyond = [name for name in source.classes if counts[name] and name not in (entry.labelled or source.classes)]
    if beyond:
        yield (
            f"{entry.name} has boxes of {', '.join(f'{name} ({counts[name]})' for name in beyond)}, which labelled "
            "does not name: they are learned, and its other objects of these classes are no background"
        )
    missing = [name for name in source.classes if not counts[name]]
    if source.split == "train" and entry.ratio != 0 and missing and entry.labelled is None:
        yield (
            f"{entry.name} has no box of {', '.join(missing)}, and what it shows of them counts as background "
            "(unless it says labelled: and the classes that it has)"
        )


def _class_names(given: Sequence[Any], where: Path) -> tuple[str, ...]:
    """The wanted classes.

    Raises:
        DataError: one stands twice, is no name, or is a word of class maps.
    """
    for name in given:
        if not isinstance(name, str) or not name or name in (IGNORE, DROP, REST):
            hint = f"Give names; {IGNORE}, {DROP} and {REST} are words of class maps"
            raise DataError(f"{where}: {str(name)[:60]!r} is no name of a class", hint)
    check_unique(given, "classes", where)
    return tuple(given)


def _shared(records: Sequence[BoxRecord], where: Path) -> Iterator[str]:
    """Which sources have images in common.

    Raises:
        DataError: an image is of the day in one and of the night in another.
    """
    first: dict[tuple[Path, str], BoxRecord] = {}
    folders: dict[Path, Path] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for record in records:
        if record.path is None:
            continue
        if record.path.parent not in folders:
            folders[record.path.parent] = record.path.parent.resolve()
        other = first.setdefault((folders[record.path.parent], record.path.name), record)
        if other.source == record.source:
            continue
        if other.time and record.time and other.time != record.time:
            raise DataError(
                f"{where}: {record.path} is of the {other.time} in source {other.source!r} and of the {record.time} "
                f"in {record.source!r}",
                "Leave it out of one, or give both the same time",
            )
        counts[other.source, record.source] += 1
    for (one, two), count in counts.items():
        yield f"{one} and {two} have {counted(count, 'image')} in common"


class _Mix:
    """Sources of a YAML file."""

    def __init__(self, where: Path, content: Mapping[str, Any], root: Path | None, reading: Reading, seed: int) -> None:
        self.where, self.reading, self.seed = where, reading, seed
        self.root = root or where.parent
        rows, classes = content["sources"], content.get("classes")
        if not isinstance(rows, list) or not rows:
            raise DataError(
                f"{where} has no list of sources", "Write sources: and one `- {name: ..., root: ...}` a line"
            )
        if extra := [key for key in content if key not in ("classes", "sources")]:
            raise DataError(f"{where} has an unknown key {extra[0]!r}", "Known: classes, sources")
        self.entries = [Entry.parse(row, where) for row in rows]
        check_unique([entry.name for entry in self.entries], "names of sources", where)
        if not isinstance(classes, list) and (classes or len(rows) > 1):
            raise DataError(f"{where} has no list of classes", "Write classes: [pedestrian, vehicle, ...]")
        self.classes = _class_names(classes, where) if classes else None
        self.ratios = any(entry.ratio is not None for entry in self.entries)

    def opened(self, split: str) -> BoxSource:
        """The images of a split of all sources that have a part in it."""
        found, without = self._opened_each(split)
        several = len(found) > 1
        records: list[BoxRecord] = []
        for entry, source in found:
            records += self._records(entry, source, len(records) if several else None)
        remarks = [text for entry, source in found for text in _remarks(entry, source, ratios=self.ratios)]
        remarks += [f"{name} has no images for split {split}" for name in without]
        remarks += _shared(records, self.where)
        problems = Problems()
        for _, source in found:
            problems.merge(source.problems)
        first = found[0][1]
        return BoxSource(
            f"boxes:{self.where.stem}",
            split,
            classes=first.classes,
            records=records,
            content=lambda: digest([self.where.stem, *(source.fingerprint() for _, source in found)]),
            category_ids=() if several else first.category_ids,
            problems=problems,
            sources=tuple(SourceInfo(entry.name, entry.ratio, entry.dedup) for entry, _ in found),
            readers={entry.name: read for entry, source in found for read in source.readers.values()},
            remark="; ".join(remarks),
            same_as=first.same_as if len({source.same_as for _, source in found}) == 1 else "",
        )

    def _opened_each(self, split: str) -> tuple[list[tuple[Entry, BoxSource]], list[str]]:
        """The sources that have a part in a split, and the names of those that are measured and have no images in it.

        Raises:
            NoSplitError: the first source has none.
            DataError: another one that is to be drawn from has none.
        """
        found: list[tuple[Entry, BoxSource]] = []
        without = []
        for entry in (entry for entry in self.entries if self._counts(entry, split)):
            try:
                found.append((entry, self._source(entry, split)))
            except NoSplitError as error:
                if entry is self.entries[0]:
                    raise
                if not entry.eval or (split == "train" and entry.ratio != 0):
                    hint = f"{error.hint}; a source that is measured alone says eval: true and ratio: 0"
                    raise DataError(error.message, hint) from error
                without.append(entry.name)
        return found, without

    def _counts(self, entry: Entry, split: str) -> bool:
        return split == "train" or entry.eval or entry is self.entries[0]

    def _source(self, entry: Entry, split: str) -> BoxSource:
        reading = replace(
            self.reading,
            format=entry.format,
            map=entry.map if entry.map is not None else self.reading.map,
            classes=self.classes,
            unknown=entry.unknown or self.reading.unknown,
            seq_regex=entry.seq_regex or self.reading.seq_regex,
            within=str(self.where),
        )
        root = self.root if entry.data is not None else None
        try:
            source = open_source(entry.spec(self.root), split, kind=BOXES, root=root, seed=self.seed, reading=reading)
        except (DataError, UsageError) as error:
            kind = NoSplitError if isinstance(error, NoSplitError) else DataError
            raise kind(f"{self.where}: source {entry.name!r}: {error.message}", error.hint) from error
        return cast(BoxSource, source)

    def _records(self, entry: Entry, source: BoxSource, before: int | None) -> list[BoxRecord]:
        labelled = None
        if entry.labelled is not None and not self.reading.content_only:
            if strays := [name for name in entry.labelled if name not in source.classes]:
                raise DataError(
                    f"{self.where}: source {entry.name!r}: labelled class {strays[0]!r} is none of "
                    f"{', '.join(source.classes)}",
                    "Give wanted classes",
                )
            labelled = tuple(source.classes.index(name) + 1 for name in entry.labelled)
        return [
            replace(
                record,
                source=entry.name,
                image_id=record.image_id if before is None else before + place,
                time=TIMES[entry.time] if entry.time else record.time,
                labelled=labelled,
            )
            for place, record in enumerate(source.records, 1)
        ]
