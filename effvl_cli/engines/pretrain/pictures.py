"""Pictures of a pretraining run: accuracy against budget, the schedule over time, the views as the model sees them."""

import json
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from effvl_cli.core import plots
from effvl_cli.core.metrics import binomial_error
from effvl_cli.core.records import RECORDS
from effvl_cli.core.run import Run
from effvl_cli.data.views import as_pictures
from effvl_cli.engines.pretrain.arm_training import ArmTrainer, Trained
from effvl_cli.techniques.pretrain.method import dropped_pixels
from effvl_cli.techniques.pretrain.schedule import Clock

SHOWN = 6  # pictures shown
HIDDEN = 0.5  # grey value of a dropped patch


def draw(run: Run, clocks: Mapping[str, Clock], trainer: ArmTrainer, trained: Trained) -> None:
    """All of them."""
    probe = trained.task.probe
    count = len(probe.asked.labels) if probe is not None else 0
    accuracy = accuracy_over_budget(run, clocks, count)
    if any(accuracy.values()):
        run.plot(
            "accuracy",
            plots.curves,
            accuracy,
            title="20-NN accuracy on validation pictures",
            xlabel="units spent (thousands)",
            ylabel=f"accuracy  (bars: SE, {count} pictures)",
        )
    draw_schedule(run, clocks, trainer)
    draw_views(run, trainer, trained.clock)


def accuracy_over_budget(run: Run, clocks: Mapping[str, Clock], count: int) -> dict[str, list[plots.Point]]:
    """The evaluations in metrics.jsonl, arm by arm, with the standard error over `count` pictures."""
    found: dict[str, list[plots.Point]] = {arm: [] for arm in clocks}
    for line in (run.folder / RECORDS).read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "eval" and record["phase"] in clocks and "knn20_val" in record:
            spent = clocks[record["phase"]].spent(record["step"])
            share = record["knn20_val"]
            found[record["phase"]].append((spent / 1000, share, binomial_error(share, count) or 0.0))
    return found


def draw_schedule(run: Run, clocks: Mapping[str, Clock], trainer: ArmTrainer) -> None:
    """Units an image costs, over the training."""
    series: dict[str, list[plots.Point]] = {}
    for arm, clock in clocks.items():
        points: list[plots.Point] = []
        for stage in clock.stages:
            cost = stage.units_per_step / trainer.config.batch_size / trainer.costs.full
            points += [(clock.t(stage.first), cost, 0.0), (clock.t(stage.first + stage.steps) - 1e-9, cost, 0.0)]
        series[arm] = points
    run.plot(
        "schedule",
        plots.curves,
        series,
        title="Schedule",
        xlabel="t, share of the budget",
        ylabel="cost of an image (uncompressed: 1)",
    )


def draw_views(run: Run, trainer: ArmTrainer, clock: Clock) -> None:
    """Some pictures and their two views as the encoder gets them in each stage; dropped patches are grey."""
    side, size = trainer.costs.shape.image_size, trainer.config.batch_size
    rows: list[NDArray[np.uint8]] = []
    labels = []
    for stage in clock.stages:
        compression = stage.compression
        batch = next(trainer.stream_for(size, compression.patch)).to(run.device)  # the same pictures in all stages
        if not rows and batch.images.ndim == 4:
            whole = F.interpolate(
                batch.images[:SHOWN].float() / 255, size=(side, side), mode="bilinear", antialias=True
            )
            rows.append(as_pictures(whole))
            labels.append("picture")
        views = trainer.maker.views(batch, compression, 0)
        pixels = trainer.maker.pixels(batch, compression.patch, 0)
        for role, view, index in (("query", views.query[0], 0), ("key", views.key[0], len(views.key[:1]))):
            shown = pixels[index][:SHOWN]
            shown = F.interpolate(
                torch.where(dropped_pixels(view)[:SHOWN], torch.full_like(shown, HIDDEN), shown), size=(side, side)
            )
            rows.append(as_pictures(shown))
            keep = compression.keep_q if role == "query" else compression.keep_k
            labels.append(f"{role}\npatch {compression.patch}\nkeep {keep:g}")
    count = min(SHOWN, len(batch.images))
    grid = np.stack([row[:count] for row in rows])
    run.plot("views", plots.image_grid, grid, title="Views", row_labels=labels)
