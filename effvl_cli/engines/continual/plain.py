"""Networks without owners: those of one task alone, and the one that is fine-tuned from task to task."""

import copy

import torch
from torch import nn

from effvl_cli.config.continual_learn import TaskOptions
from effvl_cli.core import distributed
from effvl_cli.core.optim import Optimizers
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.heads import put_head


def plain_network(context: Context, job: Job) -> nn.Module:
    """The backbone as every task finds it, with a head for the task, on the device."""
    module: nn.Module = copy.deepcopy(context.network.module)
    new_head(context, module, job)
    return synchronised(module.to(context.run.device), job.config).train()


def synchronised(module: nn.Module, config: TaskOptions) -> nn.Module:
    """With --sync-bn and several processes, batch norm takes its statistics over the images of all of them."""
    if not config.sync_bn or distributed.world().size == 1:
        return module
    found: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return found


def new_head(context: Context, module: nn.Module, job: Job) -> None:
    """Put a fresh head for the task on a network, in place."""
    put_head(module, context.head(module, job))
    module.to(context.run.device)


def optimizers(context: Context, module: nn.Module, config: TaskOptions, lr: float | None = None) -> Optimizers:
    """SGD over all parameters, with decay on the weights that learned tasks would share.

    Args:
        context: which these are.
        module: a plain network.
        config: options of its task.
        lr: rate; None: that of learning.
    """
    named = dict(module.named_parameters())
    shared = [parameter for name, parameter in named.items() if name in context.shared]
    rest = [parameter for name, parameter in named.items() if name not in context.shared]
    groups = [
        {"params": shared, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return Optimizers([sgd(groups, lr or config.lr, config)])


def sgd(groups: list[dict[str, object]], lr: float | None, config: TaskOptions) -> torch.optim.SGD:
    """SGD with Nesterov momentum in one pass over the weights; groups without parameters are left out."""
    assert lr is not None  # filled in by the options
    kept = [group for group in groups if group["params"]]
    return torch.optim.SGD(kept, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
