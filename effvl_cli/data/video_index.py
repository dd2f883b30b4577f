"""The index of each video, kept in the cache: a file is decoded once, until it or the decoder changes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effvl_cli.core.cache import OPTION, Cache
from effvl_cli.core.files import write_json
from effvl_cli.data.clips import BadClipError
from effvl_cli.data.files import file_states
from effvl_cli.data.video import KeyFrame, VideoIndex, index_video, pyav

KIND = "video-index"


def cached_index(path: Path, cache: Cache | None = None) -> VideoIndex:
    """The index of a video; a file without one is remembered too.

    Args:
        path: of the file.
        cache: by default the user's.

    Raises:
        BadClipError: no frame of it can be decoded.
        MissingPackageError: PyAV is not installed.
    """
    (state,) = file_states([path])
    if state == "missing":
        raise BadClipError(f"no video at {path}", "Extract or download it again", "open_failed")
    key = {"path": str(path.resolve()), "state": state, "decoder": pyav().__version__}
    kept = (cache or Cache()).entry(KIND, key).folder / "index.json"
    try:
        found = _indexed(json.loads(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        found = _scanned(path)
        write_json(kept, _as_json(found), option=OPTION)
    if isinstance(found, BadClipError):
        raise found
    return found


def _scanned(path: Path) -> VideoIndex | BadClipError:
    try:
        return index_video(path)
    except BadClipError as error:
        return error


def _as_json(found: VideoIndex | BadClipError) -> dict[str, Any]:
    if isinstance(found, BadClipError):
        return {"message": found.message, "hint": found.hint, "reason": found.reason}
    return asdict(found)


def _indexed(found: dict[str, Any]) -> VideoIndex | BadClipError:
    if "reason" in found:
        return BadClipError(**found)
    keys = tuple(KeyFrame(key["number"], (key["stamp"][0], key["stamp"][1])) for key in found["keys"])
    return VideoIndex(**{**found, "keys": keys, "lost": tuple(found["lost"])})
