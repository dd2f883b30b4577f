"""The plain network of a committed task, and digests of what it is and computes.

One function serves the commit, `eval`, `verify` and `export`, so that they all speak of the same network.
"""

import copy
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effvl_cli.core import checkpoint
from effvl_cli.core.measure import unfused_attention
from effvl_cli.core.report import environment
from effvl_cli.data.transforms import Preprocess
from effvl_cli.engines.common.verified_files import traced_once
from effvl_cli.engines.continual.state import State
from effvl_cli.models.geometry import Geometry, build
from effvl_cli.models.network import Network
from effvl_cli.models.program import Traced
from effvl_cli.techniques.continual.tasknet import materialise

PROBE_SIZE = 16


def probe_images(preprocess: Preprocess, device: torch.device) -> Tensor:
    """(16, 3, H, W) float32 of the standard normal distribution, the same on every machine."""
    drawn = np.random.Generator(np.random.PCG64(0)).standard_normal((PROBE_SIZE, 3, *preprocess.size))
    return torch.from_numpy(drawn.astype(np.float32)).to(device)


def environment_of(device: torch.device) -> dict[str, Any]:
    """What the bits of logits depend on besides the network and the images."""
    found = environment(device)
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
    return {
        "torch": torch.__version__,
        "device": f"{device.type} {found['device']['name']}",
        "threads": torch.get_num_threads(),
        "cudnn": cudnn,
    }


@dataclass(frozen=True)
class Materialised:
    """A task's network: plain, float32, in evaluation mode.

    Attributes:
        network: with the preprocessing of the task.
        device: where its module is.
    """

    network: Network
    device: torch.device

    @property
    def module(self) -> nn.Module:
        """The network itself."""
        found: nn.Module = self.network.module
        return found

    def logits(self, images: Tensor) -> Tensor:
        """(B, C) float32 on the CPU, of normalised images (B, 3, H, W); without fused attention, which rounds apart."""
        with torch.no_grad(), unfused_attention():
            found: Tensor = self.module(images.to(self.device)).float().cpu()
        return found

    @cached_property
    def traced(self) -> Callable[[], Traced]:
        """Gives its program, traced when first asked for."""
        return traced_once(self.network, self.module)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over sorted names, types, shapes and bytes of its tensors."""
        return checkpoint.digest(self.module.state_dict())

    @cached_property
    def tensors(self) -> dict[str, str]:
        """The same of each tensor."""
        return {key: checkpoint.digest({key: value}) for key, value in sorted(self.module.state_dict().items())}

    @cached_property
    def probe(self) -> Tensor:
        """(16, C) logits of the probe batch."""
        return self.logits(probe_images(self.network.preprocess, self.device))

    @cached_property
    def probe_digest(self) -> str:
        """SHA-256 of the bytes of `probe`."""
        return hashlib.sha256(self.probe.contiguous().numpy().tobytes()).hexdigest()


@functools.lru_cache(maxsize=2)
def _built(geometry: Geometry, num_classes: int) -> Network:
    """The network with any weights, to be copied: drawing them takes longer than all the rest."""
    return build(geometry, num_classes=num_classes, seed=0)


def materialised(state: State, number: int, device: torch.device | None = None) -> Materialised:
    """The network of a task at the task's own width.

    Args:
        state: that holds it; not changed.
        number: id of the task.
        device: of the result; None: the CPU.

    Raises:
        ModelError: the state does not fit the network that it names.
    """
    device = device or torch.device("cpu")
    record = state.tasks[number - 1]
    network = copy.deepcopy(_built(state.geometries[record.geometry], len(record.classes)))
    network.preprocess = Preprocess.from_dict(dict(record.preprocess))
    weights, own = state.effective(number), state.task_tensors[number - 1]
    what = f"the tensors of task {record.name} and {network.name}"
    expected = network.module.state_dict()
    checkpoint.check_keys(expected, {**weights, **own}, what=what, hint="The state is of another version")
    materialise(network.module, weights, own)
    network.source = f"task {record.name}"
    network.module.to(device)
    return Materialised(network, device)
