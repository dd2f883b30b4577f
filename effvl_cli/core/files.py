"""Atomic writes: a crash or a full disk at any byte leaves what was there before."""

import contextlib
import csv
import errno
import io
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from effvl_cli.core.errors import DataError, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Whether the disk is full, or a quota or the largest file size is reached."""
    return error.errno in _FULL


@contextlib.contextmanager
def disk_errors(target: Path, *, option: str = "") -> Iterator[None]:
    """Turn an operating-system error into one line that names the file, and the option that names another place.

    Raises:
        StorageError: no space, no permission, read-only...
    """
    try:
        yield
    except OSError as error:
        advice = "Free some space" if is_full(error) else "Check the folder's permissions"
        if option:
            advice += f", or give another {option}"
        reason = (error.strerror or str(error)).lower()
        raise StorageError(
            f"cannot write {target}: {reason}; what was saved before is untouched",
            f"{advice}; then give the same command again",
        ) from error


def write_bytes(target: Path, data: bytes, *, option: str = "") -> None:
    """Replace a file: temporary file beside it, fsync, rename, fsync of the folder; `option` names another place."""
    with disk_errors(target, option=option):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(target, text.encode())


def write_json(target: Path, value: Any, *, option: str = "") -> None:
    """`write_bytes` of indented JSON; NaN is refused."""
    write_bytes(target, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), option=option)


def write_csv(target: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """`write_text` of a table under its column names; missing values are empty, other keys are left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(target, text.getvalue())


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place, synced, when the body ends without an error."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        former = temporary.with_name(f"{temporary.name}-former")
        try:
            yield temporary
            for path in temporary.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            _sync_folder(temporary)
            temporary.chmod(0o755)
            if target.exists():
                target.rename(former)  # removed only afterwards: this name must never stand for half a folder
            temporary.rename(target)
            _sync_folder(target.parent)
        finally:
            if former.exists() and not target.exists():
                former.rename(target)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(former, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_or_folder(name: str | Path) -> Literal["file", "folder", ""]:
    """What exists by that name; "" for nothing, and for a name too long for a path or with a null byte."""
    try:
        mode = Path(name).stat().st_mode
    except (OSError, ValueError):
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file"


def read_numbers(path: Path, names: Sequence[str], option: str, example: str) -> list[float]:
    """Finite numbers of a JSON object, in the order of `names`.

    Args:
        path: of the file.
        names: of the numbers.
        option: with its value, for errors.
        example: of such an object, for errors.

    Raises:
        DataError: no such file, not such an object, or a name is missing.
    """
    try:
        found = json.loads(path.read_text())
        values = [float(found[name]) for name in names]
        if not all(map(math.isfinite, values)):
            raise ValueError("a value is not finite")
        return values
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{option} cannot be read: {error}", f"Write {example}, lower goes first") from error
    except KeyError as error:
        raise DataError(f"{option} has no value for {error}", "Give one for each unit") from error
