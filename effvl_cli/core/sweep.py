"""Sweeps: a recipe's arms times its seeds, one run folder each, resumable because each run is."""

import contextlib
import itertools
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.config.recipe_file import Recipe, read_recipe
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.files import file_or_folder, write_text
from effvl_cli.core.table import Table

FILE = "sweep.yaml"  # copy of the sweep in its folder, so that the folder alone is enough for a table
CONFIG, REPORT = "config.yaml", "report.json"
STOPPED = (75, 130)


@dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    arm: str
    seed: int
    folder: Path
    arguments: list[str]


def read_sweep(path: Path) -> Recipe:
    """Read a sweep file, or the one in a sweep's folder.

    Raises:
        UsageError: not a sweep.
    """
    recipe = read_recipe(path / FILE if file_or_folder(path) == "folder" else path)
    if not recipe.arms:
        raise UsageError(f"{path} has no arms", "A sweep holds e.g. arms: {base: {}, half: {keep: 0.5}}")
    return recipe


def folder_of(path: Path) -> Path:
    """Folder of a sweep's runs: `path` if it is one, the folder of a copied sweep file, else runs/sweeps/KIND/NAME.

    KIND is the folder of a recipe below `recipes/`: a miniature and a table of one name are two sweeps.
    """
    if file_or_folder(path) == "folder":
        return path
    if path.name == FILE:
        return path.parent
    kind = path.parent.name if path.parent.parent.name == "recipes" else ""
    return Path("runs", "sweeps", kind, path.stem)


def plan(recipe: Recipe, out: Path) -> list[Planned]:
    """The runs in the order of the file: seed by seed, arm by arm. An arm's own `seeds` replace the sweep's.

    `{out}` and `{seed}` in an option stand for the sweep's folder and the seed, so that an arm can start from what an
    earlier arm of the same seed left: `weights: "{out}/train-seed{seed}"`. An arm's own `command` replaces the sweep's.
    """
    runs = []
    seeds = {arm: recipe.arm_seeds.get(arm, recipe.seeds or (0,)) for arm in recipe.arms}
    for seed in dict.fromkeys(itertools.chain(*seeds.values())):
        for arm, overrides in recipe.arms.items():
            if seed not in seeds[arm]:
                continue
            folder = out / f"{arm}-seed{seed}"
            options = options_of(recipe, overrides)
            words = str(options.pop("command", recipe.command)).split()
            for key, value in options.items():
                words += _flag(key, value.replace("{out}", str(out)).replace("{seed}", str(seed)))
            runs.append(Planned(arm, seed, folder, [*words, "--seed", str(seed), "--out", str(folder)]))
    return runs


def options_of(recipe: Recipe, overrides: Mapping[str, str]) -> dict[str, str]:
    """Options of an arm; one with a command of its own shares none with the sweep."""
    return {**(recipe.config if "command" not in overrides else {}), **overrides}


def _flag(key: str, value: str) -> list[str]:
    if key == "run":
        return [value]
    if value.lower() in ("true", "false"):
        return [f"--{key}" if value.lower() == "true" else f"--no-{key}"]
    return [f"--{key}={value}"]


def share(recipe: Recipe, out: Path, shard: str) -> list[Planned]:
    """The runs of one shard, "i/n": every n-th from the i-th on; where arms build on others, every n-th seed.

    An arm that names the folder of a particular seed ties all seeds together: the first shard then has them all.

    Raises:
        UsageError: not a valid shard.
    """
    first, count = parse_shard(shard)
    runs = plan(recipe, out)
    values = (value for arm in recipe.arms.values() for value in options_of(recipe, arm).values())
    links = [value for value in values if "{out}" in value]
    if not links:
        return runs[first::count]
    if not all("{seed}" in link for link in links):
        return runs if first == 0 else []
    seeds = list(dict.fromkeys(run.seed for run in runs))[first::count]
    return [run for run in runs if run.seed in seeds]


# --- running ---------------------------------------------------------------------------------------------------------


def run_sweep(
    recipe: Recipe, folder: Path, *, shard: str, launch: Callable[[list[str]], int], echo: Callable[[str], None]
) -> int:
    """Run what is not yet completed.

    Args:
        recipe: the sweep, see `sweep_check.checked`.
        folder: of its runs.
        shard: "i/n", see `share`.
        launch: runs one command line and returns its exit code.
        echo: where progress goes.

    Returns:
        0, the code of a run that was asked to stop (which stops the sweep), or the first failure's.

    Raises:
        UsageError: not a valid shard.
    """
    runs = share(recipe, folder, shard)
    write_text(folder / FILE, Path(recipe.path).read_text(encoding="utf-8"))
    failed = 0
    for number, run in enumerate(runs, 1):
        echo(f"[{number}/{len(runs)}] {run.arm}, seed {run.seed}: effvl {shlex.join(run.arguments)}")
        if is_completed(run):
            echo("  completed before")
            continue
        code = launch([*run.arguments])
        if code in STOPPED:
            return code
        if code:
            echo(f"  failed with code {code}; the others continue")
            failed = failed or code
    echo(f"table: effvl table {folder}")
    return failed


def is_completed(run: Planned) -> bool:
    """Whether the folder holds this very run, completed.

    That is: by this command line, and after the files that its options name were last written. Anything else is
    launched; the command itself decides whether its stored result still holds, and refuses a folder of other options.
    """
    report = run.folder / REPORT
    if not report.is_file():
        return False
    from effvl_cli.core.report import read_report

    with contextlib.suppress(ModelError, UsageError):
        if read_report(report).status != "completed":
            return False
        line = read_recipe(run.folder / CONFIG).run.get("command_line")
        return line == shlex.join(["effvl", *run.arguments]) and not _newer(run.arguments, report)
    return False


def _newer(arguments: list[str], report: Path) -> bool:
    """Whether a file, or the report of a run folder, among the arguments was written after `report`."""
    values = [word.partition("=")[2] if word.startswith("--") else word for word in arguments[:-1]]  # last: --out
    named = [Path(value) for value in values if value]
    files = [path / REPORT if path.is_dir() else path for path in named]
    return any(file.is_file() and file.stat().st_mtime > report.stat().st_mtime for file in files)


def parse_shard(text: str, flag: str = "--shard") -> tuple[int, int]:
    """Split "i/n" into (i, n).

    Raises:
        UsageError: not of that form, or i is not below n.
    """
    try:
        first, count = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise UsageError(f"{flag} is {text}", "Write i/n, e.g. 0/4") from error
    if not 0 <= first < count:
        raise UsageError(f"{flag} is {text}", f"i is 0 to {max(0, count - 1)}")
    return first, count


def overview(recipe: Recipe, out: Path, shard: str) -> Table:
    """The runs of a shard, whether they are done, and their command lines."""
    rows = [(run.arm, run.seed, _state(run), f"effvl {shlex.join(run.arguments)}") for run in share(recipe, out, shard)]
    done = sum(row[2] == "done" for row in rows)
    return Table(f"{len(rows)} runs, {done} done", ("arm", "seed", "state", "command"), tuple(rows))


def _state(run: Planned) -> str:
    if is_completed(run):
        return "done"
    if not (run.folder / CONFIG).is_file():
        return "to do"
    if not (run.folder / REPORT).is_file():
        return "begun"
    from effvl_cli.core.report import read_report

    with contextlib.suppress(ModelError):
        status = read_report(run.folder / REPORT).status
        return "of other options or inputs" if status == "completed" else status
    return "begun"
