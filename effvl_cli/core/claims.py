"""Claims of a sweep: expressions over arms and metrics, e.g. `tuned.top1 - dense.top1 >= -0.015`.

Names are `arm.metric`, or `arm.metric.se` for a figure's own standard error; dashes and dots in the name of an arm are
written `_`. Numbers, + - * / and parentheses; `mean(...)` and `se(...)`, the mean and its standard error over all seeds
of what is in it; one comparison. It is computed for each seed that all arms outside of these have, and its margin
averaged over them. A claim about a figure without a value fails.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from effvl_cli.core.errors import UsageError
from effvl_cli.core.registry import nearest

Figures = Mapping[str, Mapping[str, float]]
"""Arm, then metric (or metric.se), to its value in one seed; NaN where the run has none."""

_BINARY: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARE: dict[type, int] = {ast.GtE: 1, ast.Gt: 1, ast.LtE: -1, ast.Lt: -1}
LONGEST, DEEPEST = 5000, 100  # characters of a claim, and depth of nested expressions: a sum of 100 terms
ROUNDING = 1e-12  # 0.95 - 0.90 >= 0.05 holds, though not in binary


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim.

    Attributes:
        claim: its text.
        margin: by how much the inequality holds, mean over seeds; negative: by how much it fails.
        se: standard error of that mean; None with a single seed.
        seeds: how many; 0 where no seed has all arms.
        passed: whether the mean is on the right side.
    """

    claim: str
    margin: float
    se: float | None
    seeds: int
    passed: bool


def judge(claim: str, by_seed: Mapping[int, Figures]) -> Verdict:
    """Evaluate a claim over the seeds.

    Raises:
        UsageError: not a valid claim, or a name that no run has.
    """
    comparison = _parse(claim)
    kind = comparison.ops[0]
    sign = _COMPARE[type(kind)]
    everything = list(by_seed.values())
    seeds = _complete(comparison, everything, claim)
    left, right = (_values(side, seeds, everything, claim) for side in (comparison.left, comparison.comparators[0]))
    margins = [sign * (a - b) for a, b in zip(left, right, strict=True)]
    mean, spread = mean_and_error(margins)
    strict = isinstance(kind, ast.Gt | ast.Lt)
    return Verdict(claim, mean, spread, len(margins), mean > ROUNDING if strict else mean >= -ROUNDING)


def arms_of(claim: str, arms: Iterable[str]) -> list[str]:
    """The arms that a claim names, as the sweep spells them.

    Raises:
        UsageError: not a valid claim, or an arm that is not one of these.
    """
    comparison = _parse(claim)
    for side in (comparison.left, comparison.comparators[0]):
        _values(side, (), (), claim)
    known = {spoken(arm): arm for arm in arms}
    found = []
    for node in ast.walk(comparison):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.append(known[_known(node.value.id, known, "arm", claim)])
    return list(dict.fromkeys(found))


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and its standard error (sample standard deviation / sqrt(n)); None for a single value."""
    if len(values) < 2:
        return values[0] if values else math.nan, None
    if len(set(values)) == 1:  # rounding of their sum is not spread
        return values[0], 0.0
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) * (v - mean) for v in values) / (len(values) - 1) / len(values))


def _parse(claim: str) -> ast.Compare:
    shown = repr(claim if len(claim) <= 60 else f"{claim[:60]}...")
    if len(claim) > LONGEST:
        raise UsageError(f"claim {shown} has {len(claim)} characters, more than {LONGEST}", "Split it")
    try:
        tree = ast.parse(claim.strip(), mode="eval").body
    except SyntaxError as error:
        raise UsageError(f"claim {shown} cannot be read: {error.msg}", "Write e.g. a.top1 - b.top1 >= 0.05") from error
    except (ValueError, RecursionError, MemoryError) as error:  # half a character; thousands of signs
        raise UsageError(f"claim {shown} cannot be read", "Write e.g. a.top1 - b.top1 >= 0.05") from error
    if _depth(tree) > DEEPEST:
        raise UsageError(f"claim {shown} nests more than {DEEPEST} expressions", "Split it")
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or type(tree.ops[0]) not in _COMPARE:
        raise UsageError(f"claim {claim!r} is not a single comparison", "Use one of >= > <= <")
    return tree


def _depth(tree: ast.AST) -> int:
    """How deeply expressions are nested; counted level by level, since recursion would fail on a deep one."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    return depth


def _complete(node: ast.AST, everything: Sequence[Figures], claim: str) -> list[Figures]:
    """The seeds that have all arms outside of functions; one, where there are none."""
    arms = {spoken(arm): arm for figures in everything for arm in figures}
    needed = {arms[_known(name, arms, "arm", claim)] for name in _names(node)} if everything else set()
    return [figures for figures in everything if needed <= figures.keys()][: None if needed else 1]


def _names(node: ast.AST) -> Iterator[str]:
    """Arms in an expression, as written, outside of functions."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield node.value.id
    elif not isinstance(node, ast.Call):
        for child in ast.iter_child_nodes(node):
            yield from _names(child)


def _values(node: ast.expr, seeds: Sequence[Figures], everything: Sequence[Figures], claim: str) -> list[float]:
    """The value of an expression in each of `seeds`; functions run over all seeds."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return [_number(number, claim)] * len(seeds)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return [-value for value in _values(operand, seeds, everything, claim)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            pairs = zip(*(_values(side, seeds, everything, claim) for side in (left, right)), strict=True)
            return [_apply(_BINARY[type(op)], a, b) for a, b in pairs]
        case ast.Call(func=ast.Name(id="mean" | "se" as function), args=[inner], keywords=[]):
            mean, error = mean_and_error(_values(inner, _complete(inner, everything, claim), everything, claim))
            spread = math.nan if error is None else error  # one seed says nothing about the spread
            return [mean if function == "mean" else spread] * len(seeds)
        case ast.Attribute():
            arm, _, metric = ast.unparse(node).partition(".")
            return [_look_up(arm, metric, figures, claim) for figures in seeds]
    raise UsageError(
        f"claim {claim!r} holds {ast.unparse(node)!r}",
        "Only arm.metric, numbers, + - * /, mean(...), se(...) and parentheses",
    )


def _number(number: float, claim: str) -> float:
    try:
        return float(number)
    except OverflowError as error:
        raise UsageError(
            f"claim {claim[:60]!r} holds a number of more than 300 digits", "Figures are smaller"
        ) from error


def _apply(function: Callable[[float, float], float], a: float, b: float) -> float:
    try:
        return function(a, b)
    except ZeroDivisionError:
        return math.nan


def _look_up(arm: str, metric: str, figures: Figures, claim: str) -> float:
    arms = {spoken(name): values for name, values in figures.items()}
    found = arms[_known(arm, arms, "arm", claim)]
    return found[_known(metric, found, "figure", claim)]


def _known(name: str, known: Mapping[str, object], kind: str, claim: str) -> str:
    if name not in known:
        hint = nearest(name, known) or f"The {kind}s are {', '.join(known)}"
        raise UsageError(f"unknown {kind} {name!r} in claim {claim!r}", hint)
    return name


def spoken(arm: str) -> str:
    """The name of an arm as claims write it: `_` for all but letters and digits."""
    return re.sub(r"\W", "_", arm)
