from collections.abc import Callable

import pytest
from torch import nn

from effvl_cli.models.network import build
from effvl_cli.techniques.prune_blocks.unit import Unit


def cifar_resnet(depth: int, *, width: int = 16) -> tuple[nn.Module, list[Unit]]:
    """A network in evaluation mode and its units: all blocks but the first of stages 2 and 3."""
    network = build(f"cifar-resnet:{depth},width={width}", seed=0, num_classes=10).module.eval()
    blocks = range((depth - 2) // 6)
    return network, [Unit(f"layer{s}.{i}", f"layer{s}") for s in (1, 2, 3) for i in blocks if s == 1 or i]


@pytest.fixture
def resnet() -> Callable[..., tuple[nn.Module, list[Unit]]]:
    return cifar_resnet
