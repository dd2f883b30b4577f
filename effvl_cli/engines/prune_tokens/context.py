"""What every phase of prune-tokens works with: the network, its tower, the data and the class weights."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from effvl_cli.config.prune_tokens import (
    BenchConfig,
    EvalConfig,
    JudgedConfig,
    PredictConfig,
    PruneTokensConfig,
    RankConfig,
    SearchOptions,
    TowerConfig,
    TuneConfig,
    VizConfig,
    check_window,
    for_tower,
    layer_of,
)
from effvl_cli.core import seeds
from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.run import Run
from effvl_cli.data import any_split, load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.fewshot import few_shot
from effvl_cli.data.prompts import choose_templates
from effvl_cli.engines.common.batches import decode
from effvl_cli.models import network as networks
from effvl_cli.models.openclip import logit_scale_value
from effvl_cli.models.openclip_tower import ClipTower, self_check, tower_of
from effvl_cli.techniques.prune_tokens.dropped import Choice, choices
from effvl_cli.techniques.prune_tokens.macs import TowerShape
from effvl_cli.techniques.prune_tokens.predictor import Predictor
from effvl_cli.techniques.prune_tokens.selector_table import Place

MAX_VALIDATION = 1000


C_co = TypeVar("C_co", bound=TowerConfig, covariant=True)
C = TypeVar("C", bound=TowerConfig)
P = TypeVar("P", PruneTokensConfig, PredictConfig)


@dataclass(frozen=True)
class Context(Generic[C_co]):
    """Network, tower, data and class weights of one run, and its options."""

    config: C_co
    run: Run
    network: networks.Network
    tower: ClipTower
    shape: TowerShape
    layer: int
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    classifier: Tensor
    """(E, C) unit class embeddings."""
    tau: Tensor
    """Scalar that multiplies cosines."""
    predictor: Predictor | None = None
    """Of the pruned towers, once there is one."""
    choice: Choice = field(default_factory=Choice)
    """What is done with the scored patches; with --dropped auto settled once there is a predictor."""

    @property
    def place(self) -> Place:
        """Where the tower is pruned."""
        return Place(self.shape, self.tower.num_heads, self.layer, self.predictor, self.choice)

    def images(self, split: str, indices: np.ndarray | None = None) -> Decoded:
        """Decode images of a split; all of them when no indices are given.

        Raises:
            DataError: unreadable, and --on-bad error or too many.
        """
        config = self.config
        source = load(config.data, split, root=config.data_root, seed=0)
        return decode(source, self.network.preprocess, indices, config, self.run)

    def few_shot(self: "Learning") -> Decoded:
        """The training images for ranking, predictor and prompts.

        Raises:
            UsageError: all images of an endless data set.
        """
        source = load(self.config.data, "train", root=self.config.data_root, seed=0)
        if self.config.shots != "all":
            return self.images("train", few_shot(source, self.config.shots, self.config.seed))
        if source.endless:
            raise UsageError(f"--shots is all, and {source.name} is endless", "Give a number")
        return self.images("train")

    def validation(self) -> Decoded | None:
        """Up to `MAX_VALIDATION` images of the val split, the same in every run; None when there are none."""
        try:
            source = load(self.config.data, "val", root=self.config.data_root, seed=0)
        except DataError as error:
            self.run.warn(f"no validation images, so the last epoch is used: {error.message}")
            return None
        order = torch.randperm(len(source), generator=seeds.generator(0, "validation"))[:MAX_VALIDATION]
        return self.images("val", order.sort().values.numpy())

    def accuracy(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """(M,) float 0/1: whether the nearest class is the right one."""
        return (self.predictions(embeddings) == labels).float()

    def predictions(self, embeddings: Tensor) -> Tensor:
        """(M,) class of each unit embedding."""
        return (embeddings @ self.classifier.cpu()).argmax(1)


AnyContext = Context[TowerConfig]
Judged = Context[JudgedConfig]
Learning = Context[PruneTokensConfig | RankConfig | PredictConfig | TuneConfig]
Ranking = Context[PruneTokensConfig | RankConfig | PredictConfig]
Searching = Context[PruneTokensConfig | RankConfig | PredictConfig | EvalConfig | VizConfig]
Predicting = Context[PruneTokensConfig | PredictConfig]
Tuning = Context[PruneTokensConfig | TuneConfig]
Selecting = Context[PruneTokensConfig | EvalConfig | VizConfig | BenchConfig]


def build_context(config: C, run: Run) -> Context[C]:
    """Load the network and the class weights, and check that the tower can be pruned.

    Raises:
        ModelError: the tower is not a flat sequence of tokens, or its layer does not exist.
        DataError: the data set has no class names.
    """
    network = networks.load(
        config.model, config.weights, default="tiny:clip", kind="clip", seed=config.seed, options=config, log=run.log
    )
    if network.manifest.get("classes"):
        run.log(f"weights trained on {network.manifest.get('data')}")
    network.module.to(run.device).eval().requires_grad_(False)
    tower = tower_of(network.module, network.name)
    self_check(tower, network.preprocess.size)
    shape = TowerShape.of(tower)
    if isinstance(config, SearchOptions):
        check_window(config.block, tower.grid)
    if tower.pools_mean:
        run.warn(f"{network.name} averages its patches: the scale of its features changes when some are dropped")
    source = any_split(config.data, root=config.data_root)
    if not source.classes:
        raise UsageError(
            f"--data {config.data} has no class labels", "prune-tokens measures classification: give labels"
        )
    templates = choose_templates(config.templates, source.templates)
    classifier = networks.zero_shot_classifier(network, source.classes, templates, run.device, run.warn)
    run.report.model(network.name, network.source, network.module)
    return Context(
        for_tower(config, shape.num_patches),
        run,
        network,
        tower,
        shape,
        layer_of(config.layer, network.name, tower.depth),
        source.classes,
        templates,
        classifier,
        logit_scale_value(network.module).float(),
        choice=choices(config.dropped, config.diversity)[0],
    )


def tower_summary(context: AnyContext) -> dict[str, Any]:
    """Sizes of the tower."""
    shape = context.shape
    return {"N": shape.num_patches, "D": shape.width, "L": shape.depth, "P": shape.num_prefix, "layer": context.layer}


def artefact_fields(context: AnyContext) -> dict[str, Any]:
    """What a predictor or prompts must agree on to be used with this tower."""
    return {
        "model": context.network.name,
        "weights": context.network.weights_sha256[:16],
        "layer": context.layer,
        "patches": context.shape.num_patches,
        "prefix": context.shape.num_prefix,
        "width": context.shape.width,
    }
