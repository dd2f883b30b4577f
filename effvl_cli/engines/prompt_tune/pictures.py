"""Pictures of a run: accuracy against noise, which labels became which, gradients, and what changes for each class."""

from collections.abc import Sequence

from torch import Tensor

from effvl_cli.core.metrics import standard_error
from effvl_cli.core.plots import Point, curves, heat_maps, intervals, panels
from effvl_cli.core.run import Run
from effvl_cli.engines.prompt_tune.arms import Comparing, Fitted
from effvl_cli.engines.prompt_tune.gradient_analysis import Row
from effvl_cli.engines.prompt_tune.label_sets import LARGEST_MATRIX, LabelSet

Results = Sequence[tuple[LabelSet, Fitted]]
SHOWN = 30  # classes, those that change most
SPACES = {"own": "what the method trains", "common": "class features"}


def draw(context: Comparing, results: Results, labels: Tensor, reference: Tensor) -> None:
    """Draw what there is to see.

    Args:
        context: of the run.
        results: every method at every noise rate.
        labels: (M,) of the test images.
        reference: (M,) 0/1 of zero-shot.
    """
    sets = list({id(found): found for found, _ in results}.values())
    if len(sets) > 1:
        _accuracy(context, results, labels, float(reference.mean()))
    noisy = [found for found in sets if found.shots.flipped.any()]
    if noisy and len(context.classes) <= LARGEST_MATRIX:
        _transition(context, noisy)
    trained = [(found, fitted) for found, fitted in results if fitted.arm.method != "zero-shot"]
    if trained:
        _per_class(context, trained[-1], labels, reference)


def _accuracy(context: Comparing, results: Results, labels: Tensor, zero_shot: float) -> None:
    """`plots/accuracy.png`: a line for each method."""
    series: dict[str, list[Point]] = {}
    for found, fitted in results:
        if fitted.arm.method != "zero-shot":
            right = (fitted.test.argmax(1) == labels).float()
            point = (found.shots.rate, 100 * float(right.mean()), 100 * standard_error(right))
            series.setdefault(fitted.arm.name.replace("_", " "), []).append(point)
    if series:
        context.run.plot(
            "accuracy",
            curves,
            series,
            title=f"{context.network.name} under {results[-1][0].shots.model} noise ({len(labels)} test images)",
            xlabel="share of wrong training labels",
            ylabel="top-1 %  (bars: SE)",
            reference=("zero-shot", 100 * zero_shot),
        )


def _transition(context: Comparing, noisy: Sequence[LabelSet]) -> None:
    """`plots/transition.png`: given labels (columns) of each true class (rows)."""
    found = {f"rate {labels.shots.rate:g}": labels.shots.transition(len(context.classes)) for labels in noisy}
    maps = {name: matrix for name, matrix in found.items() if matrix is not None}
    title = "Given labels (columns) of each true class (rows)"
    names = [name[:24] for name in context.classes]
    context.run.plot("transition", heat_maps, maps, title=title, columns=min(3, len(maps)), names=names)


def _per_class(context: Comparing, last: tuple[LabelSet, Fitted], labels: Tensor, reference: Tensor) -> None:
    """`plots/classes.png`: change of each class's accuracy against zero-shot, of the last method."""
    found, fitted = last
    change = (fitted.test.argmax(1) == labels).float() - reference
    rows: dict[str, tuple[float, float, float]] = {}
    for label in labels.unique().tolist():
        own = 100 * change[labels == label]
        mean, spread = float(own.mean()), standard_error(own)
        rows[context.classes[label]] = (mean, mean - spread, mean + spread)
    most = sorted(rows, key=lambda name: -abs(rows[name][0]))[:SHOWN]
    shown = {name: rows[name] for name in sorted(most, key=lambda name: -rows[name][0])}
    noise = "" if found.rate is None else f" at noise {found.rate:g}"
    about = f"{fitted.arm.name.replace('_', ' ')}{noise}"
    of_all = f",\nthe {len(shown)} of {len(rows)} classes that change most" if len(shown) < len(rows) else ""
    context.run.plot(
        "classes",
        intervals,
        shown,
        title=f"{about} against zero-shot{of_all}",
        xlabel="points of top-1  (bars: paired SE)",
    )


def gradients(run: Run, rows: Sequence[Row]) -> None:
    """`plots/gradients.png`: gradient norm of wrong labels over that of right ones, at the highest noise rate."""
    rates = [row["rate"] for row in rows if row["n"] and row["group"] == "noisy" and row["ratio"] is not None]
    if not rates:
        return
    drawn: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        if row["rate"] == max(rates) and row["group"] == "noisy" and row["ratio"] is not None:
            series = drawn.setdefault(SPACES[row["space"]], {})
            series.setdefault(row["method"].replace("_", " "), []).append((row["epoch"], row["ratio"], 0.0))
    title = f"Gradient of wrong labels over that of right ones, noise {max(rates):g}"
    run.plot("gradients", panels, drawn, title=title, xlabel="epoch")
