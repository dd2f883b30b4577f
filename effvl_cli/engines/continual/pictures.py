"""Pictures of a run of continual."""

from collections.abc import Mapping, Sequence
from typing import Any

from effvl_cli.core import plots
from effvl_cli.core.metrics import binomial_error
from effvl_cli.core.run import Run
from effvl_cli.core.table import shortened

MOST_LAYERS = 60
FREE = "free"
LONGEST = 18  # characters of a name beside a bar


def accuracies(run: Run, rows: Sequence[Sequence[float | None]], names: Sequence[str]) -> None:
    """Test accuracy of every task after each one was learned."""
    percent = [[None if value is None else 100 * value for value in row] for row in rows]
    run.plot(
        "accuracy-matrix",
        plots.matrix,
        percent,
        labels(names),
        title="Test accuracy, %",
        xlabel="task",
        ylabel="after learning",
    )


def capacity(run: Run, layers: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> None:
    """Whose the weights of each layer are."""
    shown = dict(list(layers.items())[:MOST_LAYERS])
    if not shown:
        return
    totals = {layer: sum(counts.values()) for layer, counts in shown.items()}
    parts = {
        name: [100 * counts.get(str(owner), 0) / totals[layer] for layer, counts in shown.items()]
        for owner, name in [*enumerate(labels(names), 1), (0, FREE)]
    }
    words = {"title": "Owners of the weights", "xlabel": "% of the layer", "rest": FREE}
    run.plot("capacity", plots.stacked_bars, list(shown), parts, **words)


def compaction(run: Run, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy on the images that decide, against the share of weights released, one line a task."""
    series: dict[str, list[plots.Point]] = {}
    for name, row in zip(labels([row["name"] for row in tasks]), tasks, strict=True):
        points = [(0.0, row["attempts"][-1]["val"]), *((stage["ratio"], stage["val"]) for stage in row["sweep"])]
        if len(points) > 1:
            series[name] = [
                (ratio, 100 * value, 100 * (binomial_error(value, row["n_val"]) or 0.0)) for ratio, value in points
            ]
    if series:
        run.plot(
            "compaction",
            plots.curves,
            series,
            title="Accuracy while weights are released",
            xlabel="share of the task's weights released  (equal shares side by side)",
            ylabel="validation accuracy %  (bars: SE)",
            apart=True,
        )


def picked(run: Run, tasks: Sequence[Mapping[str, Any]]) -> None:
    """Share of older weights that each task uses, and of all weights that are its own."""
    known = [row for row in tasks if row["picked_fraction"] is not None]
    if known:
        bars = {
            "picked, % of the older weights": [100 * row["picked_fraction"] for row in known],
            "own, % of all weights": [100 * row["own_fraction"] for row in known],
        }
        names = labels([row["name"] for row in known])
        run.plot("picked", plots.paired_bars, names, bars, title="What a task uses", ylabel="% of weights", digits=0)


def controls(run: Run, tasks: Sequence[Mapping[str, Any]], method: str) -> None:
    """Final test accuracy of each task beside the controls."""
    known = {
        "individual_test_acc": "alone",
        "individual_matched_test_acc": "alone, as long",
        "finetune_test_acc": "fine-tuned",
    }
    bars = {text: [100 * row[name] for row in tasks] for name, text in known.items() if name in tasks[0]}
    if bars:
        mine = {method: [100 * row["test_acc"] for row in tasks]}
        names = labels([row["name"] for row in tasks])
        bars = mine | bars
        run.plot("controls", plots.paired_bars, names, bars, title="Beside the controls", ylabel="test %", digits=1)


def labels(names: Sequence[str]) -> list[str]:
    """Names that fit beside a bar; with their numbers in front where two would look alike.

    Also where one begins with an underscore: matplotlib leaves those out of legends.
    """
    cut = [shortened(name, LONGEST) for name in names]
    alike = {name for name in cut if [*cut, FREE].count(name) > 1 or name.startswith("_")}
    return [f"{number} {name}" if name in alike else name for number, name in enumerate(cut, 1)]
