"""The whole job: InfoNCE of every view, mining, training with mined positives beside its alternatives, retrieval."""

from typing import Any

import torch
from torch import Tensor

from effvl_cli.config.cpr_mine_train import CprMineConfig
from effvl_cli.core.errors import DataError
from effvl_cli.core.metrics import standard_error
from effvl_cli.core.run import Run
from effvl_cli.data.clips import ClipSource
from effvl_cli.engines.cpr_mine import job_pictures, job_preview, job_table
from effvl_cli.engines.cpr_mine.alternation import Result, alternate, order_of, pretrain
from effvl_cli.engines.cpr_mine.cascades import keys_of
from effvl_cli.engines.cpr_mine.clip_data import open_clips
from effvl_cli.engines.cpr_mine.clip_features import features_of
from effvl_cli.engines.cpr_mine.contact_sheet import draw_sheets, middle_frames
from effvl_cli.engines.cpr_mine.encoders import Start, encoder_of, keep, starts_of
from effvl_cli.engines.cpr_mine.mined_figures import Bank, cascades_of, record_mining
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
    mining = {"before": record_mining(config, run, _bank(config, run, train, start, first), "_pre")}
    results: dict[str, Result] = {}
    for arm in config.arms:
        results[arm] = alternate(trainer, config, arm, start.encoders)
        run.check_stop()
    last = config.arms[-1]
    bank = _bank(config, run, train, results[last], first)
    mining["after"] = record_mining(config, run, bank)
    found: dict[str, Any] = {arm: _retrieve(config, run, (train, test), results[arm], arm) for arm in config.arms}
    _report(config, run, start, results, mining)
    trainer.note_failures()
    keep(run, results[last].encoders, first)
    job_pictures.draw(run, mining, found, train.classes)
    _sheets(config, run, train, bank)


def _start(config: CprMineConfig, run: Run, trainer: Trainer) -> Result:
    """Encoders of all views: those of --weights, and the others trained by InfoNCE."""
    starts = starts_of(config, config.views, None)
    encoders = {view: encoder_of(config, run, Start(view, start.weights)) for view, start in starts.items()}
    fresh = {view: encoders[view] for view, start in starts.items() if start.weights is None}
    trained = pretrain(trainer, config, fresh)
    encoders |= trained.encoders
    return Result({view: encoders[view] for view in config.views}, trained.turns)


def _bank(config: CprMineConfig, run: Run, source: ClipSource, result: Result, first: str) -> Bank:
    """Embeddings of all training clips; the view that is trained comes last, as when it mines."""
    views = [*(view for view in result.encoders if view != first), first]
    found = {view: features_of(config, run, source, result.encoders[view]) for view in views}
    videos = found[first].videos
    if any(not torch.equal(part.videos, videos) for part in found.values()):
        raise DataError("some videos can be read for one view and not for another", "Give --on-bad error to see which")
    groups, labels = (torch.from_numpy(part)[videos] for part in (source.groups, source.labels))
    return Bank({view: part.embeddings for view, part in found.items()}, groups, labels, videos)


def _sheets(config: CprMineConfig, run: Run, source: ClipSource, bank: Bank) -> None:
    """Some queries and what each stage of the cascade ranks first."""
    frame = middle_frames(source)
    draw_sheets(
        run,
        lambda row: frame(int(bank.videos[row])),
        bank.rows,
        cascades_of(config, bank)["cascade"],
        forbid=bank.forbid,
        labels=bank.labels.numpy(),
        classes=source.classes,
        seed=config.seed,
    )


def _retrieve(
    config: CprMineConfig, run: Run, sources: tuple[ClipSource, ClipSource], result: Result, arm: str
) -> dict[str, dict[int, float]]:
    """R@K of every view that the arm has trained, by class; the first one's R@1 is the arm's headline."""
    names, curves = keys_of(list(result.encoders)), {}
    for place, view in enumerate(order_of(config)):
        gallery, asked = (features_of(config, run, source, result.encoders[view]) for source in sources)
        labels = [
            torch.from_numpy(source.labels)[part.videos] for source, part in zip(sources, (gallery, asked), strict=True)
        ]
        found = nearest(*centred(asked.backbone, gallery.backbone, "own"), max(KS))
        right = hits(found, labels[1], labels[0])
        name = arm if not place else f"{arm}_{names[view]}"
        _metric(run, f"r1_{name}", right[1])
        curves[names[view]] = {k: float(values.mean()) for k, values in right.items()}
        if not place:
            _same_palette(run, sources, (gallery.videos[found.indices[:, 0]], asked.videos), arm)
            if arm == config.arms[-1]:
                for k, values in right.items():
                    _metric(run, f"retrieval_r{k}", values)
                run.report.technique["chance"] = {str(k): value for k, value in chance(labels[1], labels[0]).items()}
    return curves


def _metric(run: Run, name: str, right: Tensor) -> None:
    run.report.metric(name, float(right.mean()), split="test", n=len(right), se=standard_error(right))


def _same_palette(run: Run, sources: tuple[ClipSource, ClipSource], pairs: tuple[Tensor, Tensor], arm: str) -> None:
    """How often the nearest clip has the query's colours, where the data know their colours."""
    known = [getattr(source, "palettes", None) for source in sources]
    if known[0] is not None and known[1] is not None:
        same = (torch.as_tensor(known[0])[pairs[0]] == torch.as_tensor(known[1])[pairs[1]]).float()
        run.report.metric(f"same_palette_{arm}", float(same.mean()), split="test", n=len(same), higher_is_better=False)


def _report(config: CprMineConfig, run: Run, start: Result, results: dict[str, Result], mining: dict[str, Any]) -> None:
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
