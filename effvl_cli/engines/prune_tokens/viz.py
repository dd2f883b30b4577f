"""`effvl prune-tokens viz`: pictures of the patches that an earlier run's predictor keeps."""

from pathlib import Path

from effvl_cli.config.prune_tokens import VizConfig
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.data import load
from effvl_cli.engines.prune_tokens import artefact, pictures
from effvl_cli.engines.prune_tokens.context import build_context
from effvl_cli.engines.prune_tokens.evaluation import asked_for, selector_of
from effvl_cli.techniques.prune_tokens.tower import Selector

MAPPED = 512  # test images whose kept patches are averaged


def run(config: VizConfig, run: Run) -> None:
    """Draw some test images and what is left of them, and how often each place is kept."""
    context = build_context(config, run)
    keeps = context.config.keep
    saved = artefact.load(context, Path(str(config.run)))
    selectors: dict[str, Selector] = {name: selector_of(name, context, saved.predictor) for name in asked_for(context)}
    source = load(config.data, "test", root=config.data_root)
    images = context.images("test", pictures.spread(len(source), max(MAPPED, config.num_images)).numpy())
    shown = images.take(pictures.spread(len(images), config.num_images))
    pictures.kept_patches(context, shown, selectors, keeps)
    pictures.keep_maps(context, images, selectors, keeps)


def table(report: Report) -> Table:
    """Where the picture lies is logged; the table names what was drawn."""
    return Table("pictures", ("data", "images"), tuple((row.name, row.num_samples) for row in report.data))
