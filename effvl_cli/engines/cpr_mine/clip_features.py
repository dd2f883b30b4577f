"""Features and embeddings of the middle clips of all videos."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.config.cpr_mine_train import CprMineConfig
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from effvl_cli.data.clips import ClipSource
from effvl_cli.data.video_views import make_view
from effvl_cli.engines.cpr_mine.encoders import Encoder


@dataclass(frozen=True)
class Features:
    """Of M clips, on the CPU.

    Attributes:
        backbone: (M, F) pooled.
        embeddings: (M, D) unit rows.
    """

    backbone: Tensor
    embeddings: Tensor


def features_of(config: CprMineConfig, run: Run, source: ClipSource, encoder: Encoder, name: str) -> Features:
    """STANDIN until EVAL's lands."""

    def make() -> dict[str, Tensor]:
        clips, module = encoder.clips, encoder.network.module.to(run.device).eval()
        view = make_view(encoder.view, **clips.options)
        parts = []
        for first in range(0, len(source), 256):
            frames = []
            for index in range(first, min(first + 256, len(source))):
                length = source.num_frames(index)
                need = clips.frames + view.context
                frames.append(torch.from_numpy(source.read(index, max(0, length - need) // 2, need, clips.stride)))
            x = view(torch.stack(frames).to(run.device))[:, :, : clips.frames]
            top = (x.shape[-1] - clips.size) // 2
            x = x[..., top : top + clips.size, top : top + clips.size]
            with torch.no_grad():
                parts.append(module.backbone(x))
        backbone = torch.cat(parts)
        with torch.no_grad():
            embeddings = F.normalize(module.projection(backbone), dim=1)
        return {"backbone": backbone.cpu(), "embeddings": embeddings.cpu()}

    found = Phases.of(run).tensors(f"{name} features", make)
    return Features(found["backbone"], found["embeddings"])
