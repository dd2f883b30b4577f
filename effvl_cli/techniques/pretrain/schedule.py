"""Compression over training: stages of patch size and keep rates, and the clock that turns a budget into steps.

The stage, the learning rate and every other schedule follow t, the share of the budget that is spent, because steps of
different stages cost differently. A step's cost is known beforehand, so t is a pure function of the step and nothing
has to be stored to resume.

Stages that compress less as training goes on: arXiv 2410.22364; that all else follows t is ours.
"""

import bisect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Unit = Literal["budget_fraction", "steps"]
_ROUNDING = 1e-9  # in steps: 3.0000000001 steps are three
APART = 0.01
"""Share of the budget between training states that are averaged."""


@dataclass(frozen=True)
class Compression:
    """How the views of a step are compressed.

    Attributes:
        patch: side of the patches of all views, px.
        keep_q: share of the patch tokens that the query (student) view keeps.
        keep_k: the same for the key (teacher) view.
    """

    patch: int
    keep_q: float = 1.0
    keep_k: float = 1.0


@dataclass(frozen=True)
class Stage:
    """A compression until a share of the budget (or a step) is reached."""

    until: float
    compression: Compression


@dataclass(frozen=True)
class Schedule:
    """Stages in order; the last one ends the training."""

    stages: tuple[Stage, ...]
    unit: Unit = "budget_fraction"

    @classmethod
    def constant(cls, compression: Compression) -> "Schedule":
        """One stage."""
        return cls((Stage(1.0, compression),))


_STAGE_KEYS = {"until", "patch", "keep_q", "keep_k"}
_KEYS = {"version", "method", "base", "unit", "stages", "provenance"}


def schedule_from(
    data: Mapping[str, Any], *, default_keep_k: float | None = None, patch: int | None = None
) -> Schedule:
    """Read the mapping of a schedule file; numbers may be strings.

    Patches are px of the network that `base` names. For another one they are scaled, so that a stage has the same share
    of the patches, which is about its share of the cost.

    Args:
        data: {version: 1, base: {patch, ..}, unit: budget_fraction | steps, stages: [{until, patch, keep_q, keep_k},
            ..], ..}.
        default_keep_k: where a stage has no keep_k; None: its keep_q.
        patch: side of the patches without compression, px; None: patches are as written.

    Raises:
        ValueError: the fault, with the stage's index and the field.
    """
    if not isinstance(data, Mapping):
        raise ValueError("it is not a mapping; write e.g. stages: [{until: 1, patch: 8}]")
    unknown = set(data) - _KEYS
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(_KEYS))}")
    if str(data.get("version", "1")) != "1":
        raise ValueError(f"version is {data['version']!r}, this program reads 1")
    unit = data.get("unit", "budget_fraction")
    if unit not in ("budget_fraction", "steps"):
        raise ValueError(f"unit is {unit!r}; give budget_fraction or steps")
    rows = data.get("stages")
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise ValueError("stages is empty; give a list of {until, patch, keep_q, keep_k}")
    stages = tuple(_stage(index, row, default_keep_k) for index, row in enumerate(rows))
    _check_ends(stages, unit)
    return Schedule(_scaled(stages, data.get("base"), patch), unit)


def _scaled(stages: tuple[Stage, ...], base: Any, patch: int | None) -> tuple[Stage, ...]:
    """Stages for a network of another patch size than the one that they were written for."""
    if base is None or patch is None:
        return stages
    if not isinstance(base, Mapping) or "patch" not in base:
        raise ValueError(f"base is {base!r}; give {{image_size, patch}}")
    written = _number("base", base, "patch")
    if written <= 0:
        raise ValueError(f"base: patch is {base['patch']}; give a whole number of px from 1 on")
    found = []
    for index, stage in enumerate(stages):
        side = stage.compression.patch * patch / written
        if side != int(side):
            raise ValueError(
                f"stage {index}: patch {stage.compression.patch} of patches of {written:g} px is {side:g} px "
                f"for this network of {patch} px; write a whole number and leave base out"
            )
        found.append(replace(stage, compression=replace(stage.compression, patch=int(side))))
    return tuple(found)


