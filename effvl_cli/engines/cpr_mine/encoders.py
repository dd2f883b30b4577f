"""The encoders that a training begins with and those that stay frozen, and how a run keeps them."""

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.config.cpr_mine_train import CprMineConfig, TrainConfig
from effvl_cli.core import distributed
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.run import Run
from effvl_cli.data.video_views import make_view
from effvl_cli.engines.cpr_mine.cascades import named, short_name
from effvl_cli.engines.cpr_mine.view_weights import weights_by_view
from effvl_cli.models import network as networks
from effvl_cli.models.clip_encoders import (
    ENCODERS,
    ClipInput,
    encoder_folders,
    encoder_manifest,
    load_encoder,
    save_encoder,
)
from effvl_cli.models.network import Network
from effvl_cli.models.video import check_clip, with_channels

Config = CprMineConfig | TrainConfig
CROPS = {128: 224}
"""Side of the square that is cut from a frame for clips of a side; of others, as many px as the clip has."""


@dataclass(frozen=True)
class Encoder:
    """A network and the clips that it takes."""

    network: Network
    clips: ClipInput

    @property
    def view(self) -> str:
        """What it sees."""
        return self.clips.view

    def copied(self) -> "Encoder":
        """The same with weights of its own."""
        network = dataclasses.replace(self.network, module=copy.deepcopy(self.network.module))
        return dataclasses.replace(self, network=network)


def clips_of(config: Config, view: str) -> ClipInput:
    """The clips of the options, in a view."""
    assert config.frames is not None and config.image_size is not None
    size = config.image_size
    return ClipInput(view, config.frames, config.stride, size, CROPS.get(size, size))


def fresh_encoder(config: Config, view: str) -> Encoder:
    """An encoder with random weights."""
    assert config.model is not None
    clips = clips_of(config, view)
    name = with_channels(config.model, make_view(view).channels)
    network, _ = load_encoder("none", default=name, model=name, seed=config.seed)
    return _checked(Encoder(network, clips))


def _checked(encoder: Encoder) -> Encoder:
    """Refuse clips of which nothing would be left before pooling."""
    clips = encoder.clips
    check_clip(encoder.network, clips.frames, clips.size, clips.size)
    return encoder


@dataclass(frozen=True)
class Start:
    """What the encoder of a view begins with.

    Attributes:
        view: its full name, as the weights say it, e.g. "gradflow" where a user wrote "flow".
        weights: run folder or file; None: random ones.
    """

    view: str
    weights: str | None


def starts_of(config: Config, names: Sequence[str], run_folder: str | None) -> dict[str, Start]:
    """Weights of each view that a user names: those of --weights, else those of RUN, else random ones.

    Raises:
        UsageError: --weights cannot be read, names a view twice, or one that is not asked for.
        ModelError: RUN or a folder of --weights holds no encoder, or none of that view.
    """
    there = {view: str(folder) for view, folder in encoder_folders(Path(run_folder)).items()} if run_folder else {}
    given, found = weights_by_view(config.weights), {}
    for name in names:
        key = _matching(name, given)
        if key is not None:
            found[name] = _start(name, given.pop(key))
            continue
        view = _matching(name, there)
        found[name] = Start(name, None) if view is None else Start(view, there[view])
    if given:
        raise UsageError(
            f"--weights names {next(iter(given))}, which is no view here", f"The views: {', '.join(names)}"
        )
    return found


def _matching(name: str, known: Iterable[str]) -> str | None:
    """The one of the views that has this name, or this short name."""
    found = [view for view in known if view == name] or [v for v in known if short_name(v) == short_name(name)]
    return found[0] if len(found) == 1 else None


def _start(name: str, weights: str) -> Start:
    """What a file or folder holds for a view; a file without a manifest is taken as it is named.

    Raises:
        ModelError: a folder without an encoder of the view.
    """
    folder = Path(weights)
    if not folder.is_dir():
        clips = networks.manifest_of(weights).get("clips") or {}
        return Start(str(clips.get("view", name)), weights)
    there = encoder_folders(folder)
    view = _matching(name, there)
    if view is None:
        raise ModelError(
            f"--weights {name}={weights} holds encoders of {', '.join(there)}", "Give a run that trained this view"
        )
    return Start(view, str(there[view]))


def encoder_of(config: Config, run: Run, start: Start) -> Encoder:
    """A fresh encoder, or the one of a run or file: then nothing of it is left random.

    Raises:
        ModelError: weights that are missing, damaged, of another view or another network's.
    """
    if start.weights is None:
        return fresh_encoder(config, start.view)
    assert config.model is not None
    name = with_channels(config.model, make_view(start.view).channels)
    network, clips = load_encoder(start.weights, default=name, seed=config.seed, log=run.log)
    if clips is not None and short_name(clips.view) != short_name(start.view):
        raise ModelError(
            f"--weights {start.view}={start.weights} is an encoder of {clips.view}", "Give weights of that view"
        )
    count = len(network.module.state_dict())
    run.log(f"{start.view}: {count} of {count} tensors of {network.name} loaded from {start.weights}, none missing")
    return _checked(Encoder(network, clips or clips_of(config, start.view)))


def keep(run: Run, encoders: Mapping[str, Encoder], first: str) -> None:
    """Save all encoders into `encoders/`, and the one that the run is about as the run's own."""
    names = named(list(encoders))
    folder = run.path(ENCODERS)
    for view, encoder in encoders.items():
        if distributed.is_main():
            save_encoder(folder / names[view], encoder.network, encoder.clips)
    own = encoders[first]
    run.save_model(own.network.module.state_dict(), encoder_manifest(own.network, own.clips))
