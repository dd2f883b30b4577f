"""The encoders that `embed` and `eval` work with, and what each is given to see."""

import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from effvl_cli.config.cpr_mine_eval import EmbedConfig, EvalConfig
from effvl_cli.core import seeds
from effvl_cli.core.errors import MissingPackageError, ModelError, UsageError
from effvl_cli.core.find_run import find_run
from effvl_cli.core.run import Run
from effvl_cli.data.clip_crops import Crops, crops_of
from effvl_cli.data.clip_tuning import TEST_JITTER, jittered
from effvl_cli.data.video_views import View, is_motion, make_view
from effvl_cli.engines.cpr_mine.cascades import find_view, keys_of
from effvl_cli.engines.cpr_mine.view_weights import weights_by_view
from effvl_cli.engines.cpr_mine.window_stream import Geometry, Window
from effvl_cli.models.clip_encoders import ClipInput, encoder_folders, load_encoder
from effvl_cli.models.network import Network
from effvl_cli.models.video import check_clip, with_channels

Config = EmbedConfig | EvalConfig
FRAMES, STRIDE, SIZE, CROP = 32, 1, 128, 224  # of CoCLR; for encoders that do not say what they were trained on
DEFAULT = "s3d"
PART = 4096  # rows that are projected at once


@dataclass(frozen=True)
class ViewEncoder:
    """An encoder, the clips that it takes, and what makes its view of frames.

    Attributes:
        network: of kind "video".
        clips: what it takes.
        make: its view.
        key: the view in names of figures, e.g. "rgb", "flow".
    """

    network: Network
    clips: ClipInput
    make: View
    key: str

    @property
    def view(self) -> str:
        """What it sees."""
        return self.clips.view

    @property
    def is_flow(self) -> bool:
        """Whether its first channel is a horizontal motion."""
        return is_motion(self.view)

    @property
    def geometry(self) -> Geometry:
        """Frames that it needs."""
        return Geometry(self.clips.frames, self.clips.stride, self.make.context)

    def copied_backbone(self) -> nn.Module:
        """With weights of its own."""
        found: nn.Module = copy.deepcopy(self.network.module.backbone)
        return found

    def inputs(self, frames: Tensor, crops: Crops) -> Tensor:
        """What it sees of frames.

        Args:
            frames: (B, F, H, W, 3) uint8 on its device; more than it needs are left out at the end.
            crops: which squares.

        Returns:
            (K, B, C, T, size, size) float32.
        """
        clips = self.make(frames[:, : self.clips.frames + self.make.context])[:, :, : self.clips.frames]
        scale = min(clips.shape[-2:]) / min(frames.shape[2:4])  # a view may be smaller than its frames
        return crops_of(clips, max(1, round(self.clips.crop * scale)), self.clips.size, crops, flow=self.is_flow)

    def test_clips(self, frames: Tensor, windows: Sequence[Window], crops: Crops, seed: int | None) -> Tensor:
        """`inputs` in test; with a seed, the colours of some clips change, as the official code does."""
        clips = self.inputs(frames, crops)
        if seed is None or self.is_flow or clips.shape[2] != 3:
            return clips
        changed = []
        for number, crop in enumerate(clips):
            for window, clip in zip(windows, crop, strict=True):
                with seeds.global_stream(seed, "official-jitter", window.index, window.start, number):
                    changed.append(jittered(clip, TEST_JITTER))
        return torch.stack(changed).view_as(clips)

    def features(self, frames: Tensor, windows: Sequence[Window], seed: int | None = None) -> Tensor:
        """(B, D) float32, before the projection, of the centres of clips.

        Args:
            frames: (B, F, H, W, 3) uint8 on its device.
            windows: B of them.
            seed: of changes of colours, or None for no changes.
        """
        with torch.inference_mode():
            found: Tensor = self.network.module.backbone(self.test_clips(frames, windows, "center", seed)[0]).float()
        return found

    def embeddings(self, features: Tensor) -> Tensor:
        """(B, dim) float32 on the CPU, of features (B, D)."""
        projection = self.network.module.projection
        with torch.inference_mode():
            parts = [projection(part.to(projection[0].weight.device)).float().cpu() for part in features.split(PART)]
        return torch.cat(parts).clone()  # not an inference tensor


def open_encoders(config: Config, run: Run) -> list[ViewEncoder]:
    """The encoders of --views, in order, in evaluation mode on the device.

    Raises:
        UsageError: --weights cannot be read, a view without weights, or clips that an encoder cannot take.
        ModelError: weights that do not fit.
    """
    given = weights_by_view(config.weights)
    found = {} if config.run is None and given else encoder_folders(find_run("cpr-mine", config.run))
    sources = {**{view: str(folder) for view, folder in found.items()}, **given}
    views = tuple(_find(name, sources) for name in config.views)
    keys = keys_of(views or tuple(sources))
    return [_open(config, run, view, sources[view], key) for view, key in keys.items()]


def _find(name: str, sources: Mapping[str, str]) -> str:
    """The view of --views that a name means.

    Raises:
        UsageError: there is no such view, or no encoder of it.
    """
    try:
        return find_view(name, tuple(sources), "--views")
    except UsageError as error:
        with contextlib.suppress(MissingPackageError):
            make_view(name)
        raise UsageError(
            f"--views names the view {name!r}, and there are encoders of {', '.join(sources)} alone",
            f"Add --weights {name}=FILE, or train one: effvl cpr-mine train --view {name} --mine-with none",
        ) from error


def _open(config: Config, run: Run, view: str, weights: str, key: str) -> ViewEncoder:
    folders: Mapping[str, Path] = encoder_folders(Path(weights)) if Path(weights).is_dir() else {}
    if folders and view not in folders:
        raise ModelError(
            f"--weights {view}={weights} holds encoders of {', '.join(folders)}", "Give a run that trained this view"
        )
    weights = str(folders.get(view, weights))
    plain = make_view(view)
    default = with_channels(config.model or DEFAULT, plain.channels)
    network, saved = load_encoder(weights, default=default, seed=config.seed, log=run.log)
    if saved is not None and saved.view != view:
        raise ModelError(f"--weights {view}={weights} is an encoder of {saved.view}", "Give weights of that view")
    clips = _asked(config, saved or ClipInput(view, FRAMES, STRIDE, SIZE, CROP))
    make = make_view(view, **clips.options) if clips.options else plain
    check_clip(network, clips.frames, clips.size, clips.size)
    network.module.to(run.device).eval()
    return ViewEncoder(network, clips, make, key)


def _asked(config: Config, clips: ClipInput) -> ClipInput:
    """The clips of an encoder, but for what the options say."""
    return dataclasses.replace(
        clips,
        frames=config.frames or clips.frames,
        stride=config.stride or clips.stride,
        size=config.image_size or clips.size,
        crop=config.crop or clips.crop,
    )


def shared_geometry(encoders: Sequence[ViewEncoder]) -> Geometry:
    """Frames that are enough for all of the encoders, so that each video is decoded once.

    Raises:
        UsageError: they were trained on clips of different lengths or strides.
    """
    kinds = {(encoder.clips.frames, encoder.clips.stride) for encoder in encoders}
    if len(kinds) > 1:
        shown = ", ".join(f"{e.view}: {e.clips.frames} frames, stride {e.clips.stride}" for e in encoders)
        raise UsageError(
            f"the encoders take different clips ({shown})", "Give --frames and --stride, or one of --views"
        )
    return max((encoder.geometry for encoder in encoders), key=lambda geometry: geometry.context)
