"""The report of a run: the contents of `report.json`, and how they are collected, written and read back."""

import dataclasses
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from effvl_cli import __version__
from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import sha256
from effvl_cli.core.errors import ModelError
from effvl_cli.core.files import write_text

SCHEMA_VERSION = 1
Status = Literal["completed", "preempted", "interrupted", "failed"]
PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "pydantic", "typer")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure. `se` is the standard error over the n samples: paired with the dense figure where there is one."""

    value: float | None
    unit: str = "fraction"
    higher_is_better: bool = True
    split: str | None = None
    n: int | None = None
    se: float | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """One split that was read."""

    name: str
    split: str
    num_samples: int
    fingerprint: str
    bad_files: int = 0


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network."""

    name: str
    source: str
    params_total: int
    params_trainable: int
    edits: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A published figure beside ours."""

    metric: str
    expected: float | None
    tolerance: float | None = None
    actual: float | None = None
    within: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that the run writes, relative to its folder."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Resume:
    """How often the run was resumed, and how many steps that saved."""

    count: int = 0
    exact: bool = True
    steps_done_before: int = 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """`report.json`, schema version 1."""

    schema_version: int
    effvl_version: str
    command: str
    run_id: str
    status: Status
    started: float
    finished: float
    duration_s: float
    seed: int
    config_sha256: str
    recipe: str | None
    environment: dict[str, Any]
    data: list[Data]
    model: Model | None
    metrics: dict[str, Metric]
    efficiency: dict[str, Any]
    comparison: list[Comparison]
    artifacts: list[Artifact]
    warnings: list[str]
    resume: Resume
    technique: dict[str, Any]
    error: str | None = None

    def to_json(self, *, indent: int | None = None) -> str:
        """The report as JSON text."""
        found: str = _adapter().dump_json(self, indent=indent).decode()
        return found


def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Report)


def schema() -> dict[str, Any]:
    """JSON Schema of `report.json`; a copy lies beside this module."""
    found: dict[str, Any] = _adapter().json_schema()
    return found


def read_report(path: Path) -> Report:
    """Read and check a report.

    Raises:
        ModelError: not a report of this schema.
    """
    from pydantic import ValidationError

    try:
        report: Report = _adapter().validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"{path} is not a report of this version: {first}", "Run the command again with --fresh"
        ) from error
    if report.schema_version != SCHEMA_VERSION:
        raise ModelError(
            f"{path} has schema_version {report.schema_version}, and this version of effvl reads {SCHEMA_VERSION}",
            f"It was written by effvl {report.effvl_version}; read it with that version",
        )
    return report


class ReportBuilder:
    """A report that is collected during its run."""

    def __init__(
        self, *, command: str, run_id: str, seed: int, config_sha256: str, recipe: str | None, device: torch.device
    ) -> None:
        self.command, self.run_id, self.seed = command, run_id, seed
        self.config_sha256, self.recipe, self.device = config_sha256, recipe, device
        self.metrics: dict[str, Metric] = {}
        self.efficiency: dict[str, Any] = {}
        self.technique: dict[str, Any] = {}
        self.warnings: list[str] = []
        self._data: dict[tuple[str, str, int], Data] = {}
        self._model: Model | None = None
        self._artifacts: dict[str, Artifact] = {}
        self._expected: list[dict[str, Any]] = []
        self._resume = Resume()
        self._started = time.time()
        self.on_data: Callable[[Any, str], None] = lambda source, fingerprint: None
        self.on_warning: Callable[[str], None] = lambda text: None

    def metric(self, name: str, value: float | None, **about: Any) -> None:
        """Record a figure; one that is not finite becomes null, with a warning."""
        if "se" in about:
            about["se"] = self._finite(about["se"], f"{name}.se")
        self.metrics[name] = Metric(value=self._finite(value, name), **about)

    def data(self, source: Any, *, num_samples: int | None = None, bad_files: int = 0) -> None:
        """Record that (part of) a split was read, and warn of the source's remark on it."""
        if getattr(source, "remark", ""):
            self.warn(f"{source.name}, split {source.split}: {source.remark}")
        if len(getattr(source, "classes", ())) == 1 and getattr(source, "kind", "") != "boxes":
            self.warn(f"{source.name} has only one class, {source.classes[0]!r}: its accuracies are meaningless")
        if num_samples is None:
            num_samples = 0 if getattr(source, "endless", False) else len(source)
        row = Data(
            name=source.name,
            split=source.split,
            num_samples=num_samples,
            fingerprint=source.fingerprint(),
            bad_files=bad_files,
        )
        self._data[row.name, row.split, row.num_samples] = row
        self.on_data(source, row.fingerprint)

    def model(self, name: str, source: str, module: nn.Module) -> None:
        """Record the network."""
        sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
        total, trainable = sum(n for n, _ in sizes), sum(n for n, grad in sizes if grad)
        self._model = Model(name=name, source=source, params_total=total, params_trainable=trainable)

    def edit(self, kind: str, **args: Any) -> None:
        """Record a structural edit of the network."""
        if self._model is not None:
            edits = [*self._model.edits, {"kind": kind, "args": args}]
            self._model = dataclasses.replace(self._model, edits=edits)

    def edits(self, edits: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Record edits of the network, each by its kind and its arguments."""
        for kind, args in edits:
            self.edit(kind, **args)

    def artifact(self, path: Path, folder: Path | None = None) -> None:
        """Record a file of the run folder."""
        name = str(path.relative_to(folder)) if folder else path.name
        self._artifacts[name] = Artifact(path=name, sha256=sha256(path), bytes=path.stat().st_size)

    def warn(self, text: str) -> None:
        """Keep a warning, and tell of it once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.on_warning(text)

    def reference(self, reference: Mapping[str, Any] | None) -> None:
        """Set the published figures to compare with: the recipe's `reference.expected`."""
        self._expected = list((reference or {}).get("expected") or [])

    def resume(self, count: int, steps_done_before: int) -> None:
        """Count an earlier attempt and the steps that this one did not repeat."""
        done = self._resume.steps_done_before + steps_done_before
        self._resume = Resume(count=count, steps_done_before=done)

    def finish(self, status: Status, error: str | None = None) -> Report:
        """The report of the run so far."""
        finished = time.time()
        efficiency = self._finite(self.efficiency, "efficiency")
        technique = self._finite(self.technique, "technique")
        return Report(
            schema_version=SCHEMA_VERSION,
            effvl_version=__version__,
            command=self.command,
            run_id=self.run_id,
            status=status,
            started=self._started,
            finished=finished,
            duration_s=finished - self._started,
            seed=self.seed,
            config_sha256=self.config_sha256,
            recipe=self.recipe,
            environment=environment(self.device),
            data=list(self._data.values()),
            model=self._model,
            metrics=self.metrics,
            efficiency=efficiency,
            comparison=[self._compare(row) for row in self._expected],
            artifacts=list(self._artifacts.values()),
            warnings=list(self.warnings),
            resume=self._resume,
            technique=technique,
            error=error,
        )

    def _finite(self, value: Any, name: str) -> Any:
        """Plain JSON values; what is not finite becomes null, with a warning."""
        if isinstance(value, dict):
            return {str(key): self._finite(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._finite(item, name) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            self.warn(f"{name} is not finite")
            return None
        return value

    def _compare(self, row: dict[str, Any]) -> Comparison:
        ours = self.metrics.get(row["metric"])
        return compare(row, ours.value if ours else None)


def compare(row: Mapping[str, Any], actual: float | None) -> Comparison:
    """A row of a recipe's `reference.expected` (metric, value, tolerance) beside our figure."""

    def number(key: str) -> float | None:
        return None if row.get(key) in (None, "", "null") else float(row[key])

    expected, tolerance = number("value"), number("tolerance")
    within = None
    if expected is not None and tolerance is not None and actual is not None:
        within = abs(actual - expected) <= tolerance
    return Comparison(metric=row["metric"], expected=expected, tolerance=tolerance, actual=actual, within=within)


def write(report: Report, path: Path) -> None:
    """Check a report against its schema and write it atomically."""
    text = report.to_json(indent=1)
    _adapter().validate_json(text)
    write_text(path, text + "\n")


def environment(device: torch.device) -> dict[str, Any]:
    """Where this process runs."""
    world = distributed.world()
    cuda = device.type == "cuda"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "device": {
            "type": device.type,
            "name": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
            "count": torch.cuda.device_count() if cuda else 1,
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory if cuda else physical_memory(),
        },
        "distributed": {
            "world_size": world.size,
            "backend": None if world.size == 1 else ("nccl" if cuda else "gloo"),
            "launcher": world.launcher,
        },
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def physical_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache  # packages stay as they are while a process runs
def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Commit of the current folder's repository, if it is one."""
    try:
        commit = _git_output("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git_output("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git_output(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
