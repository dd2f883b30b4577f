"""Pictures of the job: retrieval of each arm, purity after each stage, recall of each class."""

from collections.abc import Mapping, Sequence
from typing import Any

from effvl_cli.core import plots
from effvl_cli.core.run import Run

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]
"""R@K by arm, view and K."""
SHOWN = 30  # classes


def draw(run: Run, mining: Mapping[str, Sequence[Mapping[str, Any]]], found: Curves, classes: Sequence[str]) -> None:
    """Draw what there is to see.

    Args:
        run: whose folder.
        mining: rows of `record_mining`, "before" and "after".
        found: R@K.
        classes: names.
    """
    series = {
        f"{arm} {view}": [(float(k), value, 0.0) for k, value in points.items()]
        for arm, views in found.items()
        for view, points in views.items()
    }
    run.plot("retrieval", plots.curves, series, title="Retrieval of test clips", xlabel="K", ylabel="R@K")
    stages = {
        f"{when}: {row['name'].replace('_', ' ')}": [
            (float(place), stage["purity"], 0.0)
            for place, stage in enumerate(row["kept"], 1)
            if stage["purity"] is not None
        ]
        for when, rows in mining.items()
        for row in rows
    }
    if any(stages.values()):
        run.plot(
            "purity",
            plots.curves,
            stages,
            title="Purity of what each stage keeps",
            xlabel="stage",
            ylabel="share of the query's class",
            apart=True,
        )
    _per_class(run, mining, classes)


def _per_class(run: Run, mining: Mapping[str, Sequence[Mapping[str, Any]]], classes: Sequence[str]) -> None:
    after = {row["name"]: row["per_class"] for row in mining["after"]}
    labels = list(after["cascade"])[:SHOWN]
    if labels:
        names = [classes[int(label)].replace(" ", "\n") if classes else label for label in labels]
        bars = {name.replace("_", " "): [rows[label]["recall"] for label in labels] for name, rows in after.items()}
        run.plot("recall-per-class", plots.paired_bars, names, bars, title="Recall of mining by class", ylabel="recall")