def _stage(index: int, row: Any, default_keep_k: float | None) -> Stage:
    if not isinstance(row, Mapping):
        raise ValueError(f"stage {index} is {row!r}; give {{until, patch, keep_q, keep_k}}")
    unknown = set(row) - _STAGE_KEYS
    if unknown:
        raise ValueError(f"stage {index}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(_STAGE_KEYS))}")
    missing = [key for key in ("until", "patch") if key not in row]
    if missing:
        raise ValueError(f"stage {index}: {missing[0]} is missing")
    patch = _number(f"stage {index}", row, "patch")
    if patch < 1 or patch != int(patch):
        raise ValueError(f"stage {index}: patch is {row['patch']}; give a whole number of px from 1 on")
    keep_q = _keep(index, row, "keep_q", 1.0)
    keep_k = _keep(index, row, "keep_k", keep_q if default_keep_k is None else default_keep_k)
    return Stage(_number(f"stage {index}", row, "until"), Compression(int(patch), keep_q, keep_k))


def _number(where: str, row: Mapping[str, Any], key: str) -> float:
    try:
        number = float(row[key])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {key} is {row[key]!r}, which is not a number") from error
    if not math.isfinite(number):
        raise ValueError(f"{where}: {key} is {row[key]}, which is not finite")
    return number


def _keep(index: int, row: Mapping[str, Any], key: str, default: float) -> float:
    keep = _number(f"stage {index}", row, key) if key in row else default
    if not 0 < keep <= 1:
        raise ValueError(f"stage {index}: {key} is {keep}; give a share above 0 and up to 1")
    return keep


def _check_ends(stages: Sequence[Stage], unit: str) -> None:
    before = 0.0
    for index, stage in enumerate(stages):
        if not stage.until > before:
            raise ValueError(f"stage {index}: until is {stage.until:g}, not above {before:g}; the ends must rise")
        before = stage.until
    if unit == "budget_fraction" and before != 1.0:
        raise ValueError(f"stage {len(stages) - 1}: until is {before:g}; the last stage ends at 1")
    if unit == "steps" and any(stage.until != int(stage.until) for stage in stages):
        raise ValueError("until counts steps here; give whole numbers")


_WRITTEN = re.compile(r"\s*(constant|[0-9.]+(e[+-]?[0-9]+)?%?)\s*:", re.IGNORECASE)
_WORDS = {"patch": "patch", "keep": "keep_q", "keep-k": "keep_k"}


def is_written(text: str) -> bool:
    """Whether a text is a schedule itself, such as `0.3:patch=8,keep=0.5;1:keep=1`, and not the name of a file."""
    return _WRITTEN.match(text) is not None


def stages_from(text: str, *, patch: int) -> list[dict[str, str]]:
    """Rows for `schedule_from` of a schedule that is written in one line.

    Args:
        text: stages "END:WORDS" with `;` between them; END is `constant`, or a share or percentage of the budget, and
            WORDS are `patch=`, `keep=` and `keep-k=` with commas between them. Blanks and a trailing `;` are ignored.
        patch: for stages that name none.

    Raises:
        ValueError: the fault, with the stage's index.
    """
    rows = []
    for index, part in enumerate(text.strip().rstrip(";").split(";")):
        end, colon, words = (word.strip() for word in part.partition(":"))
        if not colon:
            raise ValueError(f"stage {index}: cannot read {part!r}; write e.g. 0.5:patch=8,keep=0.5")
        row = {"until": _end(end), "patch": str(patch)}
        given: set[str] = set()
        for word in filter(None, (word.strip() for word in words.split(","))):
            key, value = (side.strip() for side in (*word.split("=", 1), "")[:2])
            if key not in _WORDS or not value:
                raise ValueError(f"stage {index}: cannot read {word!r}; write e.g. patch=8,keep=0.5,keep-k=1")
            if key in given:
                raise ValueError(f"stage {index}: {key} is given twice")
            given.add(key)
            row[_WORDS[key]] = value
        rows.append(row)
    return rows


def _end(text: str) -> str:
    """A stage's end as a share: "constant" is 1, "50%" is 0.5."""
    if text.lower() == "constant":
        return "1"
    if not text.endswith("%"):
        return text
    try:
        return repr(float(text[:-1]) / 100)
    except ValueError:
        return text


