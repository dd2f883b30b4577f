"""What encoders make of the windows of a split: computed once for all views, on all processes, kept in the cache."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.cache import Entry
from effvl_cli.core.checkpoint import digest
from effvl_cli.core.errors import DataError
from effvl_cli.core.loop import autocast
from effvl_cli.core.modes import as_found
from effvl_cli.core.run import Run
from effvl_cli.data.clips import BadClipError, ClipSource
from effvl_cli.data.loader import loader_workers
from effvl_cli.engines.cpr_mine.view_encoders import ViewEncoder, shared_geometry
from effvl_cli.engines.cpr_mine.window_stream import (
    Failures,
    Geometry,
    Window,
    WindowStream,
    windows_of,
)
from effvl_cli.techniques.cpr_mine.evaluation_heads import mean_rows


class FeatureOptions(Protocol):
    """The options that say which windows."""

    @property
    def windows(self) -> str:
        """Center or all."""

    @property
    def window_step(self) -> int | None:
        """Frames between them."""

    @property
    def on_bad(self) -> str:
        """What unreadable videos do."""

    @property
    def eval_batch_size(self) -> int:
        """Windows at a time."""

    @property
    def workers(self) -> int | None:
        """Loader processes."""

    @property
    def precision(self) -> str:
        """Of the encoders."""

    @property
    def official_jitter(self) -> bool:
        """Whether the colours of test clips change."""

    @property
    def seed(self) -> int:
        """Of these changes."""


@dataclass(frozen=True)
class WindowFeatures:
    """Rows of all windows that could be read, in the order of the videos.

    Attributes:
        source: the split.
        rows: (R, D) float32 features of each view.
        windows: R of them.
        failures: videos without rows.
    """

    source: ClipSource
    rows: dict[str, Tensor]
    windows: tuple[Window, ...]
    failures: Failures

    @property
    def videos(self) -> NDArray[np.int64]:
        """(V,) numbers of the videos that have rows, ascending."""
        return np.unique(np.array([window.index for window in self.windows], dtype=np.int64))

    @property
    def counts(self) -> list[int]:
        """Rows of each video."""
        _, counts = np.unique(np.array([window.index for window in self.windows]), return_counts=True)
        return [int(count) for count in counts]

    def of_videos(self, rows: Tensor) -> Tensor:
        """(V, D) means over the windows of each video of rows (R, D)."""
        return mean_rows(rows, self.counts)

    @property
    def labels(self) -> Tensor:
        """(V,) of the videos."""
        return torch.from_numpy(np.asarray(self.source.labels)[self.videos])


@dataclass(frozen=True)
class WindowsOf:
    """All windows of a split, and what is told of videos that fail."""

    source: ClipSource
    windows: Sequence[Window]
    geometry: Geometry
    failures: Failures


def window_features(
    encoders: Sequence[ViewEncoder], source: ClipSource, config: FeatureOptions, run: Run
) -> WindowFeatures:
    """What all encoders make of a split; views that the cache has are not computed again.

    Args:
        encoders: one for each view.
        source: the split.
        config: windows and batches.
        run: device, cache and report.

    Raises:
        DataError: an unreadable video, or too many; or none that is long enough.
    """
    asked = windows_asked(encoders, source, config)
    windows, failures = asked.windows, asked.failures
    keys = {e.view: _key(e, source, config) for e in encoders}
    entries = {view: run.cache.entry("clip-features", key) for view, key in keys.items()}
    kept = {view: _stored(entry, run, len(windows), failures) for view, entry in entries.items()}
    missing = [encoder for encoder in encoders if kept[encoder.view] is None]
    if missing:
        fresh = _computed(missing, asked, config, run)
        said = _failures_as_bytes(failures)
        for view, rows in fresh.items():
            kept[view] = rows
            if distributed.is_main():
                entries[view].save("rows", {"rows": rows, "failed": said})
    good = torch.tensor([window.index not in failures.errors for window in windows], dtype=torch.bool)
    used = tuple(window for window, ok in zip(windows, good.tolist(), strict=True) if ok)
    if not used:
        raise DataError(f"no video of {source.name}, {source.split}, can be used", _why(failures))
    whole = {view: found[good] for view, found in kept.items() if found is not None}
    run.report.data(source, num_samples=len({w.index for w in used}), bad_files=len(failures.bad.bad))
    return WindowFeatures(source, whole, used, failures)


def windows_asked(encoders: Sequence[ViewEncoder], source: ClipSource, config: FeatureOptions) -> WindowsOf:
    """The windows of a split that the options say, in the order of the videos.

    Raises:
        DataError: a video whose length cannot be found, or too many.
    """
    failures, geometry = Failures(config.on_bad, len(source)), shared_geometry(encoders)
    center = config.windows == "center"
    windows = windows_of(source, geometry, failures, center=center, step=config.window_step)
    return WindowsOf(source, windows, geometry, failures)


def _why(failures: Failures) -> str:
    counts = ", ".join(f"{reason}: {count}" for reason, count in failures.counts().items())
    return f"Videos by reason: {counts or 'there are none'}. Give shorter --frames, or other data"


def _key(encoder: ViewEncoder, source: ClipSource, config: FeatureOptions) -> dict[str, Any]:
    """All that a row depends on; the windows follow from the lengths, which the fingerprint covers."""
    return {
        "encoder": digest(encoder.network.module.state_dict()),
        "model": encoder.network.name,
        "clips": asdict(encoder.clips),
        "windows": [config.windows, config.window_step],
        "precision": config.precision,
        "jitter": config.seed if config.official_jitter else None,
        "data": [source.name, source.split, source.fingerprint()],
        "versions": [torch.__version__, decoder_version()],
    }


def decoder_version() -> str:
    """Of PyAV; empty where it is not installed."""
    try:
        return metadata.version("av")
    except metadata.PackageNotFoundError:
        return ""


def _stored(entry: Entry, run: Run, count: int, failures: Failures) -> Tensor | None:
    """Rows that an earlier run has stored, whose failures are counted again; None without."""
    found = entry.load("rows", run.warn)
    ours = found is not None and len(found["rows"]) == count
    if distributed.all_reduce_max(int(not ours)) or found is None:
        return None
    for index, reason, message, hint in json.loads(bytes(found["failed"].tolist())):
        if index not in failures.errors:
            failures.meet(BadClipError(message, hint, reason), index)
    return found["rows"]


def _failures_as_bytes(failures: Failures) -> Tensor:
    rows = [
        [index, failures.reason_of(error), error.message, error.hint]
        for index, error in sorted(failures.errors.items())
    ]
    return torch.tensor(list(json.dumps(rows).encode()), dtype=torch.uint8)


def _computed(encoders: Sequence[ViewEncoder], asked: WindowsOf, config: FeatureOptions, run: Run) -> dict[str, Tensor]:
    """(R, D) features of each view for all windows; of a video that failed, zeros."""
    modules = [encoder.network.module for encoder in encoders]
    seed = config.seed if config.official_jitter else None
    makers = {
        encoder.view: (partial(_features, encoder, seed), encoder.network.module.feature_size) for encoder in encoders
    }
    with as_found(*modules, training=False):
        return over_windows(makers, asked, config, run)


def _features(encoder: ViewEncoder, seed: int | None, frames: Tensor, windows: Sequence[Window]) -> Tensor:
    return encoder.features(frames, windows, seed)


Maker = Callable[[Tensor, Sequence[Window]], Tensor]
"""From frames (b, F, H, W, 3) uint8 on the device, and their windows, to rows (b, D) float32."""


def over_windows(
    makers: Mapping[str, tuple[Maker, int]], asked: WindowsOf, config: FeatureOptions, run: Run
) -> dict[str, Tensor]:
    """Make rows of all windows, each process those of its share.

    Args:
        makers: by name; with the number of columns of what each makes.
        asked: R windows.
        config: batches and precision.
        run: device, progress and stop requests.

    Returns:
        (R, D) float32 on the CPU by name, the same on every process; of a video that failed, zeros.
    """
    share = distributed.shard(len(asked.windows))
    mine = asked.windows[share.start : share.stop]
    stream = WindowStream(
        asked.source,
        mine,
        asked.geometry,
        batch_size=config.eval_batch_size,
        workers=loader_workers(config.workers, run.device.type),
        failures=asked.failures,
    )
    places = {window: place for place, window in enumerate(mine)}
    rows = {name: torch.zeros(len(mine), size) for name, (_, size) in makers.items()}
    done = 0
    with run.progress(f"{asked.source.name} {asked.source.split}", len(mine)) as progress:
        for found, frames in stream:
            here = frames.to(run.device, non_blocking=True)
            where = torch.tensor([places[window] for window in found])
            for name, (make, _) in makers.items():
                with autocast(run.device, config.precision):
                    rows[name][where] = make(here, found).float().cpu()
            done += len(found)
            progress.update(done)
            if distributed.world().size == 1:
                run.check_stop()
    _share(asked.failures)
    return {name: distributed.gather_rows(own, len(asked.windows)) for name, own in rows.items()}


def _share(failures: Failures) -> None:
    """Tell every process of the videos that failed on others."""
    own = [[i, failures.reason_of(e), e.message, e.hint] for i, e in sorted(failures.errors.items())]
    for rank in range(distributed.world().size if distributed.world().size > 1 else 0):
        for index, reason, message, hint in distributed.broadcast_json(own, rank):
            if index not in failures.errors:
                failures.meet(BadClipError(message, hint, reason), index)
