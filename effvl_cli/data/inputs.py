"""Images and videos that a user names: files, folders, patterns, and lists on standard input."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.core.errors import DataError
from effvl_cli.core.files import file_or_folder
from effvl_cli.data.files import SUFFIXES, natural
from effvl_cli.data.video_lists import VIDEOS

LIST = "-"  # names on standard input, one a line
_LOOKED_FOR = f"Looked for {', '.join(sorted(SUFFIXES | VIDEOS))}"


@dataclass(frozen=True)
class InputFile:
    """A file to work on.

    Attributes:
        path: where it lies.
        name: path from the folder that was named, else the file's name; no two are the same but for their endings.
        video: whether it is a video.
    """

    path: Path
    name: str
    video: bool


def input_files(given: Sequence[str]) -> list[InputFile]:
    """The files that some words name, in the order of the words; each file once.

    Args:
        given: files; folders, of which all images and videos below count; patterns such as `frames/*.jpg`; `-`.

    Raises:
        DataError: a word names nothing, or no image and no video.
    """
    found: dict[Path, str] = {}
    for word in given:
        for path, name in _below(word) if word != LIST else _listed():
            found.setdefault(path, name)
    if not found:
        raise DataError("the list on standard input names no file", "Give one name a line")
    taken: set[str] = set()
    return [InputFile(path, _free(name, taken), path.suffix.lower() in VIDEOS) for path, name in found.items()]


def _listed() -> Iterator[tuple[Path, str]]:
    for line in map(str.strip, sys.stdin):
        if line:
            yield from _below(line)


def _below(word: str) -> list[tuple[Path, str]]:
    """Files that a word names, and what they are called."""
    there = file_or_folder(word)
    if there == "file":
        return [(Path(word), Path(word).name)]
    if there == "folder":
        root = Path(word)
        names = (str(path.relative_to(root)) for path in root.rglob("*") if _is_input(path))
        files = [(root / name, name) for name in sorted(names, key=natural)]
        if not files:
            raise DataError(f"--input {word} holds no image and no video", _LOOKED_FOR)
        return files
    base = Path(Path(word).anchor)
    matching = base.glob(str(Path(word).relative_to(base))) if word else ()
    files = [(path, path.name) for path in sorted(matching, key=lambda path: natural(str(path))) if _is_input(path)]
    if not files:
        raise DataError(f"--input {word} names nothing", "Give files, a folder, a pattern in quotes, or - for a list")
    return files


def _is_input(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES | VIDEOS and not path.name.startswith(".") and path.is_file()


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number before its ending where another file has it."""
    path, number = Path(name), 1
    while str(path.with_suffix("")) in taken:
        number += 1
        path = Path(name).with_name(f"{Path(name).stem}-{number}{Path(name).suffix}")
    taken.add(str(path.with_suffix("")))
    return path.as_posix()
