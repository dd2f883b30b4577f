"""The whole job: rank, train the predictor, tune prompts, evaluate, time, draw."""

from functools import partial

from torch import Tensor

from effvl_cli.config.prune_tokens import PruneTokensConfig
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.fewshot import spread
from effvl_cli.engines.prune_tokens import artefact, evaluation, pictures, tables, tower_latency
from effvl_cli.engines.prune_tokens.choice import validated
from effvl_cli.engines.prune_tokens.context import Context, build_context, tower_summary
from effvl_cli.engines.prune_tokens.evaluation import embed, embed_dense, result
from effvl_cli.engines.prune_tokens.golden_search import rank_training
from effvl_cli.engines.prune_tokens.measured import Measured, measure
from effvl_cli.engines.prune_tokens.oracle import golden
from effvl_cli.engines.prune_tokens.predictor import train_predictor
from effvl_cli.engines.prune_tokens.preview import preview_job
from effvl_cli.engines.prune_tokens.prompt_init import check_prompts
from effvl_cli.engines.prune_tokens.rankings import key_of
from effvl_cli.engines.prune_tokens.selectors import (
    arms,
    possible,
    prune,
    rates,
    refuse_missing,
    selector_of,
    tower_with,
)
from effvl_cli.engines.prune_tokens.tuning import tune_prompts
from effvl_cli.techniques.prune_tokens.predictor import Predictor
from effvl_cli.techniques.prune_tokens.prompts import Prompts
from effvl_cli.techniques.prune_tokens.selector_table import Arm
from effvl_cli.techniques.prune_tokens.tower import WrappedTower

CURVE = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
BATCHES = (1, 32)
SHOWN = 8
ARMS = ("predictor", "predictor+tuned", "cls-attn", "evit", "tome", "grid", "center", "random")

table, preview = tables.results, preview_job


def run(config: PruneTokensConfig, run: Run) -> None:
    """Rank a few training images, learn from them, and measure on the test split."""
    context = build_context(config, run)
    check_prompts(context)
    run.report.technique["tower"] = tower_summary(context)
    for name in possible(context, ARMS):
        if not name.startswith("predictor"):
            refuse_missing(name, context, None)
    test = context.images("test")
    dense = embed_dense(context, test)  # before the long part: the dense tower must know what it is judged on
    training, ranked = rank_training(context)
    predictor = train_predictor(context, training, ranked.rank).module
    context = validated(context, training, predictor)
    prompts = tune_prompts(context, training, predictor) if config.prompts != "none" else None
    tuned, prompted = predictor, prompts is not None and prompts.start is not None and prompts.start < context.layer
    if prompted:
        run.log("the prompts change the predictor's inputs: it is trained again on these")
        tuned = train_predictor(context, training, ranked.rank, prompts).module
    artefact.save(
        context,
        tuned,
        prompts,
        ranking=key_of(context, "train"),
        prompted=prompted,
        any_keep=config.tune_keeps == "mix",
    )
    _evaluate(context, predictor, tuned, prompts, test, dense)


def _evaluate(
    context: Context[PruneTokensConfig],
    predictor: Predictor,
    tuned: Predictor,
    prompts: Prompts | None,
    test: Decoded,
    dense: Tensor,
) -> None:
    """Measure on the test images, whose embeddings by the dense tower are given."""
    config = context.config
    evaluation.record(context, result(context, "dense", 1.0, test, dense, dense))
    if config.num_golden:
        some, selector, reference = golden(context, test, dense)
        best = measure(context, "golden", config.keep, some, reference, lambda: prune(context, selector, config.keep))
        evaluation.record(context, best.row)
    found: dict[str, Measured] = {}
    for name in possible(context, ARMS):
        if name == "predictor+tuned" and prompts is None:
            continue
        added = prompts if name == "predictor+tuned" else None
        [keep] = rates(context, name, [config.keep])

        def tower(name: str = name, keep: float = keep, added: Prompts | None = added) -> WrappedTower:
            return prune(context, tuned, keep, added) if added else tower_with(context, name, keep, predictor)

        found[name] = measure(context, name, keep, test, dense, tower, added)
        evaluation.record(context, found[name].row)
        context.run.check_stop()
    for other in possible(context, ("random", "cls-attn")):
        name = f"gain_over_{other.replace('-', '_')}"
        evaluation.record_gain(context, name, found["predictor"].correct, found[other].correct)
    evaluation.record_controls(context, test, dense)
    evaluation.record_mac_ratio(context, "predictor", config.keep)
    shown = Arm("predictor", config.keep, prune(context, predictor, config.keep))
    tower_latency.compare(context, [shown], BATCHES)
    _draw(context, predictor, test)


def _draw(context: Context[PruneTokensConfig], predictor: Predictor, test: Decoded) -> None:
    """Draw; the curve is measured on validation images, as the test split is for the table only."""
    names = possible(context, ("predictor", "cls-attn", "random"))
    selectors = {name: selector_of(name, context, predictor) for name in names}
    shown = test.take(spread(test.labels.numpy(), SHOWN))
    pictures.patches(context, shown, arms(context, names, [context.config.keep], predictor))
    validation = context.validation()
    if validation is None:
        return
    dense = embed(context, validation)
    rows = []
    with context.run.progress("accuracy curve", len(CURVE)) as progress:
        for done, keep in enumerate(CURVE, 1):
            for name, selector in selectors.items():
                tower = partial(prune, context, selector, keep)
                rows.append(measure(context, name, keep, validation, dense, tower).row)
            progress.update(done)
    context.run.report.technique["curve"] = [
        {k: getattr(row, k) for k in ("selector", "keep", "K", "n", "top1", "se")} for row in rows
    ]
    accuracy = float(context.accuracy(dense, validation.labels).mean())
    pictures.accuracy_curve(context, rows, accuracy, f"{len(validation)} validation images")
