"""The run folder: opened or resumed under a lock, recorded into, and closed with a report.

config.yaml      resolved options and the command line; itself a recipe
report.json      the result, rewritten atomically
metrics.jsonl    one record per log or evaluation event; the same bytes after a resume as without one; also metrics.csv
report.html      the result for a browser, one file with its pictures embedded
log.txt          plain log of rank 0, tracebacks included
environment.json where the latest attempt ran, and its number
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import signal
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import torch

from effvl_cli.config.identity import growable, identity, to_yaml_mapping
from effvl_cli.config.options import ARTEFACT
from effvl_cli.config.recipe_file import dump_yaml
from effvl_cli.core import distributed, html_report, records, signals, tensorboard, used_data
from effvl_cli.core.cache import Cache
from effvl_cli.core.checkpoint import MANIFEST, sha256
from effvl_cli.core.devices import resolve_device, slow_precision
from effvl_cli.core.errors import Interrupted, Preempted, UsageError
from effvl_cli.core.files import file_or_folder, write_json, write_text
from effvl_cli.core.records import RECORDS, RECORDS_TABLE, Records
from effvl_cli.core.report import Report, ReportBuilder, Status, environment, read_report
from effvl_cli.core.report import write as write_report
from effvl_cli.core.run_choice import RunRequest, agreed, decide
from effvl_cli.core.run_files import CONFIG, ENVIRONMENT, LOG, REPORT, RunFiles, remove_half_written
from effvl_cli.core.table import Table
from effvl_cli.core.tensorboard import EventFile
from effvl_cli.core.used_data import Fingerprints

if TYPE_CHECKING:
    from effvl_cli.core.phases import Phases

RUNS = Path("runs")
EMBEDDED = "views.json"  # describes embeddings, see engines/common/view_folder.py
LEARNED = "state/state.json"  # describes learned tasks, see engines/continual/state_files.py


class Progress(Protocol):
    """A line or bar that shows the progress of a phase."""

    def update(self, completed: int, **fields: Any) -> None:
        """Show `completed` of the total and some figures."""


ProgressFactory = Callable[..., contextlib.AbstractContextManager[Progress]]


class _Silent:
    def update(self, completed: int, **fields: Any) -> None:
        """Show nothing."""


@contextlib.contextmanager
def silent_progress(description: str, total: int, completed: int = 0) -> Iterator[Progress]:
    """Progress that shows nothing."""
    yield _Silent()


@dataclass
class Run(RunFiles):
    """One open run folder, or, on ranks other than 0, a view of it that writes nothing."""

    folder: Path
    command: str
    device: torch.device
    cache: Cache
    report: ReportBuilder
    attempt: int = 1
    lengths: Mapping[str, Any] = field(default_factory=dict)
    """Current values of the options that may grow when a run is continued."""
    progress_factory: ProgressFactory = silent_progress
    echo: Callable[[str], None] = lambda text: None
    argv: tuple[str, ...] = ()
    table: Callable[[Report], Table] | None = None
    """Makes the table that the command prints from its report."""
    phases: "Phases | None" = None
    _records: Records | None = None
    _lock: IO[str] | None = None
    _started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Show whatever the report warns of."""
        self.report.on_warning = lambda text: self.log(f"warning: {text}")

    def progress(self, description: str, total: int, completed: int = 0) -> contextlib.AbstractContextManager[Progress]:
        """Progress of a phase; shown on rank 0 only."""
        return self.progress_factory(description, total, completed)

    def log(self, text: str) -> None:
        """A line for log.txt and, unless quiet, for stderr."""
        if distributed.is_main():
            self.echo(text)
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            with contextlib.suppress(OSError), (self.folder / LOG).open("a") as file:  # a full disk must not hide why
                file.write(f"{stamp} {text}\n")

    def warn(self, text: str) -> None:
        """A warning, kept in the report and shown once."""
        self.report.warn(text)

    def record(self, event: str, **fields: Any) -> None:
        """A line of metrics.jsonl; no times or rates, so that a resumed run writes the same bytes.

        The first line of a resumed run replaces those of unfinished work by earlier attempts.
        """
        if self._records is not None:
            self._records.write(event, fields)

    def unrecorded(self) -> "Run":
        """The same run for short trials, whose steps are left out of metrics.jsonl."""
        return replace(self, _records=None)

    def record_offset(self) -> int | None:
        """Bytes of metrics.jsonl that count so far; None on a process that does not write it."""
        return None if self._records is None else self._records.offset()

    def settle_records(self, offset: int | None) -> None:
        """Keep the records before `offset`: an earlier attempt has finished their work."""
        if self._records is not None and offset is not None:
            self._records.settle(offset)

    def rewind_records(self, offset: int | None) -> None:
        """Drop the records of steps that a resume repeats."""
        if self._records is not None and offset is not None:
            self._records.rewind(offset)

    def remember_data(self, source: Any, fingerprint: str) -> None:
        """Store the fingerprint of a split for later attempts."""
        row, path = used_data.row_of(source, fingerprint), self.path(used_data.DATA)
        if row is not None and distributed.is_main():
            known = used_data.read(self.folder)
            if row not in known:
                write_json(path, [*known, row])

    def resumed(self, phase: str, steps: int) -> None:
        """Count work of an earlier attempt that this one does not repeat."""
        if steps:
            self.report.resume(self.attempt - 1, steps)

    def stop_signal(self) -> int:
        """The signal that asks this process to stop, or 0."""
        return signals.requested() or 0

    def check_stop(self) -> None:
        """Stop here, on every process, if any was asked to; for phases that save their work as they go."""
        wish = distributed.all_reduce_max(self.stop_signal())
        if wish:
            self.stop(wish)

    def stop(self, number: int) -> typing.NoReturn:
        """Raise the exception for that signal."""
        kind = Interrupted if number == signal.SIGINT else Preempted
        raise kind(f"stopped by {signal.Signals(number).name}", "The same command again continues from what is saved")

    def finish(self, status: Status, error: str | None = None) -> Report:
        """Write the report and its page, and release the folder."""
        if found := records.read(self.folder / RECORDS):
            self.write(RECORDS_TABLE, records.write_table, found)
        report = self.report.finish(status, error)
        page, path = self.path(html_report.HTML), self.path(REPORT)
        if distributed.is_main():
            table = self.table(report) if self.table and status == "completed" else None
            write_text(page, html_report.of_run(report, table, self.argv, self.plots()))
            write_report(report, path)  # last: it marks the run as finished
        self.close()
        return report

    def close(self) -> None:
        """Release the lock and the record file."""
        for file in (self._records, self._lock):
            if file is not None:
                file.close()
        self._records = self._lock = None


