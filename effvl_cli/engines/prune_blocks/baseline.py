"""The network to prune, where no weights are given: trained once, then taken from the cache."""

from effvl_cli.config.prune_blocks import EMBEDDED, PruneBlocksConfig
from effvl_cli.core import distributed
from effvl_cli.core.checkpoint import digest
from effvl_cli.core.errors import UsageError
from effvl_cli.core.phases import Phases
from effvl_cli.engines.prune_blocks import training
from effvl_cli.engines.prune_blocks.context import Context
from effvl_cli.engines.prune_blocks.training import Recipe

PHASE = "baseline"
EMBEDDED_EPOCHS = 8
FORMAT = 1  # of the cached content: raised when the training changes


def wanted(config: PruneBlocksConfig) -> bool:
    """Whether the options give no weights."""
    return config.weights in (None, "none") or config.new_head


def epochs_of(context: Context[PruneBlocksConfig]) -> int:
    """Length of its training; 0 where no length is given."""
    return context.config.baseline_epochs or (EMBEDDED_EPOCHS if context.data == EMBEDDED else 0)


def prepare(context: Context[PruneBlocksConfig], phases: Phases) -> None:
    """Train the original network in place, unless a run with exactly these options has done so."""
    config = context.config
    epochs = epochs_of(context)
    if not epochs:
        raise UsageError(
            f"no --weights of {context.network.name} for {context.data}",
            "Give --weights, or --baseline-epochs to train it",
        )
    recipe = Recipe(epochs, config.baseline_lr, config.baseline_batch_size, training.WARMUP)
    entry = context.run.cache.entry("prune-blocks-baseline", _key(context, recipe))
    begun = (context.run.folder / "checkpoints" / PHASE).is_dir()  # in this run: its records continue too
    known = None if distributed.all_reduce_max(int(begun)) else entry.load("weights", context.run.warn)
    if known is not None:
        context.module.load_state_dict(known)
        context.run.log(f"{context.network.name} was trained before with these options: taken from the cache")
    else:
        phases.train(PHASE, context.module, lambda: training.train(context, context.module, recipe, PHASE))
        context.module.requires_grad_(False)
        if distributed.is_main():
            entry.save("weights", context.module.state_dict())
    distributed.barrier()
    context.network.weights_sha256 = digest(context.module.state_dict())
    context.run.report.technique["baseline"] = {"epochs": epochs, "lr": config.baseline_lr, "key": entry.name}


def _key(context: Context[PruneBlocksConfig], recipe: Recipe) -> dict[str, object]:
    config = context.config
    return {
        "format": FORMAT,
        "model": [context.network.name, context.network.edits],
        "preprocess": context.network.preprocess.to_dict(),
        "from": context.network.weights_sha256,
        "data": context.train.fingerprint(),
        "recipe": [recipe.epochs, recipe.lr, recipe.batch_size, recipe.warmup],
        "optimizer": [config.momentum, config.weight_decay, config.decay_all],
        "augment": config.augment,
        "precision": config.precision,
        "device": context.run.device.type,
        "seed": config.seed,
    }
