"""Names of the models of torchvision and timm, for `effvl list models PATTERN`."""

import open_clip
import timm
import torchvision
from torchvision.models import list_models


def names() -> list[tuple[str, str]]:
    """Name as `--model` takes it, and whose it is."""
    return [
        *((f"torchvision:{name}", "torchvision classifier") for name in list_models(module=torchvision.models)),
        *((f"timm:{name}", "timm classifier") for name in timm.list_models()),
        *((f"openclip:{name}", "open_clip model") for name in open_clip.list_models()),
    ]
