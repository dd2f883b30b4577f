"""`effvl prune-tokens viz`: draws the patches that an earlier run's predictor keeps."""

from pathlib import Path

from effvl_cli.config.prune_tokens import VizConfig
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.fewshot import spread
from effvl_cli.engines.prune_tokens import artefact, pictures
from effvl_cli.engines.prune_tokens.context import Context, build_context
from effvl_cli.engines.prune_tokens.preview import MAPPED, preview_viz
from effvl_cli.engines.prune_tokens.rankings import rank_images, refuse_other_ranking
from effvl_cli.engines.prune_tokens.selectors import arms, asked_for, prune, rates, refuse_missing
from effvl_cli.techniques.prune_tokens.selector_table import SELECTORS, Arm
from effvl_cli.techniques.prune_tokens.selectors import GoldenSelector

preview = preview_viz


def run(config: VizConfig, run: Run) -> None:
    """Draw some test images with their kept patches, and how often each position is kept."""
    context = build_context(config, run)
    saved = artefact.load(context, Path(str(config.run)))
    context = artefact.as_saved(context, saved)
    names = asked_for(context)
    for name in names:
        refuse_missing(name, context, saved.predictor)
    if "golden" in names:
        refuse_other_ranking(context, saved.manifest["ranking"], of_other_data=True)
    labels = load(config.data, "test", root=config.data_root).labels
    images = context.images("test", spread(labels, max(MAPPED, config.num_images)).sort().values.numpy())
    shown = images.take(spread(images.labels.numpy(), config.num_images))
    drawn: list[Arm] = []
    for name in names:
        if SELECTORS[name].oracle:
            drawn += _searched(context, shown, name)
        else:
            drawn += arms(context, [name], context.config.keep, saved.predictor)
    pictures.patches(context, shown, drawn)
    droppers = [arm for arm in drawn if not SELECTORS[arm.selector].oracle and not SELECTORS[arm.selector].merges]
    pictures.keep_maps(context, images, droppers)


def _searched(context: Context[VizConfig], shown: Decoded, name: str) -> list[Arm]:
    """The oracle for the shown images only."""
    ranked = rank_images(context, shown, "golden ranking of the pictures")
    selector = GoldenSelector(shown.keys, ranked.rank)
    return [Arm(name, keep, prune(context, selector, keep)) for keep in rates(context, name, context.config.keep)]


def table(report: Report) -> Table:
    """Table of what was drawn; the log names the files."""
    return Table("pictures", ("data", "images"), tuple((row.name, row.num_samples) for row in report.data))
