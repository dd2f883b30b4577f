"""The encoders that a training begins with and those that stay frozen, and how a run keeps them."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.config.cpr_mine_train import CprMineConfig, TrainConfig
from effvl_cli.core import checkpoint, distributed
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.run import Run
from effvl_cli.data.video_views import make_view
from effvl_cli.engines.cpr_mine.cascades import find_view, named
from effvl_cli.models.clip_encoders import ENCODERS, ClipInput, encoder_folders, load_encoder, save_encoder
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


def views_of_run(run_folder: str) -> list[str]:
    """Views that a run has encoders of."""
    return list(encoder_folders(Path(run_folder)))


def sources_of(config: Config, views: Sequence[str], run_folder: str | None) -> dict[str, str]:
    """Weights of each view: those of --weights, else those of RUN; views without any are left out.

    Raises:
        UsageError: --weights cannot be read, or names a view twice.
        ModelError: RUN holds no encoders.
    """
    found: dict[str, str] = {}
    if run_folder is not None:
        there = {view: str(folder) for view, folder in encoder_folders(Path(run_folder)).items()}
        short = named(list(there))
        for view in views:
            same = [other for other in there if view in (other, short[other])]
            if same:
                found[view] = there[same[0]]
    given: dict[str, str] = {}
    for item in config.weights:
        name, equals, path = item.partition("=")
        if not equals or not path:
            raise UsageError(f"--weights holds {item!r}", "Write VIEW=FILE or VIEW=RUN, e.g. rgb=a.safetensors")
        view = find_view(name, views, "--weights")
        if view in given:
            raise UsageError(f"--weights names {name} twice", "Name each view once")
        given[view] = path
    return found | given


def loaded_encoder(config: Config, run: Run, view: str, weights: str) -> Encoder:
    """The encoder of a run, of a run's folder for the view, or of a file.

    Raises:
        ModelError: weights that are missing, damaged, of another view or another network's: nothing is left random.
    """
    folder = Path(weights)
    if folder.is_dir() and (folder / ENCODERS).is_dir():
        there = encoder_folders(folder)
        matching = [own for found, own in there.items() if view in (found, named(list(there))[found])]
        if not matching:
            raise ModelError(
                f"--weights {view}={weights} holds encoders of {', '.join(there)}", "Give a run that trained this view"
            )
        weights = str(matching[0])
    fallback = clips_of(config, view)
    assert config.model is not None
    name = with_channels(config.model, make_view(view).channels)
    network, clips = load_encoder(weights, default=name, seed=config.seed, log=run.log)
    found = _checked(Encoder(network, clips or fallback))
    count = len(network.module.state_dict())
    run.log(f"{view}: {count} of {count} tensors of {network.name} loaded from {weights}; 0 missing, 0 unexpected")
    if clips is not None and named([clips.view])[clips.view] != named([view])[view]:
        raise ModelError(f"--weights {view}={weights} is an encoder of {clips.view}", "Give weights of that view")
    return found


def keep(run: Run, encoders: Mapping[str, Encoder], first: str) -> None:
    """Save all encoders into `encoders/`, and the one that the run is about as the run's own."""
    names = named(list(encoders))
    folder = run.path(ENCODERS)
    for view, encoder in encoders.items():
        if distributed.is_main():
            save_encoder(folder / names[view], encoder.network, encoder.clips)
    own = encoders[first]
    run.save_model(own.network.module.state_dict(), {**own.network.describe(), "clips": dataclasses.asdict(own.clips)})


def digests(encoders: Mapping[str, Encoder]) -> dict[str, str]:
    """Of the weights of each."""
    return {view: checkpoint.digest(encoder.network.module.state_dict()) for view, encoder in encoders.items()}
