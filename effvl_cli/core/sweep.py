"""Sweeps: a recipe's arms times its seeds, one run folder each, resumable because each run is."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.config.resolve import Recipe, read_recipe
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.files import write_text

FILE = "sweep.yaml"  # copy of the sweep in its folder, so that the folder alone can be tabulated
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
        UsageError: no sweep.
    """
    recipe = read_recipe(path / FILE if path.is_dir() else path)
    if not recipe.arms:
        raise UsageError(f"{path} has no arms", "A sweep holds e.g. arms: {base: {}, half: {keep: 0.5}}")
    return recipe


def plan(recipe: Recipe, out: Path) -> list[Planned]:
    """The runs in the order of the file: seed by seed, arm by arm.

    `{out}` and `{seed}` in an option stand for the sweep's folder and the seed, so that an arm can start from what an
    earlier arm of the same seed left: `weights: "{out}/train-seed{seed}"`. An arm's own `command` replaces the sweep's.
    """
    runs = []
    for seed in recipe.seeds or (0,):
        for arm, overrides in recipe.arms.items():
            folder = out / f"{arm}-seed{seed}"
            options = {**(recipe.config if "command" not in overrides else {}), **overrides}
            words = str(options.pop("command", recipe.command)).split()
            for key, value in options.items():
                words += _flag(key, value.replace("{out}", str(out)).replace("{seed}", str(seed)))
            runs.append(Planned(arm, seed, folder, [*words, "--seed", str(seed), "--out", str(folder)]))
    return runs


def _flag(key: str, value: str) -> list[str]:
    if key == "run":
        return [value]
    if value.lower() in ("true", "false"):
        return [f"--{key}" if value.lower() == "true" else f"--no-{key}"]
    return [f"--{key}={value}"]


def run_sweep(
    path: Path, *, shard: str, out: Path | None, launch: Callable[[list[str]], int], echo: Callable[[str], None]
) -> int:
    """Run what is not completed yet.

    Args:
        path: sweep file.
        shard: "i/n": every n-th run from the i-th on.
        out: folder of the runs.
        launch: runs one command line and returns its exit code.
        echo: where progress goes.

    Returns:
        0, the code of a run that was asked to stop (which stops the sweep), or the first failure's.

    Raises:
        UsageError: no sweep, or a shard that is none.
    """
    recipe = read_sweep(path)
    folder = out or Path("runs") / "sweeps" / path.stem
    first, count = _shard(shard)
    write_text(folder / FILE, path.read_text(encoding="utf-8"))
    runs = plan(recipe, folder)[first::count]
    failed = 0
    for number, run in enumerate(runs, 1):
        echo(f"[{number}/{len(runs)}] {run.arm}, seed {run.seed}: effvl {' '.join(run.arguments)}")
        if is_completed(run.folder):
            echo("  completed before")
            continue
        code = launch([*run.arguments])
        if code in STOPPED:
            return code
        if code:
            echo(f"  failed with code {code}; the others go on")
            failed = failed or code
    echo(f"table: effvl table {folder}")
    return failed


def is_completed(folder: Path) -> bool:
    """Whether a run folder holds a completed report."""
    from effvl_cli.core.report import read_report

    with contextlib.suppress(ModelError):
        return read_report(folder / "report.json").status == "completed"
    return False


def _shard(text: str) -> tuple[int, int]:
    try:
        first, count = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise UsageError(f"--shard is {text}", "Write i/n, e.g. 0/4") from error
    if not 0 <= first < count:
        raise UsageError(f"--shard is {text}", f"i is 0 to {max(0, count - 1)}")
    return first, count
