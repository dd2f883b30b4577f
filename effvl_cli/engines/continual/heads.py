"""The classifier at the end of a network: a new one for every task."""

import torch
from torch import Tensor, nn

from effvl_cli.core import seeds
from effvl_cli.core.errors import ModelError
from effvl_cli.techniques.continual.owned import head_of

DEVIATION = 0.01  # of a fresh head's weights, as in the official code


def head_path(module: nn.Module) -> str:
    """Path of a classifier's last linear layer.

    Raises:
        ModelError: there is none.
    """
    try:
        return head_of(module)
    except ValueError as error:
        raise ModelError(str(error), "Give --model a classifier with one") from error


def fresh_head(module: nn.Module, num_classes: int, seed: int, task: str) -> nn.Linear:
    """A head for a task: weights from N(0, 0.01), biases 0.

    Args:
        module: whose features it takes.
        num_classes: outputs.
        seed: of the run.
        task: name, which together with the seed determines the draw.
    """
    size = module.get_submodule(head_path(module)).in_features
    head = nn.Linear(int(size), num_classes)  # type: ignore[arg-type]  # of a linear layer
    with torch.no_grad():
        head.weight.normal_(0.0, DEVIATION, generator=seeds.generator(seed, task, "head"))
        assert isinstance(head.bias, Tensor)
        head.bias.zero_()
    return head


def put_head(module: nn.Module, head: nn.Linear) -> None:
    """Replace the last linear layer, in place."""
    parent, _, name = head_path(module).rpartition(".")
    setattr(module.get_submodule(parent), name, head)
    if hasattr(module, "num_classes"):
        setattr(module, "num_classes", head.out_features)  # noqa: B010 - of whichever class
