"""Claims of a sweep: expressions over arms and metrics, e.g. `tuned.top1 - dense.top1 >= -0.015`.

Names are `arm.metric`, or `arm.metric.se` for a figure's own standard error; dashes and dots in the name of an arm are
written `_`. Numbers, + - * / and parentheses; one comparison. It is computed for each seed, and its margin averaged.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from effvl_cli.core.errors import UsageError
from effvl_cli.core.registry import nearest

Figures = Mapping[str, Mapping[str, float]]
"""Arm, then metric (or metric.se), to its value in one seed."""

_BINARY: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARE: dict[type, int] = {ast.GtE: 1, ast.Gt: 1, ast.LtE: -1, ast.Lt: -1}


@dataclass(frozen=True)
class Verdict:
    """What a claim came to.

    Attributes:
        claim: its text.
        margin: mean over seeds of how far the inequality is on the right side; negative: on the wrong one.
        se: standard error of that mean; None with a single seed.
        seeds: how many.
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
        UsageError: not an expression of this language, or a name that no run has.
    """
    comparison = _parse(claim)
    kind = comparison.ops[0]
    sign = _COMPARE[type(kind)]
    margins = [
        sign * (_value(comparison.left, figures, claim) - _value(comparison.comparators[0], figures, claim))
        for figures in by_seed.values()
    ]
    mean = sum(margins) / len(margins)
    spread = None
    if len(margins) > 1:
        spread = math.sqrt(sum((m - mean) ** 2 for m in margins) / (len(margins) - 1) / len(margins))
    strict = isinstance(kind, ast.Gt | ast.Lt)
    return Verdict(claim, mean, spread, len(margins), mean > 0 if strict else mean >= 0)


def _parse(claim: str) -> ast.Compare:
    try:
        tree = ast.parse(claim.strip(), mode="eval").body
    except SyntaxError as error:
        raise UsageError(
            f"claim {claim!r} cannot be read: {error.msg}", "Write e.g. a.top1 - b.top1 >= 0.05"
        ) from error
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or type(tree.ops[0]) not in _COMPARE:
        raise UsageError(f"claim {claim!r} is no single comparison", "Use one of >= > <= <")
    return tree


def _value(node: ast.expr, figures: Figures, claim: str) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, figures, claim)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_value(node.left, figures, claim), _value(node.right, figures, claim))
    if isinstance(node, ast.Attribute):
        arm, _, metric = ast.unparse(node).partition(".")
        return _look_up(arm, metric, figures, claim)
    raise UsageError(
        f"claim {claim!r} holds {ast.unparse(node)!r}", "Only arm.metric, numbers, + - * / and parentheses"
    )


def _look_up(arm: str, metric: str, figures: Figures, claim: str) -> float:
    arms = {re.sub(r"\W", "_", name): values for name, values in figures.items()}
    if arm not in arms:
        raise UsageError(f"claim {claim!r} names arm {arm!r}", nearest(arm, arms) or f"The arms are {', '.join(arms)}")
    if metric not in arms[arm]:
        raise UsageError(f"claim {claim!r} names {metric!r}", nearest(metric, arms[arm]) or "No run has that figure")
    return arms[arm][metric]
