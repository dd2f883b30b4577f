"""Which training labels look wrong: every image is judged by prompts tuned on the other folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.core.files import write_csv
from effvl_cli.core.phases import Phases
from effvl_cli.core.plots import captioned_images
from effvl_cli.engines.common.batches import decode
from effvl_cli.engines.prompt_tune.context import Learning, prompt_rate
from effvl_cli.engines.prompt_tune.head_training import train_module
from effvl_cli.engines.prompt_tune.label_sets import LabelSet, Training
from effvl_cli.engines.prompt_tune.learners import learner_of
from effvl_cli.techniques.prompt_tune.class_head import ClassHead
from effvl_cli.techniques.prompt_tune.robust_losses import make_loss
from effvl_cli.techniques.prompt_tune.suspects import (
    Predict,
    Suspects,
    auroc,
    folds,
    out_of_sample,
    precision_at,
    suspects,
)

FILE = "suspects.csv"
SHOWN = 40  # in the report and on the contact sheet
LOSS: Literal["gce"] = "gce"
COLUMNS = (
    *("rank", "sample_id", "path", "given_label", "given", "suggested_label", "suggested"),
    *("suggested_probability", "given_probability", "suspicion", "flipped"),
)


@dataclass(frozen=True)
class Ranking:
    """Training images ranked by how wrong their labels look, and the label set that they belong to."""

    labels: LabelSet
    found: Suspects
    zero_shot: Suspects

    @property
    def flipped(self) -> Tensor | None:
        """(N,) bool; None where the true labels are not known, or are all as given."""
        if self.labels.shots.clean is None or not self.labels.shots.flipped.any():
            return None
        return torch.from_numpy(self.labels.shots.flipped)


def rank_suspects(context: Learning, training: Training, labels: LabelSet) -> Ranking:
    """Tune prompts on all folds but one, judge the images of that one, for each fold in turn.

    A class whose images are all in one fold is still known by its name.
    """
    config, centres = context.config, training.centres(labels)
    fold = folds(labels.given, config.num_folds, seeds.generator(config.seed, "folds"))
    everything, loss = training.of(labels), make_loss(LOSS, gce_q=config.gce_q)

    def fit(rows: Tensor, number: int) -> Predict:
        module = learner_of(context, "prompt")
        phase = f"fold-{number}{labels.suffix}"
        train_module(context, module, everything.take(rows), loss, prompt_rate(context), phase)
        with torch.no_grad():
            head = ClassHead(module().float().cpu(), scale=context.scale)
        return lambda held: head(centres[held])

    def make() -> dict[str, Tensor]:
        return {"logits": out_of_sample(fold, fit)}

    logits = Phases.of(context.run).tensors(f"suspects{labels.suffix}", make)["logits"]
    zero_shot = ClassHead(context.classifier.cpu(), scale=context.scale)(centres)
    return Ranking(labels, suspects(logits, labels.given), suspects(zero_shot, labels.given))


def record_suspects(context: Learning, training: Training, ranking: Ranking) -> None:
    """Write `suspects.csv`, and where the wrong labels are known, how well they are found."""
    run = context.run
    rows = suspect_rows(context, training, ranking)
    run.write(FILE, write_csv, COLUMNS, rows)
    technique: dict[str, Any] = {
        "loss": LOSS,
        "folds": context.config.num_folds,
        "images": len(ranking.labels.given),
        "suspected": int((ranking.found.suspicion > 0).sum()),
        "first": rows[:SHOWN],
    }
    flipped = ranking.flipped
    if flipped is not None:
        count = int(flipped.sum())
        technique["flipped"] = count
        for suffix, found in (("", ranking.found), ("_zero_shot", ranking.zero_shot)):
            about = {"split": "train", "n": len(flipped)}
            run.report.metric(f"suspects_auroc{suffix}", auroc(found.suspicion, flipped), **about)
            run.report.metric(f"suspects_precision{suffix}", precision_at(found.order, flipped, count), **about)
    run.report.technique["suspects"] = technique
    draw_suspects(context, training, rows[:SHOWN])


def suspect_rows(context: Learning, training: Training, ranking: Ranking) -> list[dict[str, Any]]:
    """Rows of `suspects.csv`, the most suspect first."""
    found, shots, source = ranking.found, ranking.labels.shots, training.source
    flipped, rows = ranking.flipped, []
    for rank, row in enumerate(found.order.tolist(), 1):
        index, given, suggested = int(shots.indices[row]), int(shots.given[row]), int(found.suggested[row])
        rows.append(
            {
                "rank": rank,
                "sample_id": index,
                "path": source.ids[index],
                "given_label": given,
                "given": context.classes[given],
                "suggested_label": suggested,
                "suggested": context.classes[suggested],
                "suggested_probability": round(float(found.probability[row]), 6),
                "given_probability": round(float(found.given_probability[row]), 6),
                "suspicion": round(float(found.suspicion[row]), 6),
                "flipped": None if flipped is None else int(flipped[row]),
            }
        )
    return rows


def draw_suspects(context: Learning, training: Training, rows: Sequence[Mapping[str, Any]]) -> None:
    """`plots/suspects.png`: the most suspect images with their given and suggested labels."""
    run, preprocess = context.run, context.network.preprocess
    indices = np.array([row["sample_id"] for row in rows], dtype=np.int64)
    images = decode(training.source, preprocess, indices, context.config, run, on_bad="error", noted=False)
    run.plot(
        "suspects",
        captioned_images,
        images.pixels.permute(0, 2, 3, 1).numpy(),
        [f"{row['given']}\n→ {row['suggested']}" for row in rows],
        title=f"The labels that look most wrong in {training.source.name}: given → suggested",
    )
