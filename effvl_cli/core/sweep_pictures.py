"""Pictures of a sweep: one figure of its arms against another, as its `pictures` say.

`pictures: {NAME: {x: FIGURE, y: FIGURE, title: .., xlabel: .., ylabel: ..}}`. A figure is a metric, or the dotted path
of a number in the report's `technique`. Arms whose names differ only in a final number (none, none-2, none-3) are one
line.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effvl_cli.config.recipe_file import Recipe
from effvl_cli.core import plots, records
from effvl_cli.core.claims import mean_and_error
from effvl_cli.core.errors import UsageError
from effvl_cli.core.report import Report
from effvl_cli.core.sweep import Planned

_LAST_NUMBER = re.compile(r"-[0-9.]+$")
_NEEDED, _WORDS = ("x", "y"), ("title", "xlabel", "ylabel")


def draw(recipe: Recipe, reports: Mapping[str, Mapping[int, Report]], folder: Path) -> list[Path]:
    """Draw all of them from the completed runs.

    Args:
        recipe: the sweep.
        reports: by arm and seed.
        folder: where the PNGs go.

    Raises:
        UsageError: a picture with a missing or unknown key.
    """
    drawn = []
    for name, words in recipe.pictures.items():
        check(recipe, name, words)
        series: dict[str, list[plots.Point]] = {}
        for arm, by_seed in reports.items():
            point = _point(list(by_seed.values()), words["x"], words["y"])
            if point:
                series.setdefault(_LAST_NUMBER.sub("", arm), []).append(point)
        if series:
            path = folder / f"{name}.png"
            plots.curves(
                path,
                series,
                title=words.get("title", recipe.description),
                xlabel=words.get("xlabel", words["x"]),
                ylabel=words.get("ylabel", words["y"]),
            )
            drawn.append(path)
    return drawn


def draw_training(runs: Sequence[Planned], folder: Path) -> list[Path]:
    """Each evaluated figure over the steps of the training, a line for each arm, with the standard error over seeds."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for run in runs:
        for record in records.read(run.folder / records.RECORDS):
            if record["event"] == "eval":
                arm = run.arm if record["phase"] == "train" else f"{run.arm}, {record['phase']}"
                for name, value in record.items():
                    if isinstance(value, float):
                        steps = found.setdefault(name, {}).setdefault(arm, {})
                        steps.setdefault(record["step"], []).append(value)
    drawn = []
    for name, arms in found.items():
        series = {arm: _means(steps) for arm, steps in arms.items() if len(steps) > 1}
        if series:
            path = folder / f"training_{name}.png"
            plots.curves(path, series, title=f"{name} while training", xlabel="step", ylabel=name)
            drawn.append(path)
    return drawn


def _means(steps: Mapping[int, list[float]]) -> list[plots.Point]:
    pairs = [(step, *mean_and_error(values)) for step, values in sorted(steps.items())]
    return [(float(step), mean, error or 0.0) for step, mean, error in pairs]


def check(recipe: Recipe, name: str, words: Mapping[str, str]) -> None:
    """Check that a picture has all the keys it needs, and no unknown ones.

    Raises:
        UsageError: a key is missing or unknown.
    """
    unknown = set(words) - {*_NEEDED, *_WORDS}
    if unknown or not set(_NEEDED) <= set(words):
        what = f"has the unknown key {min(unknown)!r}" if unknown else "lacks x or y"
        raise UsageError(f"picture {name!r} in {recipe.path} {what}", f"Its keys are {', '.join(_NEEDED + _WORDS)}")


def _point(reports: list[Report], x: str, y: str) -> plots.Point | None:
    """Means over seeds and the standard error of y; None where the arm has no such figures."""
    found = [(_figure(report, x), _figure(report, y)) for report in reports]
    pairs = [(a, b) for a, b in found if a is not None and b is not None]
    if not pairs:
        return None
    mean, error = mean_and_error([b for _, b in pairs])
    return sum(a for a, _ in pairs) / len(pairs), mean, error or 0.0


def _figure(report: Report, name: str) -> float | None:
    if name in report.metrics:
        return report.metrics[name].value
    value: Any = report.technique
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return float(value) if isinstance(value, (int, float)) else None
