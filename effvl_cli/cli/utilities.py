"""`effvl list`, `env`, `data`, `sweep` and `table`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from effvl_cli.core.errors import DataError, Interrupted, Preempted, UsageError

RECIPES = Path("recipes")


def list_(
    what: Annotated[Literal["models", "datasets", "recipes"], typer.Argument(help="What to list.")],
    pattern: Annotated[str, typer.Argument(help="Only names that contain this text.")] = "",
) -> None:
    """List models, data sets or recipes by name."""
    from effvl_cli.cli.console import Console
    from effvl_cli.core.table import Table

    rows: Sequence[tuple[str, ...]] = _recipes(pattern) if what == "recipes" else _registered(what, pattern)
    if not rows:
        raise UsageError(f"no {what} match {pattern!r}", f"`effvl list {what}` lists all")
    columns = ("name", "kind", "what") if what == "datasets" else ("name", "what")
    Console().print_table(Table(f"{len(rows)} {what}", columns, tuple(rows)))


def _registered(what: str, pattern: str) -> list[tuple[str, ...]]:
    from effvl_cli.data import DATASETS
    from effvl_cli.models import MODELS

    registry = MODELS if what == "models" else DATASETS
    kinds = what == "datasets"
    rows = [(row.name, *((row.kind or "?",) if kinds else ()), row.summary) for row in registry.rows()]
    found = [row for row in rows if pattern.lower() in row[0].lower()]
    if what == "models" and pattern:
        from effvl_cli.models.listing import names

        found += [row for row in names() if pattern.lower() in row[0].lower()]
    return found


def _recipes(pattern: str) -> list[tuple[str, str]]:
    """Recipes that come with effvl, by name, and those in the current folder's `recipes/`, by path."""
    from effvl_cli.config import recipes
    from effvl_cli.config.recipe_file import read_recipe

    listed = dict(recipes.names())
    if RECIPES.is_dir() and RECIPES.resolve() != recipes.folder().resolve():
        listed |= {str(path): path for path in sorted(RECIPES.rglob("*.yaml"))}
    found = []
    for name, path in listed.items():
        if pattern.lower() in name.lower():
            try:
                recipe = read_recipe(path)
            except UsageError as error:  # a half-written file must not hide the others
                found.append((name, f"unusable: {error}"))
                continue
            kind = "sweep of" if recipe.arms else "effvl"
            found.append((name, f"{kind} {recipe.command}: {recipe.description}"))
    return found


def env() -> None:
    """Show versions, device, processes and cache folder."""
    from effvl_cli import __version__
    from effvl_cli.cli.console import Console
    from effvl_cli.core.cache import default_root
    from effvl_cli.core.devices import resolve_device
    from effvl_cli.core.report import environment
    from effvl_cli.core.table import Table

    found = environment(resolve_device("auto"))
    rows: list[tuple[str, str]] = [("effvl", __version__), ("python", found["python"]), ("platform", found["platform"])]
    rows += [(name, version or "not installed") for name, version in found["packages"].items()]
    device = found["device"]
    rows.append(("device", f"{device['type']}: {device['name']}, {device['memory_bytes'] / 2**30:.1f} GiB"))
    rows.append(("threads", str(found["threads"])))
    rows.append(("processes", "{world_size}, {launcher}".format(**found["distributed"])))
    rows.append(("cache", str(default_root())))
    Console().print_table(Table("environment", ("", "value"), tuple(rows)))


def data(
    what: Annotated[Literal["check"], typer.Argument(help="What to do.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set, as in --data.")],
    data_root: Annotated[
        Path | None, typer.Option("--data-root", metavar="DIR", help="Folder that holds it (default: the current one).")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch it first if it is not there, where torchvision knows from where.")
    ] = False,
) -> None:
    """Show what is there of a data set and what is missing: data check NAME."""
    from effvl_cli.cli.console import Console
    from effvl_cli.data.check import check
    from effvl_cli.data.fetch import fetch_missing

    if download:
        fetch_missing(name, data_root, _echo)
    shown, wrong = check(name, data_root)
    Console().print_table(shown)
    if wrong:
        raise DataError(wrong[0])


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recipe with arms, seeds and claims.")],
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Run every N-th run, from the I-th on (counted from 0).")
    ] = "0/1",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the runs (default: runs/sweeps/NAME).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every run, print what is done and what is to do, and stop.")
    ] = False,
) -> None:
    """Run a file's arms for each of its seeds, one after the other; finished runs are not run again."""
    from effvl_cli.cli.console import Console
    from effvl_cli.cli.sweep_lines import check
    from effvl_cli.config import recipes
    from effvl_cli.core import sweep, sweep_check

    recipe, folder = sweep_check.checked(recipes.find(str(file)), out, check, _echo)
    if dry_run:
        Console().print_table(sweep.overview(recipe, folder, shard))
        return
    raise typer.Exit(sweep.run_sweep(recipe, folder, shard=shard, launch=_launch, echo=_echo))


def _echo(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _launch(arguments: list[str]) -> int:
    """Run one command line in its own process, which confines its memory and crashes; stop requests are passed on."""
    from effvl_cli.core import signals

    if signals.requested():
        return _stopped()
    process = subprocess.Popen([sys.executable, "-m", "effvl_cli", *arguments], env=os.environ)
    while True:
        try:
            return process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if signals.requested():
                # Never SIGINT: a terminal has sent that one to the run as well, and a second one ends it unsaved.
                process.terminate()
                code = process.wait()
                return code if code >= 0 else _stopped()  # it had saved, and was killed on its way out


def _stopped() -> int:
    from effvl_cli.core import signals

    return Interrupted.exit_code if signals.requested() == signal.SIGINT else Preempted.exit_code


def table(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, sweep folders or sweep files.")],
) -> None:
    """Show results side by side: mean and spread over seeds, published figures, claims as PASS or FAIL."""
    from effvl_cli.cli.console import Console
    from effvl_cli.config import recipes
    from effvl_cli.core import sweep_table
    from effvl_cli.core.files import file_or_folder

    known = recipes.names()
    runs = [run if file_or_folder(run) else known.get(str(run), run) for run in runs]
    for drawn in sweep_table.tabulate(runs):
        Console().print_table(drawn)
    for path in sweep_table.write_pages(runs):
        print(f"page {path}")


UTILITIES: dict[str, Callable[..., None]] = {"list": list_, "env": env, "data": data, "sweep": sweep, "table": table}
