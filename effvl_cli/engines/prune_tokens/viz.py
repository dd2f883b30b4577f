"""`effvl prune-tokens viz`: pictures of the patches that an earlier run's predictor keeps."""

from pathlib import Path

from effvl_cli.config.prune_tokens import VizConfig
from effvl_cli.core.errors import ModelError
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.data import load
from effvl_cli.engines.prune_tokens import artefact, pictures, setup
from effvl_cli.engines.prune_tokens.evaluation import selector_of


def run(config: VizConfig, run: Run) -> None:
    """Draw the first test images and what is left of them."""
    here = setup.build(config, run)
    saved = artefact.load(here, Path(str(config.run)))
    if saved.predictor is None:
        raise ModelError(f"{config.run} holds no predictor", f"Train one: effvl prune-tokens predict {config.run}")
    test = load(config.data, "test", root=config.data_root)
    images = here.images("test", pictures.spread(len(test), config.num_images).numpy())
    selectors = {name: selector_of(name, here, saved.predictor) for name in ("predictor", "cls-attn", "random")}
    pictures.kept_patches(here, images, selectors, config.keep)


def table(report: Report) -> Table:
    """Where the picture lies is logged; the table names what was drawn."""
    return Table("pictures", ("data", "images"), tuple((row.name, row.num_samples) for row in report.data))
