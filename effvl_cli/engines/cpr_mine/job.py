"""The whole job: InfoNCE of every view, mining, training with mined positives beside its alternatives, retrieval."""

from typing import Any

import torch
from torch import Tensor

from effvl_cli.config.cpr_mine_train import CprMineConfig
from effvl_cli.core.metrics import standard_error
from effvl_cli.core.run import Run
from effvl_cli.data.clips import ClipSource
from effvl_cli.engines.cpr_mine import job_pictures, job_preview, job_table
from effvl_cli.engines.cpr_mine.alternation import Result, alternate, order_of, pretrain
from effvl_cli.engines.cpr_mine.cascades import named
from effvl_cli.engines.cpr_mine.clip_data import open_clips
from effvl_cli.engines.cpr_mine.clip_features import Features, features_of
from effvl_cli.engines.cpr_mine.encoders import Encoder, fresh_encoder, keep, loaded_encoder, sources_of
from effvl_cli.engines.cpr_mine.mined_figures import Bank, record_mining
from effvl_cli.engines.cpr_mine.view_training import Trainer
from effvl_cli.techniques.cpr_mine.retrieval import KS, centred, chance, hits, nearest

table, preview = job_table.results, job_preview.preview


def run(config: CprMineConfig, run: Run) -> None:
    """Train and measure."""
    order_of(config)
    train, test = (open_clips(config, split) for split in ("train", "test"))
    trainer = Trainer(config, run, train)
    start = _start(config, run, trainer)
    first = order_of(config)[0]
    mining = {"before": record_mining(config, run, _bank(config, run, train, start, "before", first), "_pre")}
    results: dict[str, Result] = {}
    for arm in config.arms:
        results[arm] = alternate(trainer, config, arm, start.encoders)
        run.check_stop()
    last = config.arms[-1]
    bank = _bank(config, run, train, results[last], last, first)
    mining["after"] = record_mining(config, run, bank)
    found: dict[str, Any] = {arm: _retrieve(config, run, (train, test), results[arm], arm) for arm in config.arms}
    _report(config, run, start, results, mining)
    keep(run, results[last].encoders, first)
    job_pictures.draw(run, mining, found, train.classes)


def _start(config: CprMineConfig, run: Run, trainer: Trainer) -> Result:
    """Encoders of all views: those of --weights, and the others trained by InfoNCE."""
    sources = sources_of(config, config.views, None)
    loaded = {view: loaded_encoder(config, run, view, weights) for view, weights in sources.items()}
    fresh = {view: fresh_encoder(config, view) for view in config.views if view not in loaded}
    trained = pretrain(trainer, config, fresh)
    encoders = loaded | trained.encoders
    return Result({view: encoders[view] for view in config.views}, trained.turns)


def _bank(config: CprMineConfig, run: Run, source: ClipSource, result: Result, name: str, first: str) -> Bank:
    """Embeddings of all training clips; the view that is trained comes last, as when it mines."""
    views = [*(view for view in result.encoders if view != first), first]
    rows = {view: _features(config, run, source, result.encoders[view], name).embeddings for view in views}
    return Bank(rows, torch.from_numpy(source.groups), torch.from_numpy(source.labels))


def _features(config: CprMineConfig, run: Run, source: ClipSource, encoder: Encoder, name: str) -> Features:
    return features_of(config, run, source, encoder, f"{name} {encoder.view} {source.split}")


def _retrieve(
    config: CprMineConfig, run: Run, sources: tuple[ClipSource, ClipSource], result: Result, arm: str
) -> dict[str, dict[int, float]]:
    """R@K of every view that the arm has trained, by class; the first one's R@1 is the arm's headline."""
    names, curves = named(list(result.encoders)), {}
    for place, view in enumerate(order_of(config)):
        gallery, asked = (_features(config, run, source, result.encoders[view], arm).backbone for source in sources)
        labels = [torch.from_numpy(source.labels) for source in sources]
        found = nearest(*centred(asked, gallery, "own"), max(KS))
        right = hits(found, labels[1], labels[0])
        name = arm if not place else f"{arm}_{names[view]}"
        _metric(run, f"r1_{name}", right[1])
        curves[names[view]] = {k: float(values.mean()) for k, values in right.items()}
        if not place:
            _same_palette(run, sources, found.indices[:, 0], arm)
            if arm == config.arms[-1]:
                for k, values in right.items():
                    _metric(run, f"retrieval_r{k}", values)
                run.report.technique["chance"] = {str(k): value for k, value in chance(labels[1], labels[0]).items()}
    return curves


def _metric(run: Run, name: str, right: Tensor) -> None:
    run.report.metric(name, float(right.mean()), split="test", n=len(right), se=standard_error(right))


def _same_palette(run: Run, sources: tuple[ClipSource, ClipSource], neighbours: Tensor, arm: str) -> None:
    """How often the nearest clip has the query's colours, where the data know their colours."""
    train, test = (getattr(source, "palettes", None) for source in sources)
    if train is not None and test is not None:
        same = (torch.as_tensor(train)[neighbours] == torch.as_tensor(test)).float()
        run.report.metric(f"same_palette_{arm}", float(same.mean()), split="test", n=len(same), higher_is_better=False)


def _report(config: CprMineConfig, run: Run, start: Result, results: dict[str, Result], mining: dict[str, Any]) -> None:
    for source in ("train", "test"):
        run.report.data(open_clips(config, source))
    encoder = next(iter(results[config.arms[-1]].encoders.values()))
    run.report.model(encoder.network.name, encoder.network.source, encoder.network.module)
    run.report.technique.update(
        views=list(config.views),
        order=order_of(config),
        siblings=config.siblings,
        self_drop=config.self_drop,
        pretrain=start.turns,
        arms={arm: result.turns for arm, result in results.items()},
        mining=mining,
    )
