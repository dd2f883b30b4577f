"""What every part of prompt-tune works with: the network, the data, the class names and their zero-shot weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from effvl_cli.config.prompt_tune import DEFAULT_TOKENS, SMALL, ClipConfig, LearningConfig
from effvl_cli.core import checkpoint
from effvl_cli.core.errors import UsageError
from effvl_cli.core.run import Run
from effvl_cli.data import any_split, load
from effvl_cli.data.prompts import choose_templates
from effvl_cli.data.source import ImageSource
from effvl_cli.models import network as networks
from effvl_cli.models.openclip import logit_scale_value
from effvl_cli.models.openclip_prompts import PromptTower, check_room, name_pieces, prompt_tower, word_ids
from effvl_cli.models.token_pruned_clip import KIND as PRUNED
from effvl_cli.models.token_pruned_clip import load_pruned
from effvl_cli.techniques.prompt_tune.pieces import Pieces

FULL_EPOCHS, SMALL_EPOCHS = 50, 15
FULL_LR, SMALL_LR = 0.002, 0.02

C_co = TypeVar("C_co", bound=ClipConfig, covariant=True)
C = TypeVar("C", bound=ClipConfig)


@dataclass(frozen=True)
class Context(Generic[C_co]):
    """Network, class names and zero-shot weights of one run, and its options."""

    config: C_co
    run: Run
    network: networks.Network
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    classifier: Tensor
    """(K, D) unit class features of the templates, on the device."""
    scale: float
    """exp(logit_scale), which multiplies cosines."""

    def source(self, split: str) -> ImageSource:
        """A split of the data.

        Raises:
            DataError: there is none.
        """
        return load(self.config.data, split, root=self.config.data_root, seed=0)

    @cached_property
    def tower(self) -> PromptTower:
        """The text tower that takes learned tokens.

        Raises:
            ModelError: it cannot.
        """
        return prompt_tower(self.network)

    @cached_property
    def pieces(self) -> Pieces:
        """Tokens of the class names."""
        return name_pieces(self.network, self.classes)


AnyContext = Context[ClipConfig]
Learning = Context[LearningConfig]


def build_context(config: C, run: Run, classes: tuple[str, ...] | None = None) -> Context[C]:
    """Load the network and make the zero-shot weights.

    Args:
        config: options.
        run: of the command.
        classes: names in place of the data's.

    Raises:
        UsageError: fewer than two classes.
        ModelError: not a CLIP.
    """
    network = load_clip(config, run)
    network.module.to(run.device).eval().requires_grad_(False)
    source = any_split(config.data, root=config.data_root)
    names = tuple(name.replace("_", " ") for name in classes or source.classes)
    if len(names) < 2:
        found = f"only one class, {names[0]!r}" if names else "no class labels"
        raise UsageError(f"--data {config.data} has {found}", "Give labelled data of two classes or more")
    templates = choose_templates(config.templates, source.templates)
    classifier = networks.zero_shot_classifier(network, names, templates, run.device, run.warn)
    run.report.model(network.name, network.source, network.module)
    scale = float(logit_scale_value(network.module))
    return Context(config, run, network, names, templates, classifier.T.contiguous(), scale)


def load_clip(config: ClipConfig, run: Run) -> networks.Network:
    """The CLIP of --model and --weights; of a run of prune-tokens, with its pruned image tower.

    Raises:
        UsageError: unknown name.
        ModelError: missing, damaged or not a CLIP.
    """
    folder = Path(config.weights) if config.weights else None
    if folder is not None and (folder / checkpoint.MANIFEST).is_file():
        manifest = checkpoint.read_manifest(folder)
        if manifest.get("kind") == PRUNED:
            return _pruned(config, run, folder)
    return _network(config, run, config.model, config.weights)


def _network(config: ClipConfig, run: Run, model: str | None, weights: str | None) -> networks.Network:
    return networks.load(
        model, weights, default="tiny:clip", kind="clip", seed=config.seed, options=config, log=run.log
    )


def _pruned(config: ClipConfig, run: Run, folder: Path) -> networks.Network:
    """The CLIP that a run of prune-tokens began with, and in it the pruned image tower of that run."""
    manifest = checkpoint.read_manifest(folder)
    network = _network(config, run, manifest["fields"]["model"], manifest["base"]["weights"])
    network.module.visual = load_pruned(folder, download=config.download).visual
    network.preprocess = networks.preprocess_of(manifest, folder / networks.CHECKPOINT)
    network.source = str(folder)
    network.weights_sha256 = checkpoint.digest(network.module.state_dict())
    run.report.technique["pruned"] = {"keep": manifest["keep"], "from": str(folder)}
    if (manifest.get("prompts") or {}).get("text"):
        run.warn(f"the text prompts of {folder} are left out: class features come from its templates or tuned tokens")
    return network


def _is_small(context: Learning) -> bool:
    return context.network.name.startswith(SMALL)


def num_epochs(context: Learning) -> int:
    """Epochs of a training."""
    return context.config.epochs or (SMALL_EPOCHS if _is_small(context) else FULL_EPOCHS)


def prompt_rate(context: Learning) -> float:
    """Learning rate of prompts."""
    return context.config.lr or (SMALL_LR if _is_small(context) else FULL_LR)


def cache_mode(context: Learning) -> str:
    """What training sees: off, center or views; random crops of a small picture often miss its object."""
    return context.config.cache_features or ("center" if _is_small(context) else "views")


def context_words(context: Learning) -> tuple[int, ...]:
    """Tokens of --context-init; none where the learned tokens begin at random.

    Raises:
        UsageError: they are not as many as --num-context.
    """
    words = context.config.context_init
    if not words:
        return ()
    found = word_ids(context.network, words)
    given = context.config.num_context
    if given is not None and given != len(found):
        raise UsageError(
            f"--num-context is {given}, and --context-init {words!r} has {len(found)} tokens",
            f"Leave --num-context out, or give {len(found)}",
        )
    return found


def num_tokens(context: Learning) -> int:
    """M: learned tokens of a prompt.

    Raises:
        UsageError: class names do not fit beside them.
    """
    count = len(context_words(context)) or context.config.num_context or DEFAULT_TOKENS
    check_room(context.pieces, count)
    return count
