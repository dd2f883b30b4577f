"""Logits of every test image (`--save-logits`)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from effvl_cli.core.files import write_bytes
from effvl_cli.core.run import Run
from effvl_cli.engines.prompt_tune.features import Features

FILE = "logits.safetensors"


def save_logits(run: Run, images: Features, logits: Mapping[str, Tensor]) -> None:
    """Write (M, K) float32 of each method, and the images' positions and labels."""

    def write(path: Path) -> None:
        known = {"indices": torch.from_numpy(images.indices), "labels": images.labels}
        write_bytes(path, save({**{name: found.float().contiguous() for name, found in logits.items()}, **known}))

    run.write(FILE, write)
