"""The golden oracle on test images: an upper reference that no deployable selector can reach."""

from dataclasses import replace

import torch
from torch import Tensor

from effvl_cli.config.prune_tokens import EvalConfig, PruneTokensConfig
from effvl_cli.core import seeds
from effvl_cli.data.decoded import Decoded
from effvl_cli.engines.prune_tokens.context import Context
from effvl_cli.engines.prune_tokens.evaluation import record, result
from effvl_cli.engines.prune_tokens.rankings import rank_images
from effvl_cli.techniques.prune_tokens.selectors import GoldenSelector


def golden(
    context: Context[PruneTokensConfig | EvalConfig], test: Decoded, dense: Tensor
) -> tuple[Decoded, GoldenSelector, Tensor]:
    """Search `--num-golden` test images, the same in every run, and record the dense tower on them.

    Returns:
        The images, their rankings as a selector, and their dense embeddings.
    """
    order = torch.randperm(len(test), generator=seeds.generator(0, "golden"))[: context.config.num_golden].sort().values
    some, reference = test.take(order), dense[order]
    ranked = rank_images(context, some, "golden ranking of test images")
    row = result(context, "dense", 1.0, some, reference, reference)
    record(context, replace(row, selector="dense-golden"), "top1_dense_golden")
    return some, GoldenSelector(some.keys, ranked.rank), reference
