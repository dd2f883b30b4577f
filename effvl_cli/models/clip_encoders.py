"""Encoders of runs: what clips each was trained on, where a run keeps them, and how they are saved and loaded.

`RUN/checkpoint.safetensors` is the encoder that the run was about; those of other views lie in `RUN/encoders/NAME/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from effvl_cli.config.options import ModelOptions
from effvl_cli.core.checkpoint import CHECKPOINT, MANIFEST, read_manifest, save_model
from effvl_cli.core.errors import ModelError
from effvl_cli.models import network as networks
from effvl_cli.models.network import Network

ENCODERS = "encoders"
_CLIPS = "clips"


@dataclass(frozen=True)
class ClipInput:
    """The clips that an encoder takes.

    Attributes:
        view: as `data.video_views.make_view` takes it.
        frames: of a clip, before the view is made of them.
        stride: between frames.
        size: side in px.
        crop: side in px of the square that is cut from a frame and resized to `size`: 224 to 128 as in CoCLR, 20 to 20
            for moving shapes; of smaller frames, the largest square.
        options: of the view.
    """

    view: str
    frames: int
    stride: int = 1
    size: int = 128
    crop: int = 224
    options: Mapping[str, Any] = field(default_factory=dict)


def encoder_manifest(network: Network, clips: ClipInput, **more: Any) -> dict[str, Any]:
    """What the manifest beside an encoder says, for `Run.save_model`.

    Args:
        network: of kind "video".
        clips: what it takes.
        more: e.g. the method, the data and the epochs.
    """
    return {**network.describe(), _CLIPS: asdict(clips), **more}


def save_encoder(folder: Path, network: Network, clips: ClipInput, **more: Any) -> None:
    """Write an encoder and its manifest into a folder, which is made: one below `run.path(ENCODERS)`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / CHECKPOINT, network.module.state_dict(), encoder_manifest(network, clips, **more))


def load_encoder(
    weights: str | None,
    *,
    default: str,
    model: str | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    log: Callable[[str], None] | None = None,
) -> tuple[Network, ClipInput | None]:
    """An encoder by name, run folder or file, and the clips that it was trained on; None where a file does not say.

    Args:
        weights: run folder (also one of `encoder_folders`), file, or "none" for random weights.
        default: name, where neither `model` nor the checkpoint gives one.
        model: registry name.
        seed: of random weights.
        options: which network of a file, and its normalisation.
        log: receives what was changed in foreign weights.

    Raises:
        UsageError: unknown name.
        ModelError: weights that are missing, damaged or another network's.
    """
    network = networks.load(model, weights, default=default, kind="video", seed=seed, options=options, log=log)
    return network, clips_of(network.manifest, weights)


def clips_of(manifest: Mapping[str, Any], where: object) -> ClipInput | None:
    """The clips that a manifest describes, if it does.

    Raises:
        ModelError: its description is damaged.
    """
    if _CLIPS not in manifest:
        return None
    try:
        found = ClipInput(**manifest[_CLIPS])
        numbers = (found.frames, found.stride, found.size, found.crop)
        if not isinstance(found.view, str) or not all(isinstance(n, int) and n > 0 for n in numbers):
            raise ValueError("view, frames, stride, size or crop is out of range")
    except (TypeError, ValueError) as error:
        raise ModelError(f"{MANIFEST} of {where} describes no clips: {error}", "Copy it again") from error
    return found


def encoder_folders(run: Path) -> dict[str, Path]:
    """Folders of a run's encoders by view; of two of one view, the run's own is taken, then the first name.

    Raises:
        ModelError: it has none, or a damaged manifest.
    """
    found: dict[str, Path] = {}
    for folder in (run, *sorted((run / ENCODERS).glob("*"))):
        if (folder / MANIFEST).is_file():
            clips = clips_of(read_manifest(folder), folder)
            if clips is not None:
                found.setdefault(clips.view, folder)
    if not found:
        raise ModelError(f"{run} holds no encoder of clips", "Give a run of `effvl cpr-mine` or `cpr-mine train`")
    return found
