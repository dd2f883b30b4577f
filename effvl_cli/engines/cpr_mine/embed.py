"""`effvl cpr-mine embed`: what the encoders of several views make of the clips of a data set."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.config.cpr_mine_eval import EmbedConfig
from effvl_cli.core import seeds
from effvl_cli.core.checkpoint import digest
from effvl_cli.core.metrics import standard_error
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.table import Cell, Table, percent
from effvl_cli.data.clips import ClipSource
from effvl_cli.engines.common.view_folder import write_views
from effvl_cli.engines.cpr_mine.clip_data import carrying, open_clips
from effvl_cli.engines.cpr_mine.clip_splits import note_failures
from effvl_cli.engines.cpr_mine.encoding_cost import cost_of
from effvl_cli.engines.cpr_mine.view_encoders import ViewEncoder, open_encoders
from effvl_cli.engines.cpr_mine.window_features import WindowFeatures, decoder_version, window_features
from effvl_cli.techniques.cpr_mine.retrieval import centred, nearest

ASKED = 2000  # rows at most whose nearest neighbour is looked for


def preview(config: EmbedConfig) -> list[Table]:
    """What `--dry-run` shows besides the options."""
    run = unopened("cpr-mine embed", config)
    source = open_clips(config, config.split)
    return [cost_of(config, run, open_encoders(config, run), [source])]


def run(config: EmbedConfig, run: Run) -> None:
    """Write the arrays, and how often the nearest other row is one of the same video or class."""
    encoders = open_encoders(config, run)
    source = carrying(config, run, open_clips(config, config.split), [encoder.view for encoder in encoders])
    run.report.model(encoders[0].network.name, encoders[0].network.source, encoders[0].network.module)
    found = window_features(encoders, source, config, run)
    note_failures(run, source, found.failures)
    videos = np.array([window.index for window in found.windows]) if config.window_ids else found.videos
    rows = {encoder.view: _rows(config, encoder, found) for encoder in encoders}
    labels, groups = np.asarray(source.labels)[videos], np.asarray(source.groups)[videos]
    write_views(
        run,
        {view: part.numpy() for view, part in rows.items()},
        _names(source, found, windows=config.window_ids),
        labels=labels if (labels >= 0).any() else None,
        groups=groups,
        about=_about(config, source, encoders),
    )
    run.report.technique.update(
        rows=len(videos),
        videos=len(found.videos),
        layer=config.layer,
        views=[{"view": e.view, "key": e.key, "model": e.network.name, "dim": rows[e.view].shape[1]} for e in encoders],
    )
    for encoder in encoders:
        if config.window_ids:
            _same_video(run, encoder, rows[encoder.view], videos)
        else:
            _same_class(run, encoder, rows[encoder.view], labels, groups)


def _rows(config: EmbedConfig, encoder: ViewEncoder, found: WindowFeatures) -> Tensor:
    """A row for each window or video: features or embeddings."""
    rows = found.rows[encoder.view]
    if config.layer == "embedding":
        rows = encoder.embeddings(rows)
    return rows if config.window_ids else found.of_videos(rows)


def _names(source: ClipSource, found: WindowFeatures, *, windows: bool) -> list[str]:
    if windows:
        return [f"{source.ids[window.index]}#{max(0, window.start)}" for window in found.windows]
    return [source.ids[int(index)] for index in found.videos]


def _about(config: EmbedConfig, source: ClipSource, encoders: Sequence[ViewEncoder]) -> dict[str, Any]:
    """What made the arrays."""
    return {
        "data": config.data,
        "data_root": config.data_root,
        "split": config.split,
        "fingerprint": source.fingerprint(),
        "classes": list(source.classes),
        "layer": config.layer,
        "windows": config.windows,
        "window_step": config.window_step,
        "window_ids": config.window_ids,
        "decoder": decoder_version(),
        "of": {
            e.view: {
                "model": e.network.name,
                "weights": digest(e.network.module.state_dict()),
                **asdict(e.clips),
            }
            for e in encoders
        },
    }


def _same_video(run: Run, encoder: ViewEncoder, rows: Tensor, videos: NDArray[np.int64]) -> None:
    """Share of the windows, of videos with several, whose nearest other window is of the same video."""
    _, inverse, counts = np.unique(videos, return_inverse=True, return_counts=True)
    several = torch.from_numpy(np.flatnonzero(counts[inverse] > 1))
    _note_nearest(run, f"window_r1_{encoder.key}", rows, torch.from_numpy(videos), several)


def _same_class(
    run: Run, encoder: ViewEncoder, rows: Tensor, labels: NDArray[np.int64], groups: NDArray[np.int64]
) -> None:
    """Share of the labelled videos whose nearest video has their class; those of one source count as one."""
    _, first = np.unique(groups, return_index=True)
    kept = torch.from_numpy(np.sort(first))
    own = torch.from_numpy(labels)[kept]
    counts = {label: int((own == label).sum()) for label in own.unique().tolist()}
    asked = torch.tensor(
        [k for k, label in enumerate(own.tolist()) if label >= 0 and counts[label] > 1], dtype=torch.int64
    )
    _note_nearest(run, f"nearest_class_{encoder.key}", rows[kept], own, asked)


def _note_nearest(run: Run, name: str, rows: Tensor, truth: Tensor, asked: Tensor) -> None:
    """R@1 without itself, of some rows among all, and that of a random order."""
    if not len(asked):
        return
    if len(asked) > ASKED:
        asked = asked[torch.randperm(len(asked), generator=seeds.generator(0, "nearest"))[:ASKED].sort().values]
    unit, _ = centred(rows, rows, "own")
    found = nearest(unit[asked], unit, 1, without=asked).indices[:, 0]
    right = (truth[found] == truth[asked]).float()
    run.report.metric(name, float(right.mean()), n=len(asked), se=standard_error(right))
    alike = torch.stack([(truth == label).sum() - 1 for label in truth[asked]]).double()
    run.report.technique.setdefault("chance", {})[name] = float((alike / (len(truth) - 1)).mean())


def table(report: Report) -> Table:
    """A row for each view."""
    about = report.technique

    def cells(row: dict[str, Any]) -> tuple[Cell, ...]:
        key = row["key"]
        names = [name for name in (f"window_r1_{key}", f"nearest_class_{key}") if name in report.metrics]
        shown: list[Cell] = [None, None, None]
        if names:
            metric = report.metrics[names[0]]
            shown = [percent(metric.value), percent(metric.se, 2), percent(about["chance"][names[0]])]
        return row["view"], row["model"], row["dim"], about["rows"], *shown

    same = "video" if any(name.startswith("window_r1") for name in report.metrics) else "class"
    columns = ("view", "encoder", "dim", "rows", f"nearest: same {same} %", "± SE", "chance %")
    data = report.data[0]
    notes = tuple(
        f"left out of {split}: {', '.join(f'{count} {reason}' for reason, count in counts.items())}"
        for split, counts in about.get("bad_videos", {}).items()
    )
    return Table(f"{about['layer']} of {data.name}, {data.split}", columns, tuple(map(cells, about["views"])), notes)
