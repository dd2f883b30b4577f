"""Checks all runs of a sweep before the first one is launched: a mistake in the last arm would else appear late."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from effvl_cli.config.recipe_file import Recipe
from effvl_cli.core import claims, sweep
from effvl_cli.core.errors import EffvlError, UsageError

OWN = {"seed": "give seeds: [0, 1]", "out": "give --out to the sweep", "name": "the arm's name is used"}
_NAME = re.compile(r"\w[\w.+=,@-]*")  # of an arm: part of a folder name

Planned = Mapping[str, Recipe | None]
"""Options of the earlier runs, by folder; None for one that was found faulty."""

Check = Callable[[sweep.Planned, Planned], Recipe]
"""Resolves the options of a run, given those of the runs before it, or raises the error in them."""


def checked(path: Path, out: Path | None, check: Check, echo: Callable[[str], None]) -> tuple[Recipe, Path]:
    """Read a sweep and check all of its runs; several faults are lines of `echo`, before the error that counts them.

    Raises:
        UsageError: not a sweep, or a faulty one.
    """
    recipe = sweep.read_sweep(path)
    folder = out or sweep.folder_of(path)
    found = faults(recipe, folder, check)
    if len(found) > 1:
        for fault in found:
            echo(f"  {fault}")
        raise UsageError(f"{path} has {len(found)} faults, see above", "Nothing was started")
    if found:
        raise UsageError(f"{path}, {found[0]}")
    return recipe, folder


def faults(recipe: Recipe, out: Path, check: Check) -> list[str]:
    """The faults of a sweep, each once; none: every run of it can start."""
    found = [*_arm_faults(recipe), *_seed_faults(recipe), *_claim_faults(recipe), *_picture_faults(recipe)]
    if found:
        return found  # the names of the runs are not reliable
    before: dict[str, Recipe | None] = {}
    for run in sweep.plan(recipe, out):
        before[str(run.folder)] = None
        links = _links(recipe, run, out)
        missing = next((link for link, folder in links.items() if folder not in before), None)
        if missing:
            found.append(f"arm {run.arm!r}: {missing}, which no run before it makes. Runs are {{out}}/ARM-seed{{seed}}")
        elif all(before[folder] for folder in links.values()):  # else that run's fault was reported
            try:
                before[str(run.folder)] = check(run, before)
            except EffvlError as error:
                found.append(f"arm {run.arm!r}: {error}")
    return list(dict.fromkeys(found))


def _arm_faults(recipe: Recipe) -> Iterator[str]:
    spoken: dict[str, str] = {}
    for arm, options in recipe.arms.items():
        if not _NAME.fullmatch(arm):
            yield f"arm {arm!r}: its name becomes part of a folder name. Use letters, digits and . _ + = , @ -"
        other = spoken.setdefault(claims.spoken(arm), arm)
        if other != arm:
            yield f"arm {arm!r}: claims write it {claims.spoken(arm)}, as they write {other!r}. Rename one"
        for key in OWN.keys() & sweep.options_of(recipe, options).keys():
            yield f"arm {arm!r} sets {key}, which the sweep decides: {OWN[key]}"


def _seed_faults(recipe: Recipe) -> Iterator[str]:
    for called, seeds in (("", recipe.seeds), *((f" of arm {arm!r}", own) for arm, own in recipe.arm_seeds.items())):
        if any(seed < 0 for seed in seeds):
            yield f"seeds{called} are {', '.join(map(str, seeds))}. A seed is at least 0"
        if len(set(seeds)) < len(seeds):
            yield f"seeds{called} are {', '.join(map(str, seeds))}. Give each seed once"


def _claim_faults(recipe: Recipe) -> Iterator[str]:
    for claim in recipe.claims:
        try:
            claims.arms_of(claim, recipe.arms)
        except UsageError as error:
            yield str(error)


def _picture_faults(recipe: Recipe) -> Iterator[str]:
    for name, words in recipe.pictures.items():
        from effvl_cli.core import sweep_pictures  # which imports torch

        try:
            sweep_pictures.check(recipe, name, words)
        except UsageError as error:
            yield str(error)


def _links(recipe: Recipe, run: sweep.Planned, out: Path) -> dict[str, str]:
    """What an arm takes from `{out}`, in words such as "run is {out}/a-seed0", to the folder of that run."""
    taken = {}
    for key, value in sweep.options_of(recipe, recipe.arms[run.arm]).items():
        if value.startswith("{out}/"):
            place = value.removeprefix("{out}/").replace("{seed}", str(run.seed))
            taken[f"{key} is {value}"] = str(out / place.partition("/")[0])
    return taken
