"""A run that dies after each of its writes in turn, for comparison with one that lives.

A process killed between two writes leaves what the first of them left; so one attempt after another is ended right
after the first write that no attempt before it has made, until one comes to its end. Every state that a kill can leave
between two writes is gone on from.
"""

import gc
import hashlib
import json
import re
import sys
from pathlib import Path

import torch

from effvl_cli.cli.app import main
from effvl_cli.core import files
from effvl_cli.core.checkpoint import read_state_dict
from effvl_cli.core.records import Records

MOST = 200
BY_CONTENT = re.compile(r"phases\.json|metrics\.jsonl|.*\.safetensors|.*/step-\d+")
"""Files that are written again and again; of the others the first time counts."""
TIMED = re.compile(
    r".*(seconds|_s|_ms)|speedup.*|.*speedup|.*latency.*|bench|images_per_s.*|data_wait.*|peak_mem.*|searched_now"
)


class KilledError(BaseException):
    """Stands for the end of the process: nothing in memory is used again."""


def run_with_kills(monkeypatch, line: list[str], after: str = ".*") -> int:
    """Run a command again and again until it ends, each attempt killed after its first new write.

    Args:
        monkeypatch: of the test.
        line: the command.
        after: expression of the names of the writes that kill; without it all do.

    Returns:
        How many attempts were killed.
    """
    killed = 0
    with monkeypatch.context() as patch:
        _let_writes_kill(patch, re.compile(after))
        while _is_killed(line):
            killed += 1
            gc.collect()  # the lock goes with the process
            assert killed < MOST, "it never comes to its end"
    return killed


def _is_killed(line: list[str]) -> bool:
    try:
        code = main(line)
    except KilledError:
        return True
    assert code == 0
    return False


def _let_writes_kill(patch, after: re.Pattern[str]) -> None:
    seen: set[tuple[str, str]] = set()

    def die_after(name: str, content: bytes) -> None:
        key = (name, hashlib.sha256(content).hexdigest() if BY_CONTENT.fullmatch(name) else "")
        if key not in seen and after.fullmatch(name):
            seen.add(key)
            raise KilledError

    write_bytes, synced, record = files.write_bytes, files._sync_folder, Records.write

    def writing(target, data, **options):
        write_bytes(target, data, **options)
        die_after(target.name, data)

    def syncing(folder):
        synced(folder)
        newest = max(folder.glob("step-*"), default=None, key=lambda path: path.stat().st_mtime_ns)
        if newest is not None and (newest / "state.pt").is_file():
            die_after(f"{folder.name}/{newest.name}", (newest / "model.safetensors").read_bytes())

    def recording(self, event, fields):
        record(self, event, fields)
        die_after("metrics.jsonl", json.dumps([event, fields]).encode())

    for module in _holders(write_bytes):
        patch.setattr(module, "write_bytes", writing)
    patch.setattr(files, "_sync_folder", syncing)
    patch.setattr(Records, "write", recording)


def _holders(function):
    """Modules that have taken a function by name."""
    ours = [module for name, module in sys.modules.items() if name.startswith("effvl_cli")]
    return [module for module in ours if vars(module).get("write_bytes") is function]


def assert_same_result(one: Path, other: Path) -> None:
    """All figures, tensors and records of two runs are equal, times apart."""
    for path in sorted(one.rglob("*.safetensors")):
        ours, theirs = read_state_dict(path), read_state_dict(other / path.relative_to(one))
        assert ours.keys() == theirs.keys(), path
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), path
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, other)]
    for report in reports:  # one warning tells a measured time
        report["warnings"] = [text for text in report["warnings"] if "pruning gains nothing" not in text]
    for part in ("metrics", "technique", "data", "model", "warnings"):
        found = [_without_times(report[part]) for report in reports]
        assert found[0] == found[1], part


def _without_times(value):
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if not TIMED.fullmatch(key)}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