def open_run(
    request: RunRequest,
    device: torch.device,
    *,
    progress: ProgressFactory = silent_progress,
    echo: Callable[[str], None] = lambda text: None,
    fingerprints: Fingerprints | None = None,
    check: Callable[[], None] = lambda: None,
) -> Run | Report:
    """Open the folder of a run, new or to be continued; return the report of a finished run with the same options.

    Args:
        request: the command.
        device: what it computes on.
        progress: shows the progress.
        echo: shows a line.
        fingerprints: of the data as they are now, compared with those that earlier attempts have read.
        check: refuses what a new run could not do, before its folder is made.

    Raises:
        UsageError: the folder holds a run of other options or other data, is in use, or is not a run folder.
    """
    config = request.config
    inputs = input_digests(config)
    key = identity(config)
    if inputs:
        key = hashlib.sha256((key + json.dumps(inputs, sort_keys=True)).encode()).hexdigest()
    folder = _folder(request.command, config, key)
    lock, answer = agreed(lambda: decide(folder, request, inputs, fingerprints, check, echo))
    if answer["finished"]:
        if lock:
            lock.close()
        return _stored(folder, echo)
    report = ReportBuilder(
        command=request.command,
        run_id=folder.name,
        seed=config.seed,
        config_sha256=key,
        recipe=request.recipe,
        device=device,
    )
    cache, lengths = Cache(config.cache_dir), growable(config)
    run = Run(folder, request.command, device, cache, report, answer["attempt"], lengths, progress, echo)
    run.report.on_data = run.remember_data
    run.argv, run.table = request.argv, request.table
    slow = slow_precision(device, config.precision) if config.computes else ""
    if slow:
        run.warn(slow)
    if run.attempt > 1:
        run.report.resume(run.attempt - 1, 0)
    if distributed.is_main():
        _prepare(run, request, inputs, key)
        run._lock = lock
    distributed.barrier()
    return run