def schedule_to(schedule: Schedule, base: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The mapping that `schedule_from` reads; `base` are image_size and patch of the network that it is for."""
    rows = [
        {
            "until": stage.until,
            "patch": stage.compression.patch,
            "keep_q": stage.compression.keep_q,
            "keep_k": stage.compression.keep_k,
        }
        for stage in schedule.stages
    ]
    return {"version": 1, **({"base": dict(base)} if base else {}), "unit": schedule.unit, "stages": rows}


def snapped_size(image_size: int, patch: int) -> int:
    """The multiple of the patch nearest to the view size, at least one patch."""
    return patch * max(1, math.floor(image_size / patch + 0.5))


def near_divisors(image_size: int, patch: int) -> list[int]:
    """Divisors of the view size around a patch that does not divide it: two below, two above."""
    divisors = [d for d in range(1, image_size + 1) if image_size % d == 0]
    return [d for d in divisors if d < patch][-2:] + [d for d in divisors if d > patch][:2]


@dataclass(frozen=True)
class ClockStage:
    """A stage laid out in steps."""

    index: int
    compression: Compression
    first: int
    steps: int
    units_per_step: float
    spent_before: float


class Clock:
    """Steps of a run: stage and t of each, for a budget.

    A step belongs to the first stage with t < until, where t is the share of the budget spent before it. So the units
    spent exceed the budget by less than one step, and a stage shorter than a step may not occur at all (`skipped`).

    Args:
        schedule: stages.
        units_per_step: cost of a step in each stage.
        budget: units to spend; None for a schedule in steps, which ends by itself.
        start: share of the budget that is spent before the first step.
    """

    def __init__(
        self, schedule: Schedule, units_per_step: Sequence[float], budget: float | None, *, start: float = 0.0
    ) -> None:
        self.stages: list[ClockStage] = []
        self.skipped: list[int] = []
        step, spent = 0, start * (budget or 0.0)
        for index, (stage, cost) in enumerate(zip(schedule.stages, units_per_step, strict=True)):
            if schedule.unit == "steps":
                count = int(stage.until) - step
            else:
                if budget is None:
                    raise ValueError("a schedule in shares of the budget needs a budget")
                count = max(0, math.ceil((stage.until * budget - spent) / cost - _ROUNDING))
            if count:
                self.stages.append(ClockStage(index, stage.compression, step, count, cost, spent))
            else:
                self.skipped.append(index)
            step, spent = step + count, spent + count * cost
        self.steps, self.units = step, spent
        self.budget = spent if budget is None else budget

    def stage(self, step: int) -> ClockStage:
        """The stage of a step; the last one for a step beyond the end."""
        return self.stages[bisect.bisect_right(self.stages, step, key=lambda stage: stage.first) - 1]

    def spent(self, step: int) -> float:
        """Units spent before a step."""
        if step >= self.steps:
            return self.units
        stage = self.stage(step)
        return stage.spent_before + (step - stage.first) * stage.units_per_step

    def t(self, step: int) -> float:
        """Share of the budget spent before a step, at most 1."""
        return min(1.0, self.spent(step) / self.budget)

    def step_at(self, t: float) -> int:
        """The first step before which a share t of the budget is spent."""
        low, high = 0, self.steps
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.t(middle) < t - _ROUNDING else (low, middle)
        return low

    def neighbours(self, t: float, count: int) -> list[int]:
        """The step at a share t and those up to `count` - 1 times `APART` earlier, the latest first.

        Where a step costs more than that, they are one step apart. There are fewer at the very beginning, and none
        where the clock ends before t.
        """
        if self.t(self.steps) < t - _ROUNDING:
            return []
        found = [self.step_at(t)]
        for back in range(1, count):
            found.append(min(found[-1] - 1, self.step_at(t - back * APART)))
        return [step for step in found if step >= 0]


def default_schedule(patch: int, keep_k: float) -> Schedule:
    """A quarter of the patches until t = 0.8, then all of them: it fits every ViT.

    Args:
        patch: side of all patches, px.
        keep_k: keep rate of the key view until then.
    """
    return Schedule((Stage(0.8, Compression(patch, 0.25, keep_k)), Stage(1.0, Compression(patch))))
