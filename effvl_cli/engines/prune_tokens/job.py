"""The whole job: rank, train the predictor, tune prompts, evaluate, time, draw."""

from typing import Any

from torch import Tensor

from effvl_cli.config.prune_tokens import PruneTokensConfig
from effvl_cli.core import distributed
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_tokens import artefact, evaluation, latency, pictures, setup, summary
from effvl_cli.engines.prune_tokens.evaluation import arm, embed, possible, prune, refuse_missing, result, selector_of
from effvl_cli.engines.prune_tokens.oracle import golden
from effvl_cli.engines.prune_tokens.predictor import train_predictor
from effvl_cli.engines.prune_tokens.search import rank_training
from effvl_cli.engines.prune_tokens.setup import Images, Setup
from effvl_cli.engines.prune_tokens.start import check_prompts
from effvl_cli.engines.prune_tokens.tuning import tune_prompts

CURVE = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
BATCHES = (1, 32)
SHOWN = 8
ARMS = ("predictor", "predictor+tuned", "cls-attn", "evit", "tome", "grid", "center", "random")

table = summary.results


def run(config: PruneTokensConfig, run: Run) -> None:
    """Rank few training images, learn from them, and measure on the test split."""
    here = setup.build(config, run)
    check_prompts(here)
    run.report.technique["tower"] = tower_summary(here)
    for name in possible(here, tuple(evaluation.CLS_ARMS)):
        refuse_missing(name, here, None)
    training, ranked = rank_training(here)
    predictor = train_predictor(here, training, ranked.rank)
    prompts = tune_prompts(here, training, predictor) if config.prompts != "none" else None
    tuned, prompted = predictor, prompts is not None and prompts.start is not None and prompts.start < here.layer
    if prompted:
        run.log("the prompts change what the predictor reads: it is trained anew on that")
        tuned = train_predictor(here, training, ranked.rank, prompts)
    artefact.save(here, tuned, prompts, prompted=prompted)
    _evaluate(here, predictor, tuned, prompts)


def tower_summary(here: Setup) -> dict[str, Any]:
    """Sizes of the tower."""
    shape = here.shape
    return {"N": shape.num_patches, "D": shape.width, "L": shape.depth, "P": shape.num_prefix, "layer": here.layer}


def _evaluate(here: Setup, predictor: Any, tuned: Any, prompts: Any) -> None:
    config = here.config
    test = here.images("test")
    dense = embed(here, test)
    evaluation.record(here, result(here, "dense", 1.0, test, dense, dense))
    if config.num_golden:
        some, selector, reference = golden(here, test, dense)
        pruned = embed(here, some, prune(here, selector, config.keep))
        evaluation.record(here, result(here, "golden", config.keep, some, pruned, reference))
    embeddings: dict[str, Tensor] = {}
    for name in possible(here, ARMS):
        if name == "predictor+tuned" and prompts is None:
            continue
        added = prompts if name == "predictor+tuned" else None
        vision = prune(here, tuned, config.keep, added) if added else arm(here, name, config.keep, predictor)
        embeddings[name] = embed(here, test, vision)
        evaluation.record(here, result(here, name, config.keep, test, embeddings[name], dense, added))
        here.run.check_stop()
    for other in possible(here, ("random", "cls-attn")):
        name = f"gain_over_{other.replace('-', '_')}"
        evaluation.record_gain(here, name, embeddings["predictor"], embeddings[other], test.labels)
    evaluation.record_controls(here, test, dense)
    evaluation.record_mac_ratio(here, "predictor", config.keep)
    _time(here, predictor)
    _draw(here, predictor, test)


def _time(here: Setup, predictor: Any) -> None:
    config, report = here.config, here.run.report
    pruned = latency.Arm("predictor", config.keep, prune(here, predictor, config.keep))
    rows = latency.measure(here, [pruned], BATCHES)
    report.technique["bench"] = rows
    for row in rows:
        report.metric(f"speedup_b{row['batch']}", row["speedup"], unit="ratio")
    pictures.latency_bars(here, rows)
    distributed.barrier()


def _draw(here: Setup, predictor: Any, test: Images) -> None:
    """The curve is drawn on validation images: the test split serves the table alone."""
    names = possible(here, ("predictor", "cls-attn", "random"))
    selectors = {name: selector_of(name, here, predictor) for name in names}
    pictures.kept_patches(here, test.take(pictures.spread(len(test), SHOWN)), selectors, [here.config.keep])
    validation = here.validation()
    if validation is None:
        return
    dense = embed(here, validation)
    rows = []
    with here.run.progress("accuracy curve", len(CURVE)) as progress:
        for done, keep in enumerate(CURVE, 1):
            for name, selector in selectors.items():
                pruned = embed(here, validation, prune(here, selector, keep))
                rows.append(result(here, name, keep, validation, pruned, dense))
            progress.update(done)
    here.run.report.technique["curve"] = [
        {k: row[k] for k in ("selector", "keep", "K", "n", "top1", "se")} for row in rows
    ]
    accuracy = float(here.accuracy(dense, validation.labels).mean())
    pictures.accuracy_curve(here, rows, accuracy, f"{len(validation)} validation images")