def _stored(folder: Path, echo: Callable[[str], None]) -> Report:
    """The report of a finished run, with a warning for each file that has changed since."""
    report = read_report(folder / REPORT)
    for artifact in report.artifacts if distributed.is_main() else ():
        path = folder / artifact.path
        if not path.is_file():
            echo(f"warning: {path} is missing; --fresh repeats the run")
        elif path.stat().st_size != artifact.bytes or sha256(path) != artifact.sha256:
            echo(f"warning: {path} is damaged or has been changed since the run; --fresh repeats the run")
    return report


def unopened(command: str, config: Any) -> Run:
    """A run without a folder, for previews, which only look at options and data."""
    device = resolve_device(config.device)
    _folder(command, config, "")  # refuses a wrong --name
    report = ReportBuilder(command=command, run_id="", seed=config.seed, config_sha256="", recipe=None, device=device)
    return Run(Path(os.devnull), command, device, Cache(config.cache_dir), report)


def _folder(command: str, config: Any, key: str) -> Path:
    if config.out:
        return Path(config.out)
    if config.name and (".." in Path(config.name).parts or Path(config.name).is_absolute()):
        raise UsageError(f"--name {config.name} leads out of {RUNS}/", "Give a plain name, or the whole path as --out")
    return RUNS / command.replace(" ", "-") / (config.name or key[:8])


def _prepare(run: Run, request: RunRequest, inputs: Mapping[str, str], key: str) -> None:
    """Write what describes the attempt, and open the records."""
    if run.attempt > 1:
        remove_half_written(run.folder)
    for name in (CONFIG, ENVIRONMENT, RECORDS, LOG):
        run.path(name)
    header = {
        "effvl": 1,
        "command": request.command,
        "description": "resolved options of a run",
        "config": to_yaml_mapping(request.config),
        "run": {
            "command_line": shlex.join(request.argv),
            "inputs": dict(inputs),
            **({"inherited": dict(request.inherited)} if request.inherited else {}),
            "identity": key,  # last: it marks the file as complete
        },
    }
    write_text(run.folder / CONFIG, dump_yaml(header))
    write_json(run.folder / ENVIRONMENT, {"attempt": run.attempt, **environment(run.device)})
    logged = "tensorboard" in request.config.log
    writers = (EventFile(run.path(tensorboard.FOLDER)),) if logged else ()
    run._records = Records(run.folder / RECORDS, resumed=run.attempt > 1, writers=writers)


def input_digests(config: Any) -> dict[str, str]:
    """Digests of the files that options marked ARTEFACT name: the same path with other content makes another run."""
    digests = {}
    hints = typing.get_type_hints(type(config), include_extras=True)
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if value and ARTEFACT in getattr(hints[item.name], "__metadata__", ()):
            found = [_digest_of(name) for name in (value if isinstance(value, tuple) else (value,))]
            if any(found):
                digests[item.name] = "+".join(found)
    return digests


def _digest_of(name: str) -> str:
    """Of a file, or of what the manifest and other descriptions in a folder say; "" for anything else."""
    path, there = Path(name), file_or_folder(name)  # a schedule given as text may be longer than a path
    if there == "folder":
        return "+".join(
            sha256(path / found)[:16] for found in (MANIFEST, EMBEDDED, LEARNED) if (path / found).is_file()
        )
    return sha256(path)[:16] if there == "file" else ""
