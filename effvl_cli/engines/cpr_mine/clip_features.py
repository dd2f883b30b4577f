"""Features and embeddings of all videos, for the job."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.config.cpr_mine_train import CprMineConfig
from effvl_cli.core.run import Run
from effvl_cli.data.clips import ClipSource
from effvl_cli.data.video_views import make_view
from effvl_cli.engines.cpr_mine.clip_data import carrying
from effvl_cli.engines.cpr_mine.clip_splits import note_failures
from effvl_cli.engines.cpr_mine.encoders import Encoder
from effvl_cli.engines.cpr_mine.view_encoders import ViewEncoder
from effvl_cli.engines.cpr_mine.window_features import window_features


@dataclass(frozen=True)
class Features:
    """Of M videos, on the CPU.

    Attributes:
        backbone: (M, F) pooled.
        embeddings: (M, D) unit rows.
        videos: (M,) numbers of the videos: those that cannot be used are left out.
    """

    backbone: Tensor
    embeddings: Tensor
    videos: Tensor


@dataclass(frozen=True)
class _Windows:
    """Options of `window_features`, as those of the job say."""

    on_bad: str
    workers: int | None
    precision: str
    seed: int
    windows: str
    eval_batch_size: int
    window_step: int | None = None
    official_jitter: bool = False


def features_of(config: CprMineConfig, run: Run, source: ClipSource, encoder: Encoder) -> Features:
    """What an encoder makes of a split; kept in the cache, keyed by the weights and the data."""
    module = encoder.network.module.to(run.device).eval()
    seen = ViewEncoder(encoder.network, encoder.clips, make_view(encoder.view, **encoder.clips.options), encoder.view)
    options = _Windows(
        config.on_bad, config.workers, config.precision, config.seed, config.windows, config.eval_batch_size
    )
    found = window_features([seen], carrying(config, run, source, [encoder.view]), options, run)
    note_failures(run, source, found.failures)
    rows = found.rows[encoder.view]
    embeddings = found.of_videos(seen.embeddings(rows))
    module.eval()
    return Features(found.of_videos(rows), F.normalize(embeddings, dim=1), torch.from_numpy(found.videos))
