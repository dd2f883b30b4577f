"""Runs one resolved command: device and processes, run folder, engine, report, printed result, exit code."""

import importlib
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from effvl_cli.cli.commands import Command
from effvl_cli.cli.console import Console
from effvl_cli.config.resolve import Invocation, Resolved
from effvl_cli.config.schema import options
from effvl_cli.core.errors import (
    EffvlError,
    Interrupted,
    NumericalError,
    Preempted,
    StorageError,
    UsageError,
    as_user_error,
)


def execute(command: Command, resolved: Resolved, invocation: Invocation) -> int:
    """Run a command to its end.

    Returns:
        The exit code; errors are printed as one line, with the traceback of an internal one in the run's log.

    Raises:
        Exception: with --debug, whatever went wrong.
    """
    console = Console(quiet=invocation.quiet, json=invocation.json)
    try:
        return _run(command, resolved, invocation, console)
    except EffvlError as error:
        if invocation.debug:
            raise
        console.error(str(error), anywhere=not isinstance(error, UsageError | Preempted))
        return error.exit_code
    finally:
        from effvl_cli.core import distributed

        distributed.stop()


def preview(command: Command, config: Any) -> None:
    """Print what the engine can say about a run before it starts, as comments: what stands before them is a recipe."""
    engine = importlib.import_module(command.engine)
    for table in engine.preview(config) if hasattr(engine, "preview") else ():
        Console(quiet=True, json=False).print_table(table, before="# ")


def _run(command: Command, resolved: Resolved, invocation: Invocation, console: Console) -> int:
    import torch

    from effvl_cli import data
    from effvl_cli.core import distributed
    from effvl_cli.core.devices import resolve_device
    from effvl_cli.core.report import Report
    from effvl_cli.core.run import open_run
    from effvl_cli.core.run_choice import RunRequest

    config = resolved.config
    device = resolve_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.start(device)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    _fetch(config, console)
    engine = importlib.import_module(command.engine)
    recipe = resolved.recipe.path if resolved.recipe else None
    request = RunRequest(
        command.title, config, recipe, invocation.argv, invocation.fresh, resolved.inherited, engine.table
    )
    if hasattr(engine, "refuse"):
        request = replace(request, refuse=partial(engine.refuse, config))
    opened = open_run(
        request,
        device,
        progress=console.progress,
        echo=console.log,
        fingerprints=data.fingerprints,
        check=lambda: _check(engine, config),
    )
    if isinstance(opened, Report):
        console.log("finished before with these options; this is the stored result (--fresh runs it again)")
        _show(opened, engine.table, console)
        return 0
    console.log_first(f"run folder {opened.folder}")
    if resolved.recipe:
        opened.report.reference(resolved.recipe.reference)
    report = _guarded(engine.run, config, opened, debug=invocation.debug)
    _show(report, engine.table, console)
    console.log(f"report {opened.folder / 'report.html'} and report.json")
    if plots := opened.plots():
        console.log(f"pictures {', '.join(str(p) for p in plots)}")
    return 0


def _data_sets(config: Any) -> list[tuple[str, str]]:
    """Flags and values that name a data set: `data`, and options that are marked so."""
    found: list[tuple[str, str]] = []
    for name, option in options(type(config)).items():
        if name == "data" or "dataset" in option.markers:
            value = getattr(config, name)
            found += [(option.flag, spec) for spec in (value if option.is_list else (value,)) if spec]
    return found


def _check(engine: Any, config: Any) -> None:
    """Data that are a path are there, and the engine refuses nothing of what it can tell without them."""
    from effvl_cli.data.check import require

    for flag, spec in _data_sets(config):
        require(spec, config.data_root, flag)
    if hasattr(engine, "refuse_first"):
        engine.refuse_first(config)


def _fetch(config: Any, console: Console) -> None:
    """With --download, fetch the data sets that are missing, on one process while the others wait."""
    from effvl_cli.core import distributed

    if not getattr(config, "download", False):
        return
    if distributed.is_main():
        from effvl_cli.data.fetch import fetch_missing

        for _, spec in _data_sets(config):
            fetch_missing(spec, config.data_root, console.log)
    distributed.barrier()


def _guarded(run_engine: Callable[[Any, Any], None], config: Any, run: Any, *, debug: bool) -> Any:
    """Run the engine; whatever ends it is recorded in the report before the error is raised again."""
    try:
        run_engine(config, run)
        return run.finish("completed")
    except EffvlError as error:
        status = "interrupted" if isinstance(error, Interrupted) else "preempted"
        _close(run, status if isinstance(error, Preempted) else "failed", error)
        raise
    except Exception as error:
        known = _in_words(error, config)
        if known is None:
            run.log(traceback.format_exc())
        _close(run, "failed", error)
        if debug:
            raise
        where = Path(run.folder) / "log.txt"
        internal = EffvlError(f"internal error: {type(error).__name__}: {error}", f"The traceback is in {where}")
        raise known or internal from error
    except BaseException:  # Python's own interruption: nothing is reported, but the folder is released
        run.close()
        raise


def _in_words(error: Exception, config: Any) -> EffvlError | None:
    """The user's error for an exception that is not ours: the memory or the disk is full; None for any other."""
    import torch

    from effvl_cli.core.files import is_full

    if isinstance(error, torch.OutOfMemoryError):
        return NumericalError("out of memory", f"Lower {' or '.join(_hungry(config)) or 'the size of the model'}")
    if isinstance(error, OSError) and is_full(error):
        return StorageError(f"cannot write {error.filename or 'a file'}: {error.strerror}", "Free some space")
    return as_user_error(error)


def _hungry(config: Any) -> list[str]:
    """The options of a command that take memory, as its dataclass says."""
    known = options(type(config)).values()
    return [option.flag for option in known if "memory" in option.markers or option.key.endswith("batch-size")]


def _close(run: Any, status: str, error: BaseException) -> None:
    """Write the report if the disk has room for it; what was saved before stays as it is."""
    try:
        run.finish(status, str(error))
    except (EffvlError, OSError) as failure:
        run.log(f"no report written: {failure}")
        run.close()


def _show(report: Any, table: Callable[[Any], Any], console: Console) -> None:
    if console.json:
        console.print_json(report.to_json())
    else:
        console.print_table(table(report))
