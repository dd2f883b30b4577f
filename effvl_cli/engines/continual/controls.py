"""What is trained beside, for comparison: networks of one task, and one that is fine-tuned from task to task."""

from collections.abc import Mapping, Sequence
from typing import Any

from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.individual import Individuals
from effvl_cli.engines.continual.results import Outcome, Rows
from effvl_cli.engines.continual.sequential import fine_tuned


def square(rows: Sequence[Sequence[float]]) -> Rows:
    """Rows that grow by one, as a square matrix."""
    return [[*row, *[None] * (len(rows) - len(row))] for row in rows]


def measured(
    context: Context, jobs: Sequence[Job], individuals: Individuals, epochs: Mapping[str, int]
) -> dict[str, Any]:
    """The controls that the options ask for.

    Args:
        context: run.
        jobs: the tasks.
        individuals: trains networks of one task.
        epochs: that each committed task really used, by its name.

    Returns:
        `individual` and `individual_matched`: test accuracies in the order of the tasks; `finetune`: its matrix.
    """
    wanted, found = context.config.controls or (), {}
    if "individual" in wanted:
        found["individual"] = [_alone(individuals, job) for job in jobs]
    if "individual-matched" in wanted:
        found["individual_matched"] = [_alone(individuals, job, epochs[job.task.name]) for job in jobs]
    if "finetune" in wanted:
        found["finetune"] = square(fine_tuned(context, jobs))  # type: ignore[assignment]
    return found


def _alone(individuals: Individuals, job: Job, epochs: int | None = None) -> float:
    """Test accuracy of the network of one task."""
    found = individuals.of(job, epochs=epochs).test
    job.release()
    return found


def alone(context: Context, jobs: Sequence[Job], individuals: Individuals) -> Outcome:
    """The method individual or finetune, as a run of its own."""
    tasks = []
    for job in jobs:
        tasks.append(job.described())
        job.release()
    if context.config.method == "individual":
        accuracies = [_alone(individuals, job) for job in jobs]
        rows = square([accuracies[:number] for number in range(1, len(jobs) + 1)])
        sizes: dict[str, float | None] = {"expansion_factor": float(len(jobs)), "total_bytes_factor": float(len(jobs))}
    else:
        rows, sizes = square(fine_tuned(context, jobs)), {"expansion_factor": 1.0, "total_bytes_factor": 1.0}
    for number, row in enumerate(tasks):
        row["test_acc"] = rows[number][number]
    return Outcome(rows, "evaluated", tasks, sizes)
