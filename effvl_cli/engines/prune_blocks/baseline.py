"""The network that is pruned, where no weights of it were given: trained once, then taken from the cache."""

from effvl_cli.config.prune_blocks import EMBEDDED
from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import digest
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.engines.prune_blocks import training
from effvl_cli.engines.prune_blocks.setup import Setup
from effvl_cli.engines.prune_blocks.stages import Stages
from effvl_cli.engines.prune_blocks.training import Recipe

PHASE = "baseline"
EMBEDDED_EPOCHS = 8
HOPELESS = 1.5  # times chance: below it, weights and labels do not belong together
FORMAT = 1  # of the cached content: raised when the training changes


def wanted(config: object) -> bool:
    """Whether the options give no weights."""
    return getattr(config, "weights", None) in (None, "none") or bool(getattr(config, "new_head", False))


def prepare(here: Setup, stages: Stages) -> None:
    """Train the original network in place, unless a run with these very options has done so."""
    config = here.config
    epochs = config.baseline_epochs or (EMBEDDED_EPOCHS if here.data == EMBEDDED else None)
    if epochs is None:
        raise UsageError(
            f"no --weights of {here.network.name} for {here.data}", "Give --weights, or --baseline-epochs to train it"
        )
    recipe = Recipe(epochs, config.baseline_lr, config.baseline_batch_size, training.WARMUP)
    entry = here.run.cache.entry("prune-blocks-baseline", _key(here, recipe))
    begun = (here.run.folder / "checkpoints" / PHASE).is_dir()  # here: then its records are to be taken up too
    known = None if distributed.any_flag(int(begun)) else entry.load("weights", here.run.warn)
    if known is not None:
        here.module.load_state_dict(known)
        here.run.log(f"{here.network.name} trained before with these options: taken from the cache")
    else:
        stages.phase(PHASE, here.module, lambda: training.train(here, here.module, recipe, PHASE))
        if distributed.is_main():
            entry.save("weights", here.module.state_dict())
    distributed.barrier()
    here.network.weights_sha256 = digest(here.module.state_dict())
    here.run.report.technique["baseline"] = {"epochs": epochs, "lr": config.baseline_lr, "key": entry.name}


def _key(here: Setup, recipe: Recipe) -> dict[str, object]:
    config = here.config
    return {
        "format": FORMAT,
        "model": [here.network.name, here.network.edits],
        "from": here.network.weights_sha256,
        "data": here.train.fingerprint(),
        "recipe": [recipe.epochs, recipe.lr, recipe.batch_size, recipe.warmup],
        "optimizer": [config.momentum, config.weight_decay, config.decay_all],
        "augment": config.augment,
        "precision": config.precision,
        "device": here.run.device.type,
        "seed": config.seed,
    }


def check_better_than_chance(here: Setup, top1: float) -> None:
    """Refuse a network that does not know its classes.

    Raises:
        ModelError: top-1 of at most `HOPELESS` times chance, without --force.
    """
    chance = 1 / len(here.classes)
    if top1 > HOPELESS * chance:
        return
    text = f"{here.network.name} has {top1:.1%} top-1 on the images that score, and chance is {chance:.1%}"
    if here.config.force:
        here.run.warn(text)
        return
    raise ModelError(text, "Check that weights and class names belong together, or give --force")
