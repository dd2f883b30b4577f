"""Every run of a sweep is checked before the first one is launched: a slip in the last arm would show after hours."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from effvl_cli.config.resolve import Recipe
from effvl_cli.core import claims, sweep
from effvl_cli.core.errors import EffvlError, UsageError

OWN = {"seed": "give seeds: [0, 1]", "out": "the sweep has --out", "name": "the arm's name is the run's"}
_NAME = re.compile(r"\w[\w.+=,@-]*")  # of an arm, which is part of a folder's name

Planned = Mapping[str, Recipe | None]
"""Options of the runs before one, by folder; None of one that has been found faulty."""

Check = Callable[[sweep.Planned, Planned], Recipe]
"""Resolves the options of a run, given those of the runs before it, or raises what is wrong with them."""


def checked(path: Path, out: Path | None, check: Check, echo: Callable[[str], None]) -> tuple[Recipe, Path]:
    """Read a sweep and check all of its runs; several faults are lines of `echo`, before the error that counts them.

    Raises:
        UsageError: no sweep, or one that is faulty.
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
    """What is wrong with a sweep, each fault once; none: every run of it can start."""
    found = [*_arm_faults(recipe), *_seed_faults(recipe), *_claim_faults(recipe), *_picture_faults(recipe)]
    if found:
        return found  # the names of the runs cannot be relied on
    before: dict[str, Recipe | None] = {}
    for run in sweep.plan(recipe, out):
        before[str(run.folder)] = None
        links = _links(recipe, run, out)
        missing = next((link for link, folder in links.items() if folder not in before), None)
        if missing:
            found.append(f"arm {run.arm!r}: {missing}, which no run before it makes. Runs are {{out}}/ARM-seed{{seed}}")
        elif all(before[folder] for folder in links.values()):  # else the fault of that one has been said
            try:
                before[str(run.folder)] = check(run, before)
            except EffvlError as error:
                found.append(f"arm {run.arm!r}: {error}")
    return list(dict.fromkeys(found))


def _arm_faults(recipe: Recipe) -> Iterator[str]:
    spoken: dict[str, str] = {}
    for arm, options in recipe.arms.items():
        if not _NAME.fullmatch(arm):
            yield f"arm {arm!r}: its name is part of a folder's. Use letters, digits and . _ + = , @ -"
        other = spoken.setdefault(claims.spoken(arm), arm)
        if other != arm:
            yield f"arm {arm!r}: claims write it {claims.spoken(arm)}, as they write {other!r}. Rename one"
        for key in OWN.keys() & sweep.options_of(recipe, options).keys():
            yield f"arm {arm!r} has its own {key}, which is the sweep's to give: {OWN[key]}"


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
        from effvl_cli.core import sweep_pictures  # and torch with it

        try:
            sweep_pictures.check(recipe, name, words)
        except UsageError as error:
            yield str(error)


def _links(recipe: Recipe, run: sweep.Planned, out: Path) -> dict[str, str]:
    """What an arm takes from `{out}`, as words such as "run is {out}/a-seed0", and the folder of the run it is in."""
    taken = {}
    for key, value in sweep.options_of(recipe, recipe.arms[run.arm]).items():
        if value.startswith("{out}/"):
            place = value.removeprefix("{out}/").replace("{seed}", str(run.seed))
            taken[f"{key} is {value}"] = str(out / place.partition("/")[0])
    return taken
