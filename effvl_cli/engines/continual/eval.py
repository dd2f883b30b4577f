"""`effvl continual eval`: the accuracy of learned tasks, each with the network that it was committed with."""

import time
from typing import Any

import torch

from effvl_cli.config.continual_eval import EvalConfig
from effvl_cli.core.errors import DataError
from effvl_cli.core.metrics import binomial_error
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table, percent
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.common.batches import decode
from effvl_cli.engines.common.classifier import logits_of
from effvl_cli.engines.continual.accuracy import mean_error
from effvl_cli.engines.continual.materialised import materialised
from effvl_cli.engines.continual.open_state import chosen, open_state
from effvl_cli.engines.continual.state import TaskRecord
from effvl_cli.engines.continual.task_images import images_of
from effvl_cli.engines.continual.tasks import Task, refuse_other_classes

SPLIT = "test"


def run(config: EvalConfig, run: Run) -> None:
    """Measure task after task.

    Raises:
        DataError: images that are not there, or of other classes.
    """
    state = open_state(config)
    rows = []
    for record in chosen(state, config.task):
        started = time.perf_counter()
        plain = materialised(state, record.id, run.device)
        switched = time.perf_counter() - started
        images = decode(_source(config, record), plain.network.preprocess, None, config, run)
        run.report.data(images.source, num_samples=len(images), bad_files=images.bad_files)
        run.report.model(plain.network.name, plain.network.source, plain.module)
        started = time.perf_counter()
        logits = logits_of(plain.module, images, run, batch_size=config.eval_batch_size, precision="fp32")
        taken = time.perf_counter() - started
        rows.append(
            _row(record, images, logits.argmax(1))
            | {
                "images_per_s": len(images) / taken,
                "load_ms": 1000 * switched,
            }
        )
        run.check_stop()
    for row in rows:
        run.report.metric(f"top1_{row['task']}", row["top1"], split=SPLIT, n=row["n"], se=row["se"])
    accuracies, counts = [row["top1"] for row in rows], [row["n"] for row in rows]
    mean, error = sum(accuracies) / len(rows), mean_error(accuracies, counts)
    run.report.metric("avg_acc", mean, split=SPLIT, n=sum(counts), se=error)
    run.report.technique["tasks"] = rows


def _source(config: EvalConfig, record: TaskRecord) -> ImageSource:
    """The images that were asked for, labelled as the task labels them."""
    if config.data is not None:
        source = load(config.data, SPLIT, root=config.data_root)
        if set(source.classes) != set(record.classes):
            refuse_other_classes(record.name, record.classes, source.classes)
        return images_of(Task(record.name, config.data, config.data_root, record.classes), source, SPLIT)
    if not record.data:
        raise DataError(f"the state does not say where the images of task {record.name} lie", "Give --task and --data")
    task = Task.from_dict(record.data)
    source = load(task.data, SPLIT, root=config.data_root or task.data_root)
    missing = [name for name in record.classes if name not in source.classes]
    if missing:
        refuse_other_classes(record.name, record.classes, source.classes)
    return images_of(task, source, SPLIT)


def _row(record: TaskRecord, images: Decoded, predicted: torch.Tensor) -> dict[str, Any]:
    right = (predicted == images.labels).double()
    top1 = float(right.mean())
    per_class = {name: float(right[images.labels == k].mean()) for k, name in enumerate(record.classes)}
    return {
        "task": record.name,
        "classes": list(record.classes),
        "n": len(images),
        "top1": top1,
        "se": binomial_error(top1, len(images)),
        "acc_per_class": per_class,
        "test_acc_at_commit": record.figures.get("test_acc"),
    }


def table(report: Report) -> Table:
    """A row for each task."""
    rows = tuple(
        (
            row["task"],
            len(row["classes"]),
            row["n"],
            percent(row["top1"]),
            percent(row["se"], 2),
            " ".join(f"{name} {percent(value)}" for name, value in _lowest(row)),
            f"{row['images_per_s']:,.0f}",
            f"{row['load_ms']:.1f}",
        )
        for row in report.technique["tasks"]
    )
    columns = ("task", "classes", "images", "top-1 %", "SE", "lowest class %", "images/s", "load ms")
    mean = report.metrics["avg_acc"]
    return Table(report.command, columns, rows, (f"mean {percent(mean.value)} %, {mean.split} images",))


def _lowest(row: dict[str, Any]) -> list[tuple[str, float]]:
    return sorted(row["acc_per_class"].items(), key=lambda item: item[1])[:1]
