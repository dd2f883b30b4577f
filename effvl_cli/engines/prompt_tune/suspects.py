"""`effvl prompt-tune suspects`: training images ranked by how wrong their labels look."""

import dataclasses
from pathlib import Path

import torch

from effvl_cli.config.prompt_tune import DEFAULT_RATES, SuspectsConfig
from effvl_cli.config.recipe_file import read_recipe
from effvl_cli.core.chance import refuse_chance
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.run_files import CONFIG
from effvl_cli.core.table import Table, percent
from effvl_cli.engines.prompt_tune.context import Context, build_context
from effvl_cli.engines.prompt_tune.label_sets import (
    LabelSet,
    Training,
    label_sets,
    noise_rates,
    training_features,
    write_noise,
)
from effvl_cli.engines.prompt_tune.preview import preview_suspects
from effvl_cli.engines.prompt_tune.suspect_ranking import FILE, rank_suspects, record_suspects
from effvl_cli.techniques.prompt_tune.class_head import ClassHead

PRINTED = 10

preview = preview_suspects


def run(config: SuspectsConfig, run: Run) -> None:
    """Rank the training images; wrong labels are made first only where a rate says so."""
    context = build_context(with_rate(config), run)
    source = context.source("train")
    sets = label_sets(context, source)
    write_noise(context, source, sets)
    training = training_features(context, source, sets)
    _refuse_chance(context, training, sets[-1])
    record_suspects(context, training, rank_suspects(context, training, sets[-1]))


def with_rate(config: SuspectsConfig) -> SuspectsConfig:
    """The config with one noise rate: the given one, else RUN's highest on the data of RUN, else 0.

    At 0 all images are ranked with the labels that they have; with --labels, with those of the file; with --noise-from,
    with those at its highest rate.

    Raises:
        DataError: a `--noise-from` that cannot be read.
    """
    if config.noise_rate:
        return config
    rate = 0.0
    if config.noise_from or config.labels:
        rate = max(noise_rates(config))
    elif config.run is not None:
        earlier = read_recipe(Path(config.run) / CONFIG).config
        if earlier.get("data") == config.data and earlier.get("unsupervised") != "true":
            given = earlier.get("noise-rate")
            rate = max(map(float, given.split(",")) if given else DEFAULT_RATES)
    if rate == 0 and not config.noise_from:  # `fp` would leave out the images that it takes donors from
        config = dataclasses.replace(config, noise="symmetric", noise_matrix=None, confusion_pick="random")
    return dataclasses.replace(config, noise_rate=(rate,))


def _refuse_chance(context: Context[SuspectsConfig], training: Training, labels: LabelSet) -> None:
    """Zero-shot must agree with the given labels more often than by chance: half of them may well be wrong."""
    head = ClassHead(context.classifier.cpu(), scale=context.scale)
    agreeing = (head(training.centres(labels)).argmax(1) == labels.given).float()
    refuse_chance(
        context.run,
        context.network.name,
        float(torch.mean(agreeing)),
        len(context.classes),
        images=f"{len(agreeing)} training images with the given labels",
        force=context.config.force or context.network.source == "random",  # asked for: --weights none
    )


def table(report: Report) -> Table:
    """The most suspect images."""
    found = report.technique["suspects"]
    is_known = "flipped" in found
    rows = tuple(
        (
            row["rank"],
            row["path"],
            row["given"],
            row["suggested"],
            percent(row["suggested_probability"]),
            percent(row["given_probability"]),
            *(("yes" if row["flipped"] else "no",) if is_known else ()),
        )
        for row in found["first"][:PRINTED]
    )
    notes = [f"{found['suspected']} of {found['images']} labels look wrong; all are in {FILE}, the first in pictures"]
    if is_known:
        for name, words in (("", "tuned prompts"), ("_zero_shot", "zero-shot")):
            auroc, precision = (report.metrics[f"suspects_{key}{name}"].value for key in ("auroc", "precision"))
            notes.append(
                f"{words}: AUROC {auroc:.3f}; of the first {found['flipped']}, "
                f"as many as are wrong, {percent(precision)} % are"
            )
    columns = ("rank", "image", "given", "suggested", "suggested %", "given %")
    return Table(report.command, columns + ("known to be wrong",) * is_known, rows, tuple(notes))
