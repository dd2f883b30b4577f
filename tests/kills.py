"""A run that dies after each of its writes in turn, for comparison with one that lives.

A process killed between two writes leaves what the first of them left; so one attempt after another is ended right
after the first write that no attempt before it has made, until one comes to its end. Every state that a kill can leave
between two writes is gone on from.
"""

import gc
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from effvl_cli.cli.app import main
from effvl_cli.core import files
from effvl_cli.core.checkpoint import read_state_dict
from effvl_cli.core.records import Records

MOST = 200
TIMES = ("seconds", "_s", "_ms", "speedup", "ratio_b1", "images_per_s", "latency", "bench", "data_wait")


class KilledError(BaseException):
    """Stands for the end of the process: nothing in memory is used again."""


def run_with_kills(monkeypatch, line: list[str], *, of: Callable[[str], bool] = lambda name: True) -> int:
    """Run a command again and again until it ends, each attempt killed after the first new write.

    Args:
        monkeypatch: pytest's.
        line: the command.
        of: which files' writes count, by name.

    Returns:
        How many attempts were killed.
    """
    seen: set[tuple[str, str]] = set()

    def die_after(name: str, content: bytes) -> None:
        key = (name, hashlib.sha256(content).hexdigest())
        if of(name) and name != "environment.json" and key not in seen:
            seen.add(key)
            raise KilledError

    write_bytes, folder_written, record = files.write_bytes, files._sync_folder, Records.write

    def write(target, data, **options):
        write_bytes(target, data, **options)
        die_after(target.name, b"" if target.name in ("report.json", "report.html") else data)

    def synced(folder):
        folder_written(folder)
        newest = max(folder.glob("step-*"), default=None, key=lambda path: path.stat().st_mtime_ns)
        if newest is not None and (newest / "state.pt").is_file():
            die_after(f"{folder.name}/{newest.name}", (newest / "model.safetensors").read_bytes())

    def recorded(self, event, fields):
        record(self, event, fields)
        die_after("metrics.jsonl", json.dumps([event, fields]).encode())

    killed = 0
    with monkeypatch.context() as patch:
        for module in _holders(files.write_bytes):
            patch.setattr(module, "write_bytes", write)
        patch.setattr(files, "_sync_folder", synced)
        patch.setattr(Records, "write", recorded)
        while killed < MOST:
            try:
                code = main(line)
            except KilledError:
                killed += 1
                gc.collect()  # the lock goes with the process
                continue
            assert code == 0
            return killed
    raise AssertionError(f"not at its end after {MOST} attempts")


def _holders(function):
    """Modules that have taken a function by name."""
    ours = [module for name, module in sys.modules.items() if name.startswith("effvl_cli")]
    return [module for module in ours if vars(module).get("write_bytes") is function]


def assert_same_result(one: Path, other: Path, *, but: tuple[str, ...] = ()) -> None:
    """All figures, tensors and records of two runs are equal, times apart."""
    for path in sorted(one.rglob("*.safetensors")):
        ours, theirs = read_state_dict(path), read_state_dict(other / path.relative_to(one))
        assert ours.keys() == theirs.keys(), path
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), path
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, other)]
    for part in ("metrics", "technique", "data", "model", "warnings"):
        found = [_without_times(report[part], but) for report in reports]
        assert found[0] == found[1], part


def _without_times(value, but):
    if isinstance(value, dict):
        return {k: _without_times(v, but) for k, v in value.items() if not any(t in k for t in (*TIMES, *but))}
    if isinstance(value, list):
        return [_without_times(v, but) for v in value]
    return value
