"""Pictures of a mining report: purity stage by stage, recall class by class."""

from collections.abc import Sequence

from effvl_cli.core import plots
from effvl_cli.core.run import Run
from effvl_cli.engines.cpr_mine.mining import Verdict
from effvl_cli.techniques.cpr_mine.stages import Stage

BARS = 12  # classes up to which each has bars and its name


def draw_pictures(run: Run, judged: Verdict, stages: Sequence[Stage], classes: Sequence[str]) -> None:
    """Draw `plots/purity.png` and `plots/recall.png`; nothing where no query counts."""
    if not judged.cascade.queries:
        return
    points = {
        name: [
            (float(number), value, 0.0)
            for number, quality in enumerate(judged.stages, 1)
            if (value := quality.purity if name == "purity" else quality.kept) is not None
        ]
        for name in ("purity", "kept")
    }
    run.plot(
        "purity",
        plots.curves,
        {"purity: share that is of the query's class": points["purity"], "kept: share of its class": points["kept"]},
        title="What each stage keeps",
        xlabel="stage (" + ", ".join(f"{stage.view}:{stage.n}" for stage in stages) + ")",
        ylabel="mean over queries",
    )
    series = {"cascade": judged.cascade.per_class} | {
        f"{view} alone": quality.per_class for view, quality in judged.alone.items()
    }
    labels = sorted(judged.cascade.per_class)
    if len(labels) <= BARS:
        names = [classes[label] if label < len(classes) else f"class {label}" for label in labels]
        bars = {name: [row[label]["recall"] for label in labels] for name, row in series.items()}
        run.plot("recall", plots.paired_bars, names, bars, title="Recall of each class", ylabel="recall")
        return
    ordered = {name: sorted(row[label]["recall"] for label in labels) for name, row in series.items()}
    run.plot(
        "recall",
        plots.curves,
        {name: [(float(place), value, 0.0) for place, value in enumerate(row, 1)] for name, row in ordered.items()},
        title="Recall of the classes, each curve in ascending order",
        xlabel="class",
        ylabel="recall",
    )
