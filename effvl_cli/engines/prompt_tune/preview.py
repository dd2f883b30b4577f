"""Cost of features and trainings, for `--dry-run`."""

import torch
from torch import nn

from effvl_cli.config.prompt_tune import LEARNERS, LearningConfig, PromptTuneConfig, SuspectsConfig
from effvl_cli.core import measure
from effvl_cli.core.probe import seconds_for
from effvl_cli.core.run import unopened
from effvl_cli.core.table import Table
from effvl_cli.data.decoded import held_bytes
from effvl_cli.data.source import ImageSource
from effvl_cli.engines.common.cost_table import TRAINING, Part, cost_table, speed_of
from effvl_cli.engines.prompt_tune.arms import arms_of
from effvl_cli.engines.prompt_tune.context import Context, Learning, build_context, cache_mode, num_epochs
from effvl_cli.engines.prompt_tune.features import encoder
from effvl_cli.engines.prompt_tune.head_training import steps_per_epoch
from effvl_cli.engines.prompt_tune.label_sets import noise_rates
from effvl_cli.engines.prompt_tune.learners import learner_of
from effvl_cli.engines.prompt_tune.noise_records import ENDLESS_SHOTS
from effvl_cli.engines.prompt_tune.pseudo import training_source
from effvl_cli.techniques.prompt_tune.learner import PromptLearner
from effvl_cli.techniques.prompt_tune.text_cost import text_cost

BATCH = 32  # images of the probe
PROBED = 2  # training steps of the probe


def preview_job(config: PromptTuneConfig) -> list[Table]:
    """Of the whole job."""
    context = build_context(config, unopened("prompt-tune", config))
    if config.unsupervised:
        pool, rates = _length(context, training_source(context), ENDLESS_SHOTS), 1
        images = min(pool, config.num_select * len(context.classes))
        parts = [_features(context, "zero-shot of the training images", pool, 1)]
    else:
        images, rates = _num_images(context), len(noise_rates(config))
        parts = []
    parts.append(_training_features(context, images))
    parts.append(_features(context, "features of the test images", len(context.source("test")), 1))
    arms = arms_of(config)
    trained = [arm for arm in arms if arm.method in LEARNERS]
    if trained:
        parts.append(_trainings(context, trained[0].method, len(trained) * rates, images, "prompts"))
    if config.num_folds and not config.unsupervised and (config.labels or max(noise_rates(config)) > 0):
        kept = images - images // config.num_folds
        parts.append(_trainings(context, "prompt", config.num_folds, kept, "suspects"))
    at = "one noise rate" if rates == 1 else f"{rates} noise rates"
    return [_table(context, parts, [f"methods: {', '.join(arm.name for arm in arms)}, at {at}"])]


def preview_suspects(config: SuspectsConfig) -> list[Table]:
    """Of the ranking."""
    context = build_context(config, unopened("prompt-tune suspects", config))
    images = _num_images(context)
    kept = images - images // config.num_folds
    folds = _trainings(context, "prompt", config.num_folds, kept, "folds")
    return [_table(context, [_training_features(context, images), folds], [])]


def _num_images(context: Learning) -> int:
    shots = context.config.shots
    most = _size(context, "train", ENDLESS_SHOTS if shots == "all" else shots)
    return most if shots == "all" else min(most, shots * len(context.classes))


def _size(context: Learning, split: str, endless: int) -> int:
    return _length(context, context.source(split), endless)


def _length(context: Learning, source: ImageSource, endless: int) -> int:
    return endless * len(context.classes) if source.endless else len(source)


def _training_features(context: Learning, images: int) -> Part:
    """Of the centre, and of what training sees."""
    mode = cache_mode(context)
    passes = {"center": 1, "views": 1 + context.config.num_views, "off": 1 + num_epochs(context)}[mode]
    return _features(context, f"features of the training images ({mode})", images, passes)


def _features(context: Context[LearningConfig], name: str, images: int, passes: int) -> Part:
    network = context.network
    pixels = torch.zeros(BATCH, 3, *network.preprocess.size, device=context.run.device)
    macs = measure.count_macs(_Encoder(context), pixels[:1])
    speed = speed_of(encoder(network), network.module, pixels, macs, context.config.precision)
    times = f", {passes} passes each" if passes > 1 else ""
    total = float(macs) * images * passes
    return Part(name, f"{images:,} images{times}", total, total / speed)


class _Encoder(nn.Module):
    """The image tower as a module by itself, for the counter."""

    def __init__(self, context: Learning) -> None:
        super().__init__()
        self.network = context.network.module
        self.encode = encoder(context.network)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encode(images)


def _trainings(context: Learning, method: str, count: int, images: int, name: str) -> Part:
    """Of so many trainings: the text tower, forward and backward, in every step."""
    module, epochs = learner_of(context, method), num_epochs(context)
    steps = epochs * steps_per_epoch(context, images)

    def probe(number: int) -> None:
        for _ in range(number):
            module().sum().backward()

    seconds = seconds_for(probe, PROBED, context.run.device) / PROBED
    macs = text_cost(module).step if isinstance(module, PromptLearner) else TRAINING * measure.count_macs(module)
    return Part(name, f"{count} trainings of {steps:,} steps", float(macs) * count * steps, seconds * count * steps)


def _table(context: Learning, parts: list[Part], notes: list[str]) -> Table:
    splits = (_num_images(context), _size(context, "test", 0))
    pixels = max(held_bytes(count, context.network.preprocess) for count in splits)
    memory = 4 * measure.count_parameters(context.network.module) + pixels
    said = (
        *notes,
        "features in the cache cost nothing",
        "the memory is that of the weights and of decoded images; images beyond half of all are read when needed",
    )
    return cost_table(
        f"{context.network.name} on {context.config.data}", parts, context.run.device, memory=memory, notes=said
    )
